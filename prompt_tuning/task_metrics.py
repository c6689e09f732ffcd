# SPDX-License-Identifier: Apache-2.0
"""The metrics of tasks, over texts that were predicted."""

from collections import Counter
from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from prompt_tuning import degenerate_texts, task_data


def score_all(
  tasks: Sequence[task_data.EvalTask], texts: Sequence[Sequence[str]]
) -> dict[str, float]:
  """Returns the metrics of every task as `task/metric -> value`.

  And as "score" what a checkpoint is selected by: the mean over the tasks that
  have default metrics, of the mean of these (Lester et al., 2021, sec. 3.1).

  Args:
    tasks: with or without default metrics.
    texts: the predictions of each.
  """
  result: dict[str, float] = {}
  defaults = []
  for task, predictions in zip(tasks, texts, strict=True):
    scores = score(task, predictions)
    result |= {f"{task.name}/{name}": value for name, value in scores.items()}
    if task.scoring.default:
      defaults.append(np.mean([scores[x] for x in task.scoring.default]))
  return result | ({"score": float(np.mean(defaults))} if defaults else {})


def score(
  task: task_data.EvalTask, predictions: Sequence[str]
) -> dict[str, float]:
  """Computes the metrics of a task from predicted texts.

  Predictions and targets go through the task's post-processor, with the row
  that they belong to, as in seqio's evaluator. Values that are not numbers
  (texts to log) are left out. A task without metrics and labels has none.
  """
  if not task.scoring.metric_fns and not task.scoring.labels:
    return {}
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
    sources = [row.get("inputs_pretokenized", b"") for row in task.rows]
    scores |= degenerate_texts.shares(
      [text.decode() for text in sources], predictions, labels=labels
    )
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
