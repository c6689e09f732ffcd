# SPDX-License-Identifier: Apache-2.0
"""The metrics of the tasks over the predictions of a model.

A prediction is a text: the one that the model generates or, in rank
classification, the label that it finds likeliest.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
from typing import Any

import jax
from jaxtyping import Array, Int, Shaped
import numpy as np

from prompt_tuning import (
  batching,
  decoding,
  losses,
  t5,
  task_data,
  trainer,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

# The first sentinel has the last id; the tasks `sentinel_...` have it in front.
_SENTINEL = "<extra_id_0>"

PredictFn = Callable[[trainer.Params, batching.Batch], Array]
# All parameters and a task -> the predicted text of each row.
TextsFn = Callable[[trainer.Params, task_data.EvalTask], Sequence[str]]


def texts_fn(
  model: t5.Transformer,
  data: task_data.TaskData,
  *,
  mode: str,
  batch_size: int,
) -> TextsFn:
  """Returns what predicts a text for every row of a task.

  In the mode "rank" a task without labels is generated all the same.

  Raises:
    ValueError: for "rank" if no task has labels.
  """
  if mode == "rank" and not any(
    task.scoring.labels for task in data.eval_tasks
  ):
    names = ", ".join(task.name for task in data.eval_tasks)
    raise ValueError(
      f"EVAL_MODE='rank' needs a task with labels, found {names or 'no task'}:"
      " choose EVAL_MODE='generation'"
    )
  predict = functools.partial(
    predict_rows,
    batch_size=batch_size,
    feature_lengths=data.feature_lengths,
    buckets=data.buckets,
  )
  generate = greedy_predict_fn(model, data.feature_lengths)
  rank = jax.jit(functools.partial(decoding.score_labels, model=model))

  def texts(params: trainer.Params, task: task_data.EvalTask) -> Sequence[str]:
    if mode == "rank" and task.scoring.labels:
      candidates = label_tokens(task.scoring.labels, data.vocabulary)
      rank_batch = lambda params, batch: rank(
        params, batch["encoder_input_tokens"], candidates
      )
      scores = predict(task.examples, params, rank_batch)
      return [task.scoring.labels[i] for i in np.argmax(scores, axis=1)]
    tokens = predict(task.examples, params, generate)
    return [data.vocabulary.decode(row) for row in tokens.tolist()]

  return texts


def greedy_predict_fn(
  model: t5.Transformer, feature_lengths: Mapping[str, int]
) -> PredictFn:
  """Returns a compiled function `(params, batch) -> int32[B, U]`."""

  @jax.jit
  def predict(params: trainer.Params, inputs: Int[Array, "B T"]) -> Array:
    return decoding.greedy(
      params,
      inputs,
      model=model,
      max_decode_length=feature_lengths["targets"],
    )

  return lambda params, batch: predict(params, batch["encoder_input_tokens"])


def label_tokens(
  labels: Sequence[str], vocabulary: vocabulary_lib.Vocabulary
) -> Int[np.ndarray, "N U"]:
  """Tokenises labels as the targets of their task, with EOS.

  <extra_id_0> True   [[8191, 1036, 1]]
  """
  rows = []
  for label in labels:
    text = label.removeprefix(_SENTINEL)
    first = [] if text == label else [vocabulary.size - 1]
    tokens = [*first, *vocabulary.encode(text.lstrip()), vocabulary_lib.EOS]
    rows.append(np.array(tokens, np.int32))
  ragged = batching.Ragged.from_rows(rows)
  return ragged.padded(np.arange(len(rows)), max(map(len, rows)))


def predict_rows(
  examples: batching.Examples,
  params: trainer.Params,
  predict_fn: PredictFn,
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
  buckets: Sequence[int] = (),
) -> Shaped[np.ndarray, "N _"]:
  """Predicts every row once, in order, and nothing for those that fill up."""
  batches = batching.eval_batches(
    examples,
    batch_size=batch_size,
    feature_lengths=feature_lengths,
    buckets=buckets,
  )
  # Dispatched before the first is read, so that the device never waits.
  pairs = [(predict_fn(params, batch), rows) for batch, rows in batches]
  found = np.concatenate([jax.device_get(x)[: len(rows)] for x, rows in pairs])
  in_order = np.empty_like(found)
  in_order[np.concatenate([rows for _, rows in pairs])] = found
  return in_order


def score(
  task: task_data.EvalTask, predictions: Sequence[str]
) -> dict[str, float]:
  """Computes the metrics of a task from predicted texts.

  Predictions and targets go through the task's post-processor, with the row
  that they belong to, as in seqio's evaluator. Values that are not numbers
  (texts to log) are left out.
  """
  golds = [row["targets_pretokenized"].decode() for row in task.rows]
  targets, processed = (
    [
      task.scoring.postprocess_fn(text, example=row, is_target=is_target)
      for text, row in zip(texts, task.rows, strict=True)
    ]
    for texts, is_target in ((golds, True), (predictions, False))
  )
  scores: dict[str, float] = {}
  for metric_fn in task.scoring.metric_fns:
    scores |= _numbers(metric_fn(targets, processed))
  labels = task.scoring.labels
  if labels:
    scores |= label_statistics(golds, predictions, labels=labels)
  return scores


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  return {
    name: float(getattr(value, "value", value))
    for name, value in values.items()
    if isinstance(getattr(value, "value", value), int | float | np.number)
  }


def label_statistics(
  golds: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
  """Counts what is predicted where, by text.

  Args:
    golds: the targets.
    predictions: the predicted texts.
    labels: which of them are legal; the rest is counted as "other".

  Returns:
    `legal_labels`, in percent; `labels/gold/<label>` and
    `labels/predicted/<label>`, rows; `labels/confusion/<gold>/<predicted>`,
    rows.
  """
  columns = [*labels, "other"]
  found = [text if text in labels else "other" for text in predictions]
  cells = Counter(zip(golds, found, strict=True))
  gold_counts, predicted_counts = Counter(golds), Counter(found)
  num_legal = len(found) - predicted_counts["other"]
  statistics = {"legal_labels": 100 * num_legal / len(found)}
  for gold in sorted(gold_counts):
    statistics[f"labels/gold/{gold}"] = gold_counts[gold]
  for label in columns:
    statistics[f"labels/predicted/{label}"] = predicted_counts[label]
  for gold, label in itertools.product(sorted(gold_counts), columns):
    statistics[f"labels/confusion/{gold}/{label}"] = cells[gold, label]
  return {name: float(value) for name, value in statistics.items()}


def evaluate(
  data: task_data.TaskData, params: trainer.Params, predict_texts: TextsFn
) -> dict[str, float]:
  """Returns the metrics of every task as `task/metric -> value`.

  And as "score" what a checkpoint is selected by: the mean over the tasks that
  have default metrics, of the mean of these (Lester et al., 2021, sec. 3.1).
  """
  result: dict[str, float] = {}
  defaults = []
  for task in data.eval_tasks:
    if not task.scoring.metric_fns:
      continue
    scores = score(task, predict_texts(params, task))
    result |= {f"{task.name}/{name}": value for name, value in scores.items()}
    if task.scoring.default:
      defaults.append(np.mean([scores[x] for x in task.scoring.default]))
  return result | ({"score": float(np.mean(defaults))} if defaults else {})


def teacher_forced(
  data: task_data.TaskData,
  params: trainer.Params,
  loss_fn: Callable[[trainer.Params, batching.Batch], losses.LossSums],
  *,
  batch_size: int,
  num_batches: int,
) -> dict[str, float]:
  """Returns loss and accuracy per token on the first batches of every task.

  Named as in `evaluate`, with "loss" and "token_accuracy" for the metric.
  """
  result: dict[str, float] = {}
  for task in data.eval_tasks:
    batches = batching.eval_batches(
      task.examples.first(num_batches * batch_size),
      batch_size=batch_size,
      feature_lengths=data.feature_lengths,
      buckets=data.buckets,
    )
    sums = [loss_fn(params, batch) for batch, _ in batches]
    loss, _, num_correct, weights, num_real = np.sum(
      np.array(jax.device_get(sums), np.float64), axis=0
    )
    result[f"{task.name}/loss"] = loss / max(num_real, 1.0)
    result[f"{task.name}/token_accuracy"] = num_correct / max(weights, 1.0)
  return result
