# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a base by its files, and opens it."""

import os
import pathlib
import re
from typing import Any

import tensorstore as ts

from prompt_tuning.pretrained import (
  hugging_face,
  safetensors_files,
  t5x,
  zarr_arrays,
)
from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained.leaves import Checkpoint, Leaf

_WANTED = (
  "give the folder of a T5X checkpoint (checkpoint_<step>), of a Hugging Face "
  "model, or a .safetensors file"
)


def _complaint(path: str, text: str) -> ValueError:
  # Every program has its own name for the flag, or none.
  return ValueError(f"the checkpoint {path!r} {text}")


def _newest_step(folder: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder `checkpoint_<step>` with the highest step."""
  found = [
    (int(match[1]), entry)
    for entry in folder.iterdir()
    if (match := re.fullmatch(r"checkpoint_(\d{1,18})", entry.name))
    and entry.is_dir()
  ]
  return max(found)[1] if found else None


def _check_file(path: pathlib.Path, root: pathlib.Path) -> None:
  """Refuses what is no plain file or lies, through a link, out of `root`."""
  real = path.resolve()
  if not real.is_relative_to(root):
    raise ValueError(f"{path} is a link out of its folder, to {real}")
  if not real.is_file():
    raise ValueError(f"{path} is not a file")


def _check_tree(folder: pathlib.Path) -> None:
  """Checks every file below `folder` as `_check_file` does."""
  for parent, folders, files in os.walk(folder):
    for name in folders:
      entry = pathlib.Path(parent, name)
      if entry.is_symlink():
        raise ValueError(f"{entry} is a link to a folder")
    for name in files:
      _check_file(pathlib.Path(parent, name), folder)


def _link_root(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder that the links of a Hugging Face model may lead into.

  In Hugging Face's cache, `snapshots/<revision>/` links into `blobs/`.
  """
  is_cached = folder.parent.name == "snapshots"
  return folder.parent.parent if is_cached else folder


def _open_safetensors(path: pathlib.Path) -> Checkpoint:
  """Opens one file: ours has T5X's paths as names, Hugging Face's has dots."""
  leaves, metadata = safetensors_files.open_file(path)
  if any("/" in name for name in leaves):
    for name in leaves:
      leaves_lib.check_path(name)
    step = metadata.get("step", "0")
    if not re.fullmatch(r"\d{1,10}", step):
      raise ValueError(f"{path} has step={step!r:.40} in its metadata")
    return Checkpoint(leaves, int(step))
  return _open_hugging_face(path.parent, leaves)


def _open_hugging_face(
  folder: pathlib.Path, leaves: dict[str, Leaf]
) -> Checkpoint:
  if (folder / hugging_face.CONFIG).exists():
    _check_file(folder / hugging_face.CONFIG, _link_root(folder))
  config = hugging_face.read_config(folder)
  return Checkpoint(hugging_face.to_t5x(leaves, config), 0)


def _open_shards(folder: pathlib.Path) -> Checkpoint:
  _check_file(folder / hugging_face.INDEX, _link_root(folder))
  names = hugging_face.shard_names(folder / hugging_face.INDEX)
  for file in sorted(set(names.values())):
    _check_file(folder / file, _link_root(folder))
  return _open_hugging_face(folder, hugging_face.open_shards(folder, names))


def _open_t5x(folder: pathlib.Path) -> Checkpoint:
  _check_tree(folder)
  index = folder / t5x.INDEX
  if index.stat().st_size > t5x.MAX_INDEX_BYTES:
    raise ValueError(f"{index} is too large to be an index")
  kvstore = {"driver": "file", "path": f"{folder}/"}
  return t5x.open_msgpack(kvstore, index.read_bytes())


def _open_orbax(folder: pathlib.Path) -> Checkpoint:
  _check_tree(folder)
  return t5x.open_orbax(folder)


def _open_folder(folder: pathlib.Path, path: str) -> Checkpoint:
  """Opens what lies in `folder`; `path` is what the user typed."""
  if (folder / t5x.INDEX).is_file():
    return _open_t5x(folder)
  for state in (folder / "state", folder):
    if (state / "_METADATA").is_file():
      return _open_orbax(state)
  if (folder / hugging_face.INDEX).exists():
    return _open_shards(folder)
  files = sorted(folder.glob("*.safetensors"))
  named = folder / hugging_face.WEIGHTS
  if named in files:
    files = [named]
  if len(files) == 1:
    _check_file(files[0], _link_root(folder))
    return _open_safetensors(files[0])
  raise _complaint(path, _why_not(folder, files))


def _why_not(folder: pathlib.Path, files: list[pathlib.Path]) -> str:
  """Says what is wrong with a folder, and what to type instead."""
  if files:
    return f"holds {len(files)} .safetensors files: name one, as {files[0]}"
  if newest := _newest_step(folder):
    return f"holds several steps: name one, as {newest}"
  if any(folder.glob("*.bin")):
    return (
      "holds pickled weights, which can run any code and are never read: save "
      "the model with safe_serialization=True"
    )
  return f"holds no checkpoint that is known: {_WANTED}"


def gcs_kvstore(path: str) -> dict[str, Any]:
  """Describes a folder `gs://bucket/path` to TensorStore.

  Raises:
    ValueError: if no bucket or no folder is named.
  """
  found = re.fullmatch(r"gs://([a-z0-9._\-]+)/(.+)", path)
  if not found:
    raise _complaint(path, "must look like gs://bucket/folder")
  return {
    "driver": "gcs",
    "bucket": found[1],
    "path": f"{found[2].strip('/')}/",
  }


def _open_gcs(path: str) -> Checkpoint:
  """Opens a T5X checkpoint in a bucket of Google Cloud Storage."""
  kvstore = gcs_kvstore(path)
  try:
    store = ts.KvStore.open(kvstore).result()
    found = store.read(t5x.INDEX).result()
  except zarr_arrays.ERRORS as error:
    raise _complaint(path, f"cannot be read: {error}") from error
  if found.state != "value":
    raise _complaint(path, f"does not exist or has no file {t5x.INDEX}")
  return t5x.open_msgpack(kvstore, found.value)


def open_checkpoint(path: str) -> Checkpoint:
  """Opens a base of any known format; no parameter is read yet.

  Args:
    path: a T5X checkpoint (also `gs://`), a folder or file of a Hugging Face
      model, or a file that `pretrained.save` wrote.

  Raises:
    ValueError: if there is none, or it is damaged.
  """
  if path.startswith("gs://"):
    return _open_gcs(path)
  try:
    named = pathlib.Path(path).expanduser()
    # What the user names may be a link; from there on none may lead out.
    if named.is_dir():
      return _open_folder(named.resolve(), path)
    if named.suffix == ".safetensors" and named.is_file():
      # Its config.json lies beside the name, not beside what it links to.
      return _open_safetensors(named.parent.resolve() / named.name)
    is_there = named.exists()
  except (OSError, RuntimeError) as error:  # The latter from `expanduser`.
    raise _complaint(path, f"cannot be read: {error}") from error
  exists = "is no checkpoint" if is_there else "does not exist"
  raise _complaint(path, f"{exists}: {_WANTED}")
