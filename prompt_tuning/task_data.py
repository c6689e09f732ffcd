# SPDX-License-Identifier: Apache-2.0
"""What a run reads: tokenised tasks, what scores them, and the vocabulary.

`data.from_seqio` makes it from seqio, `cache.from_cache` from files that an
earlier one was written to; training and evaluation cannot tell them apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning import batching

# A field of a row: text is bytes, as TensorFlow yields it.
Row = Mapping[str, Any]


class Vocabulary(NamedTuple):
  """A vocabulary, without TensorFlow.

  Attributes:
    size: number of ids.
    encode: text to ids, without EOS.
    decode: ids to text, up to EOS.
  """

  size: int
  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]


class EvalTask(NamedTuple):
  """A task whose predictions can be scored.

  Attributes:
    name: its name in seqio's registry.
    examples: the tokenised rows.
    rows: the other fields of the same rows, as post-processors want them.
    postprocess_fn: text to the value that the metrics compare.
    metric_fns: functions of targets and predictions.
  """

  name: str
  examples: batching.Examples
  rows: Sequence[Row]
  postprocess_fn: Callable[..., Any]
  metric_fns: Sequence[Callable[..., Mapping[str, Any]]]


class TaskData(NamedTuple):
  """All tasks of a run.

  Attributes:
    train_sources: the train split of each task, with its mixing rate.
    eval_tasks: the validation split of each task that has metrics.
    feature_lengths: number of tokens that `inputs` and `targets` are cut to.
    vocabulary: the one they are written in.
  """

  train_sources: Sequence[tuple[batching.Examples, float]]
  eval_tasks: Sequence[EvalTask]
  feature_lengths: Mapping[str, int]
  vocabulary: Vocabulary
