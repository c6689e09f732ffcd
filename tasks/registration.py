# SPDX-License-Identifier: Apache-2.0
"""How the tasks of this package are put into seqio's registry."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from prompt_tuning.tasks import (
  metrics,
  postprocessors,
  preprocessors,
  scores,
  vocabularies,
)
import seqio

Preprocessor = Callable[..., Any]

# The task's name in the inputs; nothing; a sentinel in front of the inputs that
# tells the task; a sentinel in front of the targets (Lester et al., 2021,
# sec. 3.2, "Span Corruption + Sentinel").
VARIANTS = ("", "taskless_", "task_index_", "sentinel_")
SUFFIXES = ("", "_examples")


def output_features() -> dict[str, seqio.Feature]:
  """Returns inputs and targets in T5's vocabulary, both ended by EOS."""
  vocabulary = vocabularies.t5()
  return {
    "inputs": seqio.Feature(vocabulary, add_eos=True, required=False),
    "targets": seqio.Feature(vocabulary, add_eos=True),
  }


def add(
  name: str,
  source: seqio.DataSource,
  to_text: Sequence[Preprocessor],
  *,
  scoring: scores.Scoring | None,
  sentinel: tuple[str, int] | None = None,
) -> None:
  """Registers one task.

  Args:
    name: its name. With the suffix `_examples`, texts are logged beside the
      metrics.
    source: where the rows come from.
    to_text: row preprocessors that end with `inputs` and `targets` as text.
    scoring: post-processor and metrics; None for a task that only trains.
    sentinel: feature and number of a sentinel that goes first in it, if any.
  """
  tokenize: list[Preprocessor] = [seqio.preprocessors.tokenize]
  if sentinel:
    feature, index = sentinel
    tokenize.append(
      functools.partial(
        preprocessors.prepend_sentinel, feature=feature, index=index
      )
    )
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      *to_text,
      *tokenize,
      seqio.CacheDatasetPlaceholder(),
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=output_features(),
    **_seqio_scoring(scoring, log_texts=name.endswith("_examples")),
  )


def add_variants(
  name: str,
  source: seqio.DataSource,
  to_text: Sequence[Preprocessor],
  *,
  scoring: scores.Scoring | None,
  task_index: int,
) -> None:
  """Registers a task in all `VARIANTS`, each with and without `_examples`."""
  nameless = [*to_text, preprocessors.remove_task_name]
  for suffix in SUFFIXES:
    full_name = f"{name}{suffix}"
    add(full_name, source, to_text, scoring=scoring)
    add(f"taskless_{full_name}", source, nameless, scoring=scoring)
    add(
      f"task_index_{full_name}",
      source,
      nameless,
      scoring=scoring,
      sentinel=("inputs", task_index),
    )
    add(
      f"sentinel_{full_name}",
      source,
      nameless,
      scoring=scoring and scores.behind_sentinel(scoring),
      sentinel=("targets", 0),
    )


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
  """Registers a mixture of `task name -> rate`."""
  seqio.MixtureRegistry.add(name, list(rates.items()))


def _seqio_scoring(
  scoring: scores.Scoring | None, *, log_texts: bool
) -> dict[str, Any]:
  """Returns `postprocess_fn` and `metric_fns` of a seqio task."""
  if scoring is None:
    return {"postprocess_fn": None, "metric_fns": []}
  if not log_texts:
    return {
      "postprocess_fn": scoring.postprocess_fn,
      "metric_fns": list(scoring.metric_fns),
    }
  return {
    "postprocess_fn": functools.partial(
      postprocessors.with_texts, postprocess_fn=scoring.postprocess_fn
    ),
    "metric_fns": [
      functools.partial(metrics.on_values, metric_fn=metric_fn)
      for metric_fn in scoring.metric_fns
    ]
    + [_log_examples],
  }


def _log_examples(
  targets: Sequence[postprocessors.Logged],
  predictions: Sequence[postprocessors.Logged],
) -> dict[str, seqio.metrics.Text]:
  """Hands a few rows to seqio's loggers as text."""
  text = metrics.examples(targets, predictions)
  return {"examples": seqio.metrics.Text(text)}
