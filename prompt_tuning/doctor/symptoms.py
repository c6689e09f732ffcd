# SPDX-License-Identifier: Apache-2.0
"""What is remarkable in a run, whether it has learned or not."""

from collections.abc import Callable, Sequence
import math

import numpy as np

from prompt_tuning.doctor import evidence
from prompt_tuning.doctor.evidence import Finding


def _skewed(run: evidence.Run) -> Finding | None:
  """Labels that are predicted more often than they occur."""
  for x in evidence.answers(evidence.best(run)):
    labels = sorted(x.gold.keys() | x.predicted.keys())
    gaps = [x.predicted.get(k, 0.0) - x.gold.get(k, 0.0) for k in labels]
    moved = 100 * sum(max(gap, 0.0) for gap in gaps) / x.num_rows
    is_varied = max(x.predicted.values()) < 0.95 * x.num_rows
    if moved > 20 and is_varied and x.legal > 50:
      return Finding(
        "skewed labels",
        f"{x.task}: {moved:.0f}% of the outputs would have to change for each"
        " label to be predicted as often as it occurs",
        "balance the training rows, or evaluate with EVAL_MODE='rank'",
      )
  return None


def _illegal(run: evidence.Run) -> Finding | None:
  """Outputs that are no label."""
  for x in evidence.answers(evidence.best(run)):
    if x.legal < 95:
      kinds = ", ".join(f"{k} {v:.0f}%" for k, v in x.outputs.items())
      return Finding(
        "illegal labels",
        f"{x.task}: {100 - x.legal:.0f}% of the outputs are no label"
        f"{f' ({kinds})' if kinds else ''}",
        "evaluate with EVAL_MODE='rank', or train longer",
      )
  return None


def _trend(run: evidence.Run) -> Finding | None:
  """A loss that still falls at the end, or no longer does."""
  quarter = len(run.train) // 4
  if quarter < 2:
    return None
  values = np.array([evidence.number(x, evidence.LOSS) for x in run.train])
  before, after = values[-2 * quarter : -quarter], values[-quarter:]
  change = before.mean() - after.mean()
  # How far the means of two such quarters differ by chance.
  noise = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / quarter)
  since = evidence.step(run.train[-quarter - 1])
  if change > max(0.05 * before.mean(), evidence.ERRORS * noise):
    return Finding(
      "still falling",
      f"the training loss fell from {before.mean():.3g} to {after.mean():.3g} a"
      f" token after step {since}",
      "train longer: raise TRAIN_STEPS",
    )
  if change < 0.01 * before.mean():
    return Finding(
      "plateau",
      f"the training loss is {after.mean():.3g} a token after step {since} and"
      f" was {before.mean():.3g} before",
      "more steps alone will not help",
    )
  return None


def _past_best(run: evidence.Run) -> Finding | None:
  """A run that was better before its end."""
  for x, last in zip(
    evidence.answers(evidence.best(run)),
    evidence.answers(run.evals[-1]),
    strict=False,
  ):
    if x.accuracy - last.accuracy > evidence.ERRORS * x.error:
      return Finding(
        "past its best",
        f"{x.task}: accuracy {x.accuracy:.1f}% at step {x.step},"
        f" {last.accuracy:.1f}% at step {last.step}",
        "use the prompt in best/; train fewer steps or lower the learning rate",
      )
  return None


def _clipped(run: evidence.Run) -> Finding | None:
  """Updates that are clipped to the end: the rate alone sets their size."""
  quarter = run.train[-max(len(run.train) // 4, 1) :]
  share = float(np.mean([evidence.number(x, "clipped") for x in quarter]))
  if not share > 0.9:
    return None
  return Finding(
    "clipped updates",
    f"{share:.0%} of the last updates are clipped to the learning rate",
    "let the learning rate fall at the end (optim.learning_rate_schedule)",
  )


SYMPTOMS: Sequence[Callable[[evidence.Run], Finding | None]] = (
  _illegal,
  _skewed,
  _trend,
  _past_best,
  _clipped,
)
