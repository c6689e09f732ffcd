# SPDX-License-Identifier: Apache-2.0
"""What a tokenised cache was made of, and whether its files are whole."""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from prompt_tuning import batching

VERSION = 1
NAME = "manifest.json"
VOCABULARY = "vocabulary.model"
AGAIN = "write it anew with `python -m prompt_tuning.cache_task`"


class Split(NamedTuple):
  """The rows of one task; `rate` is its mixing rate, 0 in evaluation."""

  name: str
  num_rows: int
  rate: float


class Manifest(NamedTuple):
  """What a cache was made of.

  Attributes:
    version: of the format.
    task: the task or mixture.
    feature_lengths: numbers of tokens that the rows are cut to.
    vocabulary_size: number of ids.
    vocabulary_sha256: see `vocabulary.Vocabulary.sha256`.
    train: the tasks that are trained on.
    evaluation: the tasks that are evaluated.
    files: name of each file but the manifest -> SHA-256.
    sizes: the same names -> bytes.
  """

  version: int
  task: str
  feature_lengths: Mapping[str, int]
  vocabulary_size: int
  vocabulary_sha256: str
  train: Sequence[Split]
  evaluation: Sequence[Split]
  files: Mapping[str, str] = {}
  sizes: Mapping[str, int] = {}


def groups(manifest: Manifest) -> list[str]:
  """Returns what the names of the files of each task begin with."""
  return [
    *(f"train_{i}" for i in range(len(manifest.train))),
    *(f"eval_{i}" for i in range(len(manifest.evaluation))),
  ]


def with_files(manifest: Manifest, folder: pathlib.Path) -> Manifest:
  """Adds size and digest of each file of the folder."""
  paths = sorted(folder.iterdir())
  return manifest._replace(
    files={path.name: sha256(path) for path in paths},
    sizes={path.name: path.stat().st_size for path in paths},
  )


def sha256(path: pathlib.Path) -> str:
  """Returns the hexadecimal digest of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(manifest: Manifest) -> bytes:
  """Serializes a manifest."""
  fields: dict[str, Any] = manifest._asdict()
  for name in ("train", "evaluation"):
    fields[name] = [split._asdict() for split in fields[name]]
  return json.dumps(fields, indent=1).encode()


def read(folder: pathlib.Path) -> Manifest:
  """Reads the manifest of a cache; the other files are not looked at.

  Raises:
    ValueError: if there is none, or it is broken or of another version.
  """
  path = folder / NAME
  if not path.is_file():
    raise ValueError(f"{folder} is not a cache: it has no {NAME}")
  try:
    fields = json.loads(path.read_bytes())
    version = fields["version"]
    manifest = _from_fields(fields) if version == VERSION else None
  except (
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    raise ValueError(
      f"{path} is broken ({type(error).__name__}: {error}): {AGAIN}"
    ) from error
  if manifest is None:
    raise ValueError(
      f"the cache {folder} has version {version!r} of the format, wanted"
      f" {VERSION}: {AGAIN}"
    )
  return manifest


def _from_fields(fields: Mapping[str, Any]) -> Manifest:
  splits = lambda name: [
    Split(str(x["name"]), int(x["num_rows"]), float(x["rate"]))
    for x in fields[name]
  ]
  numbers = lambda name: {str(k): int(v) for k, v in fields[name].items()}
  return Manifest(
    VERSION,
    str(fields["task"]),
    numbers("feature_lengths"),
    int(fields["vocabulary_size"]),
    str(fields["vocabulary_sha256"]),
    splits("train"),
    splits("evaluation"),
    {str(k): str(v) for k, v in fields["files"].items()},
    numbers("sizes"),
  )


def check_files(manifest: Manifest, folder: pathlib.Path) -> None:
  """Compares all files with their sizes and digests.

  Raises:
    ValueError: for a file that is missing or damaged.
  """
  names = {VOCABULARY} | {
    f"{group}.{feature}.{part}.npy"
    for group in groups(manifest)
    for feature in batching.Examples._fields
    for part in batching.Ragged._fields
  }
  names |= {f"{x}.msgpack" for x in groups(manifest) if x.startswith("eval_")}
  for name in sorted(names):
    path = folder / name
    if not path.is_file():
      raise ValueError(f"the cache {folder} lacks {name}: {AGAIN}")
    size, wanted = path.stat().st_size, manifest.sizes.get(name)
    if size != wanted:
      raise ValueError(f"{path} has {size} bytes, wanted {wanted}: {AGAIN}")
    if sha256(path) != manifest.files.get(name):
      raise ValueError(f"{path} is damaged (its SHA-256 differs): {AGAIN}")
