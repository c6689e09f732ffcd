# SPDX-License-Identifier: Apache-2.0
"""Files that are there in full or not at all, on a disk or in a bucket.

A file is written under a temporary name and then renamed. On a disk both are
synced first, so that not even a loss of power leaves half a file. A bucket
(`gs://...`) needs no syncing: an object exists once it is closed, and it is
durable then; a rename is a copy, which appears as a whole.
"""

from collections.abc import Iterator
import contextlib
import os
from typing import IO

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
  """Tells whether a path lies in a bucket, which knows no appending."""
  return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
  """Opens a file whose bytes are at `path` when the block ends without error.

  What was there before stays until then. The folder is made if need be.
  """
  final = epath.Path(path)
  final.parent.mkdir(parents=True, exist_ok=True)
  temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
  try:
    with temporary.open("wb") as file:
      yield file
      if not is_remote(path):
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(final)
  finally:
    temporary.unlink(missing_ok=True)
  if not is_remote(path):
    sync_folder(final.parent)


def write(path: epath.PathLike, content: bytes | str) -> None:
  """Replaces a file; text is written as UTF-8."""
  with replacing(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def append(path: epath.PathLike, text: str) -> None:
  """Appends text to a file on a disk; in a bucket writes the whole anew.

  A crash may leave a torn end on a disk, never in a bucket.
  """
  found = epath.Path(path)
  if is_remote(path):
    before = found.read_text() if found.exists() else ""
    write(path, before + text)
    return
  with open(found, "a", encoding="utf-8") as file:
    file.write(text)


def sync_folder(folder: epath.PathLike) -> None:
  """Makes a rename inside `folder` survive a loss of power."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_tree(folder: epath.PathLike) -> None:
  """Makes every file below `folder` survive a loss of power."""
  for parent, _, files in os.walk(folder):
    for name in files:
      with open(os.path.join(parent, name), "rb") as file:
        os.fsync(file.fileno())
    sync_folder(parent)
