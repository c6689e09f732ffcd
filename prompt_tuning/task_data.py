# SPDX-License-Identifier: Apache-2.0
"""What a run reads: tokenised tasks, what scores them, and the vocabulary.

`data.from_seqio` makes it from seqio, `cache.from_cache` from files that an
earlier one was written to; training and evaluation cannot tell them apart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning import batching, buckets
from prompt_tuning import vocabulary as vocabulary_lib

# `(*, batch_size, seed, start_step)` -> the batches from a step on.
BatchesFn = Callable[..., Iterator[batching.Batch]]
# A field of a row: text is bytes, as TensorFlow yields it.
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How a task is scored.

  Attributes:
    postprocess_fn: decoded text -> value to be compared.
    metric_fns: functions of (targets, predictions); none where no labels are
      public.
    default: names of the metrics whose mean selects a checkpoint, and is
      reported where one number stands for the task.
    labels: the texts that a model of the task answers with, if it is one of
      labels; rank classification chooses among them.
  """

  postprocess_fn: Callable[..., Any]
  metric_fns: Sequence[Callable[..., Mapping[str, Any]]] = ()
  default: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()


def unscored(name: str) -> Scoring:
  """Returns how a task is scored that has a loss alone, whatever its name."""
  del name
  return Scoring(lambda text, **_: text)


class EvalTask(NamedTuple):
  """A task whose predictions can be scored.

  Attributes:
    name: its name in seqio's registry.
    examples: the tokenised rows.
    rows: the other fields of the same rows, as post-processors want them.
    scoring: its post-processor, metrics and labels.
  """

  name: str
  examples: batching.Examples
  rows: Sequence[Row]
  scoring: Scoring


class TaskData(NamedTuple):
  """All tasks of a run.

  Attributes:
    name: of the task or mixture.
    train_names: the names of the tasks of `train_sources`.
    train_sources: the train split of each task, with its mixing rate.
    eval_tasks: the validation split of each task that has metrics.
    feature_lengths: number of tokens that `inputs` and `targets` are cut to.
    vocabulary: the one they are written in.
    buckets: the lengths that the inputs of a batch are cut to; without, all
      have that of `feature_lengths`.
    batches_fn: makes the batches in place of `train_sources`, as for a
      corpus, whose rows are not the same in each epoch.
  """

  name: str
  train_names: Sequence[str]
  train_sources: Sequence[tuple[batching.Examples, float]]
  eval_tasks: Sequence[EvalTask]
  feature_lengths: Mapping[str, int]
  vocabulary: vocabulary_lib.Vocabulary
  buckets: Sequence[int] = ()
  batches_fn: BatchesFn | None = None


def train_batches(
  data: TaskData, *, batch_size: int, seed: int, start_step: int
) -> Iterator[batching.Batch]:
  """Yields the batches from `start_step` on; see `batching.train_batches`."""
  if data.batches_fn is not None:
    return data.batches_fn(
      batch_size=batch_size, seed=seed, start_step=start_step
    )
  return batching.train_batches(
    data.train_sources,
    batch_size=batch_size,
    feature_lengths=data.feature_lengths,
    seed=seed,
    start_step=start_step,
    buckets=data.buckets,
  )


def train_buckets(data: TaskData) -> list[int]:
  """Returns the lengths that batches of training can be cut to, if any."""
  if not data.buckets:
    return []
  lengths = np.concatenate([x.inputs.lengths for x, _ in data.train_sources])
  longest = np.unique(lengths).tolist()
  return sorted({buckets.fit(data.buckets, n) for n in longest})


def with_buckets(data: TaskData, num_buckets: int) -> TaskData:
  """Chooses the buckets from all rows that are trained on or evaluated.

  Raises:
    ValueError: for a corpus, whose pieces have one length.
  """
  if data.batches_fn is not None:
    raise ValueError(
      f"num_buckets={num_buckets}: the rows of {data.name} have one length,"
      " set num_buckets=0"
    )
  examples = [source for source, _ in data.train_sources]
  examples += [task.examples for task in data.eval_tasks]
  lengths = np.concatenate([x.inputs.lengths for x in examples])
  chosen = buckets.choose(
    lengths, num_buckets=num_buckets, longest=data.feature_lengths["inputs"]
  )
  return data._replace(buckets=chosen)
