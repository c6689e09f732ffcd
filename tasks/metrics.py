# SPDX-License-Identifier: Apache-2.0
"""Metrics of the tasks, in percent, over post-processed targets, predictions.

A metric takes one value a row of each and returns `name -> value`. Nothing here
needs TensorFlow.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import re
import string
import types
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from prompt_tuning.tasks import postprocessors

Values = Sequence[Any]
Scores = dict[str, float]
MetricFn = Callable[..., Scores]


def _sklearn() -> types.ModuleType:
  """Imports scikit-learn where it is needed: it takes a second."""
  from sklearn import metrics

  return metrics


def accuracy(targets: Values, predictions: Values) -> Scores:
  """Share of predictions that equal their target."""
  pairs = zip(targets, predictions, strict=True)
  return {"accuracy": 100 * _mean(bool(a == b) for a, b in pairs)}


def sequence_accuracy(targets: Values, predictions: Values) -> Scores:
  """Share of texts that equal their target, for free-text tasks."""
  hits = accuracy(targets, predictions)["accuracy"]
  return {"sequence_accuracy": hits}


def f1(targets: Values, predictions: Values) -> Scores:
  """F1 of label 1 among labels 0 and 1.

  A prediction outside the labels counts as the opposite of its target, so that
  it is always wrong.
  """
  legal = [
    prediction if prediction in (0, 1) else 1 - target
    for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {"f1": 100 * _sklearn().f1_score(targets, legal, zero_division=0)}


def cb_f1(targets: Values, predictions: Values) -> Scores:
  """Mean F1 of CB's three classes; a class that never occurs counts as 0."""
  mean = _sklearn().f1_score(
    targets, predictions, labels=range(3), average="macro", zero_division=0
  )
  return {"mean_3class_f1": 100 * mean}


def matthews(targets: Values, predictions: Values) -> Scores:
  """Matthews correlation, CoLA's metric."""
  value = _sklearn().matthews_corrcoef(targets, predictions)
  return {"matthews_corrcoef": 100 * value}


def pearson(targets: Values, predictions: Values) -> Scores:
  """Pearson correlation."""
  return {"pearson_corrcoef": 100 * _correlation(targets, predictions)}


def spearman(targets: Values, predictions: Values) -> Scores:
  """Spearman correlation; ties share their mean rank."""
  value = _correlation(_ranks(targets), _ranks(predictions))
  return {"spearman_corrcoef": 100 * value}


def multirc_f1(targets: Values, predictions: Values) -> Scores:
  """F1 over all answers, whatever question they belong to (F1a)."""
  return f1(
    [target["value"] for target in targets],
    [prediction["value"] for prediction in predictions],
  )


def multirc_exact_match(targets: Values, predictions: Values) -> Scores:
  """Share of questions with every answer judged rightly."""
  groups: dict[int, bool] = {}
  for target, prediction in zip(targets, predictions, strict=True):
    hit = target["value"] == prediction["value"]
    groups[target["group"]] = groups.get(target["group"], True) and hit
  return {"exact_match": 100 * _mean(groups.values())}


def squad(targets: Values, predictions: Values) -> Scores:
  """Exact match and token F1, the best over each row's accepted answers."""
  return _answer_scores(targets, predictions, punctuation="")


def trivia_qa(targets: Values, predictions: Values) -> Scores:
  """As `squad`, but punctuation separates words instead of vanishing."""
  return _answer_scores(targets, predictions, punctuation=" ")


def record(targets: Values, predictions: Values) -> Scores:
  """As `squad`, over the first row of each query.

  A query has one row for each of its answers; all rows share the inputs, so
  that their predictions agree.

  Raises:
    ValueError: if a query has no answer, as in a split without labels.
  """
  first: dict[Any, tuple[Any, Any]] = {}
  for target, prediction in zip(targets, predictions, strict=True):
    group = tuple(target["group"])
    first.setdefault(group, (target["value"], prediction["value"]))
  return squad(*zip(*first.values(), strict=True))


def on_values(
  targets: Sequence[postprocessors.Logged],
  predictions: Sequence[postprocessors.Logged],
  *,
  metric_fn: MetricFn,
) -> Scores:
  """Applies a metric to rows that carry their texts (`with_texts`)."""
  return metric_fn(
    [target.value for target in targets],
    [prediction.value for prediction in predictions],
  )


def examples(
  targets: Sequence[postprocessors.Logged],
  predictions: Sequence[postprocessors.Logged],
  *,
  num_examples: int = 8,
) -> str:
  """Shows the first rows as a Markdown list: inputs, target, prediction."""
  rows = zip(targets[:num_examples], predictions, strict=False)
  return "\n\n".join(
    f"inputs: {target.inputs}\n\n"
    f"target: {target.text}\n\nprediction: {prediction.text}\n\n---"
    for target, prediction in rows
  )


def normalize(text: str, *, punctuation: str = "") -> str:
  """Lowers a text, drops articles, and replaces ASCII punctuation."""
  table = str.maketrans(dict.fromkeys(string.punctuation, punctuation))
  words = text.lower().translate(table)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def _answer_scores(
  targets: Values, predictions: Values, *, punctuation: str
) -> Scores:
  em, token_f1 = [], []
  for answers, output in zip(targets, predictions, strict=True):
    if not answers:
      raise ValueError(
        "a row has no answer to compare with: evaluate a split with answers"
      )
    prediction = normalize(output, punctuation=punctuation)
    accepted = [normalize(text, punctuation=punctuation) for text in answers]
    em.append(prediction in accepted)
    token_f1.append(max(_token_f1(text, prediction) for text in accepted))
  return {"em": 100 * _mean(em), "f1": 100 * _mean(token_f1)}


def _token_f1(target: str, prediction: str) -> float:
  """Is 0 without a common token, even if both sides are empty."""
  wanted, found = Counter(target.split()), Counter(prediction.split())
  common = (wanted & found).total()
  return 2 * common / max(1, wanted.total() + found.total())


def _mean(values: Any) -> float:
  return float(np.mean(list(values)))


def _correlation(targets: ArrayLike, predictions: ArrayLike) -> float:
  return float(np.corrcoef(np.asarray(targets), np.asarray(predictions))[0, 1])


def _ranks(values: Values) -> np.ndarray:
  _, place, counts = np.unique(
    np.asarray(values), return_inverse=True, return_counts=True
  )
  return (np.cumsum(counts) - (counts - 1) / 2)[place]
