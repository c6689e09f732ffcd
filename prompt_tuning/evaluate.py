# SPDX-License-Identifier: Apache-2.0
"""The metrics of the tasks over the predictions of a model."""

from collections.abc import Callable, Mapping
import itertools
from typing import Any

import jax
from jaxtyping import Array, Int
import numpy as np

from prompt_tuning import batching, decoding, losses, t5, task_data, trainer

PredictFn = Callable[[trainer.Params, batching.Batch], Array]


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


def predict_rows(
  examples: batching.Examples,
  params: trainer.Params,
  predict_fn: PredictFn,
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
) -> Int[np.ndarray, "N U"]:
  """Predicts every row once, in order, and nothing for those that fill up."""
  batches = batching.eval_batches(
    examples, batch_size=batch_size, feature_lengths=feature_lengths
  )
  # Dispatched before the first is read, so that the device never waits.
  predictions = [(predict_fn(params, batch), n) for batch, n in batches]
  return np.concatenate([jax.device_get(x)[:n] for x, n in predictions])


def score(
  task: task_data.EvalTask,
  predictions: Int[np.ndarray, "N U"],
  vocabulary: task_data.Vocabulary,
) -> dict[str, float]:
  """Computes the metrics of a task from predicted tokens.

  Predictions and targets go through the task's post-processor, with the row
  that they belong to, as in seqio's evaluator. Values that are not numbers
  (texts to log) are left out.
  """
  targets = [
    task.postprocess_fn(
      row["targets_pretokenized"].decode(), example=row, is_target=True
    )
    for row in task.rows
  ]
  processed = [
    task.postprocess_fn(
      vocabulary.decode(tokens.tolist()), example=row, is_target=False
    )
    for tokens, row in zip(predictions, task.rows, strict=True)
  ]
  scores: dict[str, float] = {}
  for metric_fn in task.metric_fns:
    scores |= _numbers(metric_fn(targets, processed))
  return scores


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  return {
    name: float(getattr(value, "value", value))
    for name, value in values.items()
    if isinstance(getattr(value, "value", value), int | float | np.number)
  }


def evaluate(
  data: task_data.TaskData,
  params: trainer.Params,
  predict_fn: PredictFn,
  *,
  batch_size: int,
) -> dict[str, float]:
  """Returns the metrics of every task as `task/metric -> value`."""
  result: dict[str, float] = {}
  for task in data.eval_tasks:
    predictions = predict_rows(
      task.examples,
      params,
      predict_fn,
      batch_size=batch_size,
      feature_lengths=data.feature_lengths,
    )
    scores = score(task, predictions, data.vocabulary)
    result |= {f"{task.name}/{name}": value for name, value in scores.items()}
  return result


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
      task.examples,
      batch_size=batch_size,
      feature_lengths=data.feature_lengths,
    )
    sums = [
      loss_fn(params, batch)
      for batch, _ in itertools.islice(batches, num_batches)
    ]
    loss, _, num_correct, weights, num_real = np.sum(
      np.array(jax.device_get(sums), np.float64), axis=0
    )
    result[f"{task.name}/loss"] = loss / max(num_real, 1.0)
    result[f"{task.name}/token_accuracy"] = num_correct / max(weights, 1.0)
  return result
