# SPDX-License-Identifier: Apache-2.0
"""What scores each task: post-processor, metrics, and its default metric.

The table is keyed by a task's stem (`labels.stem`), so that every variant of a
task is scored alike, and evaluation from a cache finds it without TensorFlow.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
from prompt_tuning.tasks import labels, metrics, postprocessors, rouge

from prompt_tuning.task_data import Scoring


def _classes(
  stem: str, *metric_fns: metrics.MetricFn, default: tuple[str, ...] = ()
) -> Scoring:
  postprocess_fn = functools.partial(
    postprocessors.label_id, labels=labels.LABELS[stem]
  )
  return Scoring(postprocess_fn, metric_fns, default, labels.LABELS[stem])


def _transferred(*, trained: str, evaluated: str) -> Scoring:
  """Scores a model that answers `evaluated` in the labels of `trained`."""
  translation = dict(
    zip(labels.LABELS[trained], labels.LABELS[evaluated], strict=True)
  )
  postprocess_fn = functools.partial(
    postprocessors.translated_label_id,
    labels=labels.LABELS[evaluated],
    translation=translation,
  )
  return Scoring(
    postprocess_fn,
    (metrics.f1, metrics.accuracy),
    ("f1", "accuracy"),
    labels.LABELS[trained],
  )


_ACCURACY = {"default": ("accuracy",)}
_PARAPHRASE = {"default": ("f1", "accuracy")}
# Lester et al. (2021), table 1, reports F1.
_ANSWERS = Scoring(postprocessors.answers, (metrics.squad,), ("f1",))
_SUMMARY = Scoring(postprocessors.identity, (rouge.rouge,), ("rougeLsum",))
_MRQA = (
  "bio_asq",
  "drop",
  "duo_rc",
  "hotpot_qa",
  "natural_questions",
  "news_qa",
  "race",
  "relation_extraction",
  "search_qa",
  "textbook_qa",
  "trivia_qa",
)

SCORINGS: Mapping[str, Scoring] = {
  "glue_ax": _classes("glue_ax"),
  "glue_cola": _classes(
    "glue_cola", metrics.matthews, default=("matthews_corrcoef",)
  ),
  **{
    name: _classes(name, metrics.accuracy, **_ACCURACY)
    for name in (
      "glue_mnli",
      "glue_mnli_matched",
      "glue_mnli_mismatched",
      "glue_qnli",
      "glue_rte",
      "glue_sst2",
      "glue_wnli",
      "super_glue_boolq",
      "super_glue_copa",
      "super_glue_rte",
      "super_glue_wic",
      "demo_sentiment",
    )
  },
  "glue_mrpc": _classes(
    "glue_mrpc", metrics.f1, metrics.accuracy, **_PARAPHRASE
  ),
  "glue_qqp": _classes("glue_qqp", metrics.f1, metrics.accuracy, **_PARAPHRASE),
  "glue_mrpc_from_qqp": _transferred(trained="glue_qqp", evaluated="glue_mrpc"),
  "glue_qqp_from_mrpc": _transferred(trained="glue_mrpc", evaluated="glue_qqp"),
  "glue_stsb": Scoring(
    postprocessors.number,
    (metrics.pearson, metrics.spearman),
    ("pearson_corrcoef", "spearman_corrcoef"),
  ),
  "super_glue_axb": _classes("super_glue_axb"),
  "super_glue_axg": _classes("super_glue_axg"),
  "super_glue_cb": _classes(
    "super_glue_cb",
    metrics.cb_f1,
    metrics.accuracy,
    default=("mean_3class_f1", "accuracy"),
  ),
  "super_glue_multirc": Scoring(
    functools.partial(
      postprocessors.multirc, labels=labels.LABELS["super_glue_multirc"]
    ),
    (metrics.multirc_f1, metrics.multirc_exact_match),
    ("f1", "exact_match"),
    labels.LABELS["super_glue_multirc"],
  ),
  "super_glue_record": Scoring(
    postprocessors.record, (metrics.record,), ("em", "f1")
  ),
  "super_glue_wsc": Scoring(
    postprocessors.wsc, (metrics.accuracy,), ("accuracy",)
  ),
  "dpr": Scoring(postprocessors.identity, (metrics.accuracy,), ("accuracy",)),
  "squad": _ANSWERS,
  **{f"mrqa_{name}": _ANSWERS for name in _MRQA},
  "xsum": _SUMMARY,
  "cnn_dailymail": _SUMMARY,
}

# The eight tasks of the SuperGLUE average (Wang et al., 2019, table 3).
SUPER_GLUE = tuple(
  f"super_glue_{name}"
  for name in ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]
)


def scoring(task_name: str) -> Scoring:
  """Looks up how a registered task is scored, by its name or stem.

  Values are bare, without the texts that the suffix `_examples` adds in seqio.

  Raises:
    ValueError: if the task has no entry.
  """
  stem = labels.stem(task_name)
  if stem not in SCORINGS:
    raise ValueError(
      f"task {task_name!r} has no scoring: known are {', '.join(SCORINGS)}"
    )
  found = SCORINGS[stem]
  is_behind = task_name.startswith("sentinel_")
  return behind_sentinel(found) if is_behind else found


def own_data(task_name: str, *, labels: Sequence[str] = ()) -> Scoring:
  """Returns the scoring of a task of files (`files.py`), whatever its name.

  Args:
    task_name: not used; here so that it takes the place of `scoring`.
    labels: the texts of the labels, which are scored by accuracy; without, as
      the answers of SQuAD.
  """
  del task_name
  if not labels:
    return _ANSWERS
  postprocess_fn = functools.partial(
    postprocessors.label_id, labels=tuple(labels)
  )
  return Scoring(
    postprocess_fn, (metrics.accuracy,), ("accuracy",), tuple(labels)
  )


def find_scoring(task_name: str) -> Scoring | None:
  """Looks up how a task is scored; None for one that is not known here."""
  known = labels.stem(task_name) in SCORINGS
  return scoring(task_name) if known else None


def behind_sentinel(scoring: Scoring) -> Scoring:
  """Returns the scoring of a task whose targets start with a sentinel."""
  postprocess_fn = functools.partial(
    postprocessors.behind_sentinel, postprocess_fn=scoring.postprocess_fn
  )
  return dataclasses.replace(
    scoring,
    postprocess_fn=postprocess_fn,
    labels=tuple(f"<extra_id_0> {label}" for label in scoring.labels),
  )


def default_score(task_name: str, values: Mapping[str, float]) -> float:
  """Reduces a task's metric values to the one that is selected by.

  Args:
    task_name: name of the task, or its stem.
    values: metric name -> value; more than the default ones may be there.

  Raises:
    ValueError: if the task has no metric, or one of its values is missing.
  """
  names = scoring(task_name).default
  if not names:
    raise ValueError(f"task {task_name!r} has no metric: no public labels")
  _require(names, values, what=f"metrics of {task_name!r}")
  return float(np.mean([values[name] for name in names]))


def super_glue_average(results: Mapping[str, Mapping[str, float]]) -> float:
  """Averages the default metrics of the eight SuperGLUE tasks.

  Args:
    results: name or stem of the task -> metric name -> value, in percent.

  Raises:
    ValueError: if one of the eight tasks is missing.
  """
  by_stem = {labels.stem(name): values for name, values in results.items()}
  _require(SUPER_GLUE, by_stem, what="results of the SuperGLUE average")
  return float(
    np.mean([default_score(name, by_stem[name]) for name in SUPER_GLUE])
  )


def _require(
  wanted: Iterable[str], found: Mapping[str, Any], *, what: str
) -> None:
  missing = [name for name in wanted if name not in found]
  if missing:
    raise ValueError(
      f"{what} lack {', '.join(missing)}: found {', '.join(found) or 'none'}"
    )
