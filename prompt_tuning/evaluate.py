# SPDX-License-Identifier: Apache-2.0
"""What a model predicts for the rows of tasks, and their metrics.

A prediction is a text: the one that the model generates or, in rank
classification, the label that it finds likeliest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import NamedTuple, TypeVar

import jax
from jaxtyping import Float, Int
import numpy as np
import tqdm

from prompt_tuning import (
  batching,
  ensembles,
  losses,
  partitioning,
  t5,
  task_data,
  task_metrics,
  trainer,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

# The first sentinel has the last id; the tasks `sentinel_...` have it in front.
_SENTINEL = "<extra_id_0>"

# An array with one row per input, or a tuple of them.
_Results = TypeVar("_Results")


class Predictions(NamedTuple):
  """What a model answers to the rows of a task, in order.

  Attributes:
    texts: the answers.
    scores: their log-probabilities.
    label_scores: in rank classification those of every label; None if texts
      are generated.
  """

  texts: Sequence[str]
  scores: Float[np.ndarray, " R"]
  label_scores: Float[np.ndarray, "R N"] | None


# All parameters and a task -> the predictions with each of their prompts.
PredictTaskFn = Callable[
  [trainer.Params, task_data.EvalTask], Sequence[Predictions]
]
# All parameters, with one prompt at most, and a task -> its predicted texts.
TextsFn = Callable[[trainer.Params, task_data.EvalTask], Sequence[str]]


def texts_fn(
  model: t5.Transformer,
  data: task_data.TaskData,
  *,
  mode: str,
  batch_size: int,
) -> TextsFn:
  """Returns what predicts a text for every row of a task.

  See `predict_task_fn`.
  """
  predict_task = predict_task_fn(model, data, mode=mode, batch_size=batch_size)
  return lambda params, task: predict_task(params, task)[0].texts


def predict_task_fn(
  model: t5.Transformer,
  data: task_data.TaskData,
  *,
  mode: str,
  batch_size: int,
) -> PredictTaskFn:
  """Returns what predicts every row of a task, under all prompts in one pass.

  Args:
    model: the network.
    data: the tasks.
    mode: "generation", or "rank" for the likeliest label; then a task without
      labels is generated all the same.
    batch_size: most rows that the network reads at once; see `num_inputs`.

  Raises:
    ValueError: for "rank" if no task has labels, or some that the vocabulary
      cannot write; see `label_tokens`.
  """
  candidates = _candidates(data) if mode == "rank" else {}
  rank = jax.jit(functools.partial(ensembles.score_labels, model=model))
  generate = jax.jit(
    functools.partial(
      ensembles.generate,
      model=model,
      max_decode_length=data.feature_lengths["targets"],
    )
  )

  def predict_task(
    params: trainer.Params, task: task_data.EvalTask
  ) -> Sequence[Predictions]:
    num_prompts = ensembles.num_prompts(params)
    predict = functools.partial(
      predict_rows,
      task.examples,
      batch_size=num_inputs(batch_size, num_prompts),
      feature_lengths=data.feature_lengths,
      buckets=data.buckets,
      title=task.name,
    )
    labels = task.scoring.labels
    if candidates and labels:
      own = candidates[task.name]
      scores = predict(
        lambda batch: rank(params, batch["encoder_input_tokens"], own)
      )
      return [_ranked(labels, scores[:, i]) for i in range(num_prompts)]
    tokens, scores = predict(
      lambda batch: generate(params, batch["encoder_input_tokens"])
    )
    texts = [
      [data.vocabulary.decode(row) for row in tokens[:, i].tolist()]
      for i in range(num_prompts)
    ]
    return [Predictions(x, scores[:, i], None) for i, x in enumerate(texts)]

  return predict_task


def _candidates(
  data: task_data.TaskData,
) -> dict[str, Int[np.ndarray, "N U"]]:
  """Tokenises the labels of every task that has some."""
  found = {
    task.name: label_tokens(task.scoring.labels, data.vocabulary)
    for task in data.eval_tasks
    if task.scoring.labels
  }
  if not found:
    names = ", ".join(task.name for task in data.eval_tasks)
    raise ValueError(
      f"EVAL_MODE='rank' needs a task with labels, found {names or 'no task'}:"
      " choose EVAL_MODE='generation'"
    )
  return found


def num_inputs(batch_size: int, num_prompts: int) -> int:
  """Returns how many inputs a batch has, equally many for each device.

  Refuses a batch of fewer rows, inputs times prompts, than that takes.
  """
  num_parts = partitioning.num_row_parts()
  if batch_size < num_prompts * num_parts:
    raise ValueError(
      f"BATCH_SIZE={batch_size} must be at least {num_prompts * num_parts}:"
      f" each input is a row for each of {num_prompts} prompts, and each of"
      f" {num_parts} parts of the mesh axis data has one input or more"
    )
  return batch_size // num_prompts // num_parts * num_parts


def _ranked(
  labels: Sequence[str], label_scores: Float[np.ndarray, "R N"]
) -> Predictions:
  """Predicts the label with the highest score; the first of several."""
  best = np.argmax(label_scores, axis=1)
  texts = [labels[i] for i in best]
  return Predictions(texts, np.max(label_scores, axis=1), label_scores)


def check_vocabulary(
  vocabulary: vocabulary_lib.Vocabulary, model: t5.Transformer
) -> None:
  """Refuses a vocabulary with ids beyond the model's embedding table."""
  size = model.config.vocab_size
  if vocabulary.size > size:
    raise ValueError(
      f"the vocabulary has {vocabulary.size} ids, the model's embedding table"
      f" {size} rows: choose VOCABULARY or the model to fit"
    )


def label_tokens(
  labels: Sequence[str], vocabulary: vocabulary_lib.Vocabulary
) -> Int[np.ndarray, "N U"]:
  """Tokenises labels as the targets of their task, with EOS.

  <extra_id_0> True   [[8191, 1036, 1]]

  Raises:
    ValueError: if a label begins with a sentinel and the vocabulary has none.
  """
  last = vocabulary.decode([vocabulary.size - 1]).strip()
  if vocabulary.model and last != _SENTINEL:
    for label in labels:
      if label.startswith(_SENTINEL):
        raise ValueError(
          f"the label {label!r} begins with a sentinel, but the last of the"
          f" {vocabulary.size} ids is {last!r}: open the vocabulary with its"
          " sentinels (extra_ids=100)"
        )
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
  predict_fn: Callable[[partitioning.Batch], _Results],
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
  buckets: Sequence[int] = (),
  title: str = "rows",
) -> _Results:
  """Predicts every row once, in order, and nothing for those that fill up.

  Args:
    examples: the rows.
    predict_fn: a batch -> arrays of the device with a row for each of its rows.
    batch_size: see `batching.eval_batches`, as for the next two.
    feature_lengths: how long the rows are.
    buckets: how long those of a batch may be.
    title: of the progress bar.

  Returns:
    The arrays, with all rows.
  """
  batches = batching.eval_batches(
    examples,
    batch_size=batch_size,
    feature_lengths=feature_lengths,
    buckets=buckets,
  )
  num_rows = examples.inputs.num_rows
  found, order = [], []
  with tqdm.tqdm(
    desc=title, total=num_rows, unit="row", disable=None, leave=False
  ) as bar:
    for results, rows in _one_ahead(batches, predict_fn):
      found.append(results)
      order.append(rows)
      bar.update(len(rows))
  # The rows that fill the last batch up stand behind all others.
  back = np.argsort(np.concatenate(order))
  return jax.tree.map(lambda *x: np.concatenate(x)[back], *found)


def _one_ahead(
  batches: Iterator[tuple[batching.Batch, Int[np.ndarray, " R"]]],
  predict_fn: Callable[[partitioning.Batch], _Results],
) -> Iterator[tuple[_Results, Int[np.ndarray, " R"]]]:
  """Yields what is predicted, on the host, with the numbers of the rows.

  The next batch is dispatched before one is read: the device never waits.
  """
  running = (
    (predict_fn(partitioning.place_batch(batch)), rows)
    for batch, rows in batches
  )
  previous = next(running)
  for current in running:
    yield jax.device_get(partitioning.gather(previous[0])), previous[1]
    previous = current
  yield jax.device_get(partitioning.gather(previous[0])), previous[1]


def evaluate(
  data: task_data.TaskData, params: trainer.Params, predict_texts: TextsFn
) -> dict[str, float]:
  """Returns the metrics of every task that has some."""
  tasks = [task for task in data.eval_tasks if task.scoring.metric_fns]
  return task_metrics.score_all(
    tasks, [predict_texts(params, task) for task in tasks]
  )


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
