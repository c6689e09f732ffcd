# SPDX-License-Identifier: Apache-2.0
"""Pretraining and LM adaptation on C4, or on local text files."""

from collections.abc import Callable, Iterator, Mapping
import functools
import random
from typing import Any

from prompt_tuning.tasks import (
  objectives,
  preprocessors,
  registration,
  text_files,
)
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
    globs: split -> glob of files as `text_files.documents` reads them.

  Raises:
    ValueError: if a glob matches no file.
  """
  paths = {
    split: text_files.find(pattern, split) for split, pattern in globs.items()
  }
  dataset_fn = functools.partial(_text_dataset, paths=paths)
  register(stem, seqio.FunctionDataSource(dataset_fn, splits=list(globs)))


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
      for document in text_files.documents(path):
        yield {"text": document}

  signature = {"text": tf.TensorSpec([], tf.string)}
  return tf.data.Dataset.from_generator(rows, output_signature=signature)


register("c4_v220", seqio.TfdsDataSource("c4/en:2.2.0"))
