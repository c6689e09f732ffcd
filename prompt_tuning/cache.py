# SPDX-License-Identifier: Apache-2.0
"""A tokenised task in files, to train and evaluate without TensorFlow.

A cache is a folder:

    manifest.json       what it was made of, and size and SHA-256 of each file
    vocabulary.model    the SentencePiece model; empty for bytes
    train_0.*.npy       tokens and row offsets of each task; memory-mapped
    eval_0.*.npy        the same of each task that is evaluated
    eval_0.msgpack      the other fields of its rows, for the metrics

It appears as a whole or not at all. Nothing in it is trusted when it is read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import pathlib
import tempfile

import msgpack
import numpy as np

from prompt_tuning import (
  atomic_files,
  batching,
  cache_manifest,
  task_data,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)
from prompt_tuning.cache_manifest import AGAIN


def write(cache_dir: str, data: task_data.TaskData) -> str:
  """Writes a cache; returns a line about it.

  A cache of the same content that is there already is left as it is.

  Raises:
    ValueError: if there is something else.
  """
  final = pathlib.Path(cache_dir)
  final.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=".cache-", dir=final.parent
  ) as temporary:
    folder = pathlib.Path(temporary) / "cache"
    folder.mkdir()
    for name, content in _contents(data):
      _write_file(folder / name, content)
    manifest = cache_manifest.with_files(_manifest(data), folder)
    if final.exists():
      _check_same(final, manifest)
      return f"{final}: already there, {_summary(manifest)}"
    _write_file(folder / cache_manifest.NAME, cache_manifest.to_json(manifest))
    atomic_files.sync_tree(folder)
    folder.rename(final)
  return f"{final}: wrote {_summary(manifest)}"


def _write_file(path: pathlib.Path, content: bytes | np.ndarray) -> None:
  with open(path, "wb") as file:
    if isinstance(content, bytes):
      file.write(content)
    else:
      np.save(file, content, allow_pickle=False)


def _contents(
  data: task_data.TaskData,
) -> Iterator[tuple[str, bytes | np.ndarray]]:
  """Yields the name and content of each file but the manifest."""
  yield cache_manifest.VOCABULARY, data.vocabulary.model
  groups = [f"train_{i}" for i in range(len(data.train_sources))]
  groups += [f"eval_{i}" for i in range(len(data.eval_tasks))]
  examples = [source for source, _ in data.train_sources]
  examples += [task.examples for task in data.eval_tasks]
  # Two bytes hold the ids of T5's vocabulary, but not those of mT5's.
  dtype = np.uint16 if data.vocabulary.size <= 1 << 16 else np.int32
  for group, example in zip(groups, examples, strict=True):
    for feature, ragged in example._asdict().items():
      yield f"{group}.{feature}.tokens.npy", ragged.tokens.astype(dtype)
      yield f"{group}.{feature}.offsets.npy", ragged.offsets
  for i, task in enumerate(data.eval_tasks):
    yield f"eval_{i}.msgpack", msgpack.packb([dict(row) for row in task.rows])


def _manifest(data: task_data.TaskData) -> cache_manifest.Manifest:
  split = cache_manifest.Split
  train = zip(data.train_names, data.train_sources, strict=True)
  return cache_manifest.Manifest(
    cache_manifest.VERSION,
    data.name,
    dict(data.feature_lengths),
    data.vocabulary.size,
    data.vocabulary.sha256,
    [split(name, x.inputs.num_rows, rate) for name, (x, rate) in train],
    [split(x.name, x.examples.inputs.num_rows, 0.0) for x in data.eval_tasks],
  )


def _summary(manifest: cache_manifest.Manifest) -> str:
  count = lambda splits: sum(split.num_rows for split in splits)
  return (
    f"{manifest.task}, {count(manifest.train)} rows to train on,"
    f" {count(manifest.evaluation)} to evaluate,"
    f" {sum(manifest.sizes.values()) / 1e6:.1f} MB, vocabulary"
    f" {manifest.vocabulary_sha256}"
  )


def _check_same(folder: pathlib.Path, wanted: cache_manifest.Manifest) -> None:
  """Refuses to write where something else is."""
  found = cache_manifest.read(folder)
  for name in cache_manifest.Manifest._fields:
    if getattr(found, name) != getattr(wanted, name):
      raise ValueError(
        f"CACHE_DIR={str(folder)!r} is a cache with other {name}: choose"
        " another folder, or delete this one"
      )


def from_cache(
  *,
  cache_dir: str,
  mixture_or_task_name: str,
  feature_lengths: Mapping[str, int],
  scoring_fn: Callable[[str], task_data.Scoring],
  vocabulary_sha256: str | None = None,
) -> task_data.TaskData:
  """Opens a cache; equal to what was written.

  Args:
    cache_dir: the folder.
    mixture_or_task_name: what it must have been made from.
    feature_lengths: numbers of tokens it must have been made with.
    scoring_fn: name of a task -> post-processor, metrics and labels.
    vocabulary_sha256: of the vocabulary it must be written in, as the command
      that wrote it says; None for any.

  Raises:
    ValueError: if the cache is missing, damaged, or does not fit.
  """
  folder = pathlib.Path(cache_dir)
  manifest = cache_manifest.read(folder)
  wanted = {
    "task": mixture_or_task_name,
    "feature_lengths": dict(feature_lengths),
    "vocabulary_sha256": vocabulary_sha256 or manifest.vocabulary_sha256,
  }
  for name, value in wanted.items():
    if getattr(manifest, name) != value:
      raise ValueError(
        f"the cache {cache_dir} has {name} {getattr(manifest, name)!r}, the run"
        f" wants {value!r}: {AGAIN}, or change the run"
      )
  cache_manifest.check_files(manifest, folder)
  vocabulary = _open_vocabulary(folder, manifest)
  examples = lambda group, split: _examples(folder, group, split, vocabulary)
  return task_data.TaskData(
    manifest.task,
    [split.name for split in manifest.train],
    [
      (examples(f"train_{i}", split), split.rate)
      for i, split in enumerate(manifest.train)
    ],
    [
      task_data.EvalTask(
        split.name,
        examples(f"eval_{i}", split),
        _rows(folder / f"eval_{i}.msgpack", split),
        scoring_fn(split.name),
      )
      for i, split in enumerate(manifest.evaluation)
    ],
    manifest.feature_lengths,
    vocabulary,
  )


def _open_vocabulary(
  folder: pathlib.Path, manifest: cache_manifest.Manifest
) -> vocabulary_lib.Vocabulary:
  model = (folder / cache_manifest.VOCABULARY).read_bytes()
  vocabulary = (
    vocabulary_lib.from_sentencepiece(model)
    if model
    else vocabulary_lib.from_bytes(manifest.vocabulary_size)
  )
  if vocabulary.sha256 != manifest.vocabulary_sha256:
    raise ValueError(
      f"the vocabulary in {folder} is not the one that the cache is written"
      f" in: {AGAIN}"
    )
  return vocabulary


def _examples(
  folder: pathlib.Path,
  group: str,
  split: cache_manifest.Split,
  vocabulary: vocabulary_lib.Vocabulary,
) -> batching.Examples:
  inputs, targets = (
    _ragged(folder / f"{group}.{feature}", split, vocabulary.size)
    for feature in batching.Examples._fields
  )
  return batching.Examples(inputs, targets)


def _ragged(
  prefix: pathlib.Path, split: cache_manifest.Split, size: int
) -> batching.Ragged:
  """Maps tokens and offsets into memory, and checks that they agree."""
  tokens = _load(prefix.with_name(f"{prefix.name}.tokens.npy"))
  offsets = _load(prefix.with_name(f"{prefix.name}.offsets.npy"))
  is_whole = (
    offsets.dtype == np.int64
    and tokens.dtype in (np.uint16, np.int32)
    and len(offsets) == split.num_rows + 1
    and offsets[0] == 0
    and offsets[-1] == len(tokens)
    and bool(np.all(np.diff(offsets) >= 0))
    and (not len(tokens) or 0 <= tokens.min() <= tokens.max() < size)
  )
  if not is_whole:
    raise ValueError(
      f"{prefix}.*.npy do not hold {split.num_rows} rows of ids below {size}:"
      f" {AGAIN}"
    )
  return batching.Ragged(tokens, offsets)


def _load(path: pathlib.Path) -> np.ndarray:
  """Maps a one-dimensional array into memory."""
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{path} is broken ({error}): {AGAIN}") from error
  if not isinstance(array, np.ndarray) or array.ndim != 1:
    raise ValueError(f"{path} is no array of one axis: {AGAIN}")
  return np.asarray(array)  # Slices of a plain array are faster.


def _rows(
  path: pathlib.Path, split: cache_manifest.Split
) -> Sequence[task_data.Row]:
  try:
    rows = msgpack.unpackb(path.read_bytes())
  except (ValueError, msgpack.UnpackException) as error:
    raise ValueError(f"{path} is broken ({error}): {AGAIN}") from error
  is_whole = (
    isinstance(rows, list)
    and len(rows) == split.num_rows
    and all(isinstance(row, dict) for row in rows)
    and all(isinstance(row.get("targets_pretokenized"), bytes) for row in rows)
  )
  if not is_whole:
    raise ValueError(
      f"{path} does not hold {split.num_rows} rows with their targets: {AGAIN}"
    )
  return rows
