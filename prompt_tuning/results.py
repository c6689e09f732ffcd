# SPDX-License-Identifier: Apache-2.0
"""The scores of several trials: the best of each, their mean and deviation.

As in the paper, a trial stands for itself with its best checkpoint by the
task's default metric, and trials that differ by nothing but their seed are
reported as mean and standard deviation (that of a sample, over n - 1).
"""

from collections.abc import Mapping, Sequence
import json
from typing import NamedTuple

from etils import epath
import numpy as np

from prompt_tuning import atomic_files, loop, trials


class Scores(NamedTuple):
  """The metrics of a trial at some step."""

  trial: trials.Trial
  metrics: Mapping[str, float]


class Result(NamedTuple):
  """What a trial has come to.

  Attributes:
    trial: which.
    step: of its best evaluation, the first of equals; of its last one where
      the task has no default metric.
    metrics: of that evaluation; empty without one.
    stopped_at: see `trials.States`; -1 for one that has not.
  """

  trial: trials.Trial
  step: int
  metrics: Mapping[str, float]
  stopped_at: int


class Spread(NamedTuple):
  """Mean and standard deviation of a metric over the seeds of a group.

  Attributes:
    mean: of the trials that have not stopped.
    sd: of a sample, over n - 1; None of one trial.
    num_trials: how many they are.
  """

  mean: float
  sd: float | None
  num_trials: int


Spreads = dict[str, dict[str, Spread]]


def spreads(found: Sequence[Scores]) -> Spreads:
  """Returns the spread of each metric by group; counts of labels have none."""
  groups: dict[str, list[Mapping[str, float]]] = {}
  for trial, metrics in found:
    groups.setdefault(trial.group, []).append(metrics)
  return {
    group: {
      name: _spread([metrics[name] for metrics in of_trials])
      for name in of_trials[0]
      if loop.is_shown(name)
    }
    for group, of_trials in groups.items()
  }


def _spread(values: Sequence[float]) -> Spread:
  sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return Spread(float(np.mean(values)), sd, len(values))


def flatten(groups: Spreads) -> dict[str, float]:
  """Names all for a log: `[group/]mean/metric` and `[group/]sd/metric`."""
  result = {}
  for group, metrics in groups.items():
    prefix = f"{group}/" if group else ""
    for name, (mean, sd, _) in metrics.items():
      result[f"{prefix}mean/{name}"] = mean
      if sd is not None:
        result[f"{prefix}sd/{name}"] = sd
  return result


def text(found: Sequence[Scores]) -> str:
  """Writes an evaluation for the screen: a line a trial, and a mean a group."""
  lines = [
    f"{trial.name}: {loop.format_scores(metrics)}" for trial, metrics in found
  ]
  if len(lines) == 1:
    return lines[0].removeprefix(": ")
  for group, metrics in spreads(found).items():
    shown = [
      f"{name} {mean:.4g} +- {sd:.4g}"
      for name, (mean, sd, _) in metrics.items()
      if sd is not None
    ]
    if shown:
      lines.append(f"{group} mean: ".lstrip() + ", ".join(shown))
  return "\n  ".join([f"{len(found)} trials", *lines])


def before_and_after(
  before: Mapping[str, float], after: Mapping[str, float]
) -> str:
  """Writes each metric before and after training."""
  names = [name for name in after if loop.is_shown(name)]
  width = max(map(len, names))
  return "\n".join(
    f"{name:<{width}}  before {before[name]:8.4g}  after {after[name]:8.4g}"
    for name in names
  )


def read(path: epath.Path, trial: trials.Trial, *, stopped_at: int) -> Result:
  """Reads what a trial has come to from its log."""
  lines = map(json.loads, path.read_text().splitlines())
  evals = [line for line in lines if line["split"] == "eval"]
  if not evals:
    return Result(trial, -1, {}, stopped_at)
  best = evals[-1]
  if "score" in best:
    best = max(evals, key=lambda line: line["score"])
  metrics = {x: best[x] for x in best if x not in ("step", "split")}
  return Result(trial, best["step"], metrics, stopped_at)


def _final_spreads(found: Sequence[Result]) -> Spreads:
  """Returns the spreads over the trials that have come to the end."""
  return spreads(
    [Scores(x.trial, x.metrics) for x in found if x.stopped_at < 0]
  )


def write(model_dir: str, found: Sequence[Result]) -> None:
  """Writes `results.json`: all trials and, by group, all spreads."""
  content = {
    "trials": {
      x.trial.name: {
        "group": x.trial.group,
        "seed": x.trial.seed,
        "step": x.step,
        "stopped_at": None if x.stopped_at < 0 else x.stopped_at,
        "metrics": x.metrics,
      }
      for x in found
    },
    "groups": {
      group: {name: spread._asdict() for name, spread in metrics.items()}
      for group, metrics in _final_spreads(found).items()
    },
  }
  path = epath.Path(model_dir) / "results.json"
  atomic_files.write(path, json.dumps(content, indent=2))


def table(found: Sequence[Result]) -> str:
  """Writes the score of every trial, and mean and deviation by group.

  seed_0  score 81.5 at step 400
  seed_1  stopped at step 7, left out
  seed_2  score 82.5 at step 200
  mean 82 +- 0.7071 (sample s.d. of 2 trials)
  """
  width = max(len(x.trial.name) for x in found)
  rows = [f"{x.trial.name:<{width}}  {_outcome(x)}" for x in found]
  for group, metrics in _final_spreads(found).items():
    score = metrics.get("score")
    if score is not None and score.sd is not None:
      rows.append(
        f"{group}{': ' if group else ''}mean {score.mean:.4g} +- {score.sd:.4g}"
        f" (sample s.d. of {score.num_trials} trials)"
      )
  return "\n".join(rows)


def _outcome(result: Result) -> str:
  if result.stopped_at >= 0:
    return f"stopped at step {result.stopped_at}, left out"
  if "score" in result.metrics:
    return f"score {result.metrics['score']:.4g} at step {result.step}"
  return f"no score; last evaluated at step {result.step}"
