# SPDX-License-Identifier: Apache-2.0
"""Pretraining and LM adaptation on C4, or on local text files."""

from collections.abc import Callable, Iterator, Mapping
import functools
import glob
import gzip
import lzma
import pathlib
import random
from typing import Any

from prompt_tuning.tasks import objectives, preprocessors, registration
import seqio
import tensorflow as tf

# Objective -> what makes inputs and targets from the tokens of documents.
OBJECTIVES: Mapping[str, tuple[Callable[..., tf.data.Dataset], ...]] = {
  "span_corruption": (objectives.span_corruption,),
  # One more sentinel in front of the targets, which start with one already. In
  # the paper, "Span Corruption + Sentinel" is about downstream targets instead:
  # the tasks named `sentinel_...`.
  "span_corruption_sentinel": (
    objectives.span_corruption,
    functools.partial(
      preprocessors.prepend_sentinel, feature="targets", index=0
    ),
  ),
  "prefix_lm": (objectives.prefix_lm,),
  "bart_text_infilling": (objectives.text_infilling,),
  "bart_token_deletion": (objectives.token_deletion,),
}


def register(stem: str, source: seqio.DataSource) -> None:
  """Registers `<stem>_<objective>` for every objective.

  Args:
    stem: beginning of the names.
    source: rows with the document in `text`.
  """
  for objective, steps in OBJECTIVES.items():
    seqio.TaskRegistry.add(
      f"{stem}_{objective}",
      source=source,
      preprocessors=[
        functools.partial(
          seqio.preprocessors.rekey,
          key_map={"inputs": None, "targets": "text"},
        ),
        functools.partial(
          seqio.preprocessors.tokenize, copy_pretokenized=False
        ),
        seqio.CacheDatasetPlaceholder(),
        *steps,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=registration.output_features(),
      metric_fns=[],
    )


def register_text_files(stem: str, globs: Mapping[str, str]) -> None:
  """Registers every objective over local text files.

  Args:
    stem: beginning of the names, as in `<stem>_prefix_lm`.
    globs: split -> glob of UTF-8 files, plain, .gz or .xz, one paragraph a
      line, with an empty line between documents.

  Raises:
    ValueError: if a glob matches no file.
  """
  paths = {
    split: sorted(glob.glob(pattern)) for split, pattern in globs.items()
  }
  for split, pattern in globs.items():
    if not paths[split]:
      raise ValueError(f"{split}: {pattern!r} matches no file")
  dataset_fn = functools.partial(_text_dataset, paths=paths)
  register(stem, seqio.FunctionDataSource(dataset_fn, splits=list(globs)))


def documents(path: str) -> Iterator[str]:
  """Yields the documents of a text file, their paragraphs on lines.

  Raises:
    ValueError: if the file is not UTF-8.
  """
  open_fns: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
  open_fn = open_fns.get(pathlib.Path(path).suffix, open)
  paragraphs: list[str] = []
  try:
    with open_fn(path, "rt", encoding="utf-8") as lines:
      for line in lines:
        if line.strip():
          paragraphs.append(line.strip())
        elif paragraphs:
          yield "\n".join(paragraphs)
          paragraphs = []
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error}") from None
  if paragraphs:
    yield "\n".join(paragraphs)


def _text_dataset(
  split: str,
  shuffle_files: bool,
  seed: int | None = None,
  *,
  paths: Mapping[str, list[str]],
) -> tf.data.Dataset:
  order = list(paths[split])
  if shuffle_files:
    random.Random(seed).shuffle(order)

  def rows() -> Iterator[dict[str, Any]]:
    for path in order:
      for document in documents(path):
        yield {"text": document}

  signature = {"text": tf.TensorSpec([], tf.string)}
  return tf.data.Dataset.from_generator(rows, output_signature=signature)


register("c4_v220", seqio.TfdsDataSource("c4/en:2.2.0"))
