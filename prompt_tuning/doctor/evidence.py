# SPDX-License-Identifier: Apache-2.0
"""What the lines of a `metrics.jsonl` say of a run.

A run has learned if it answers better than whoever always gives the most
frequent label.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

Line = Mapping[str, int | float | str]

# The training loss per token, T5X's name.
LOSS = "loss_per_nonpadding_target_token"
# Standard errors above the most frequent label's share that are no accident.
ERRORS = 2.0


class Run(NamedTuple):
  """The lines of a run, in order.

  Attributes:
    train: averages over the steps since the line before.
    evals: evaluations.
    base: what `base_probe` has found; empty if the run has not asked.
    end: the step that it ends at, or has ended at.
  """

  train: Sequence[Line]
  evals: Sequence[Line]
  base: Line
  end: int


class Finding(NamedTuple):
  """Something to know of a run.

  Attributes:
    name: of the cause or symptom.
    evidence: the numbers that say so.
    advice: what to change.
  """

  name: str
  evidence: str
  advice: str


@dataclasses.dataclass(frozen=True)
class Answers:
  """How a task with labels was answered at one evaluation.

  Attributes:
    task: its name.
    step: of the evaluation.
    gold: label -> rows.
    predicted: label, or "other" -> rows.
    num_correct: rows.
    outputs: `degenerate_texts.KINDS` -> percent, if the run has logged them.
    token_accuracy: share of target tokens that were right under teacher
      forcing; NaN if it was not logged.
  """

  task: str
  step: int
  gold: Mapping[str, float]
  predicted: Mapping[str, float]
  num_correct: float
  outputs: Mapping[str, float]
  token_accuracy: float

  @property
  def num_rows(self) -> float:
    """Number of rows."""
    return sum(self.gold.values())

  @property
  def accuracy(self) -> float:
    """Percent of rows with the right label."""
    return 100 * self.num_correct / self.num_rows

  @property
  def majority(self) -> float:
    """Percent of rows with the most frequent label."""
    return 100 * max(self.gold.values()) / self.num_rows

  @property
  def legal(self) -> float:
    """Percent of predictions that are a label."""
    return 100 * (1 - self.predicted.get("other", 0.0) / self.num_rows)

  @property
  def error(self) -> float:
    """Standard error of the most frequent label's share, in percent."""
    return math.sqrt(self.majority * (100 - self.majority) / self.num_rows)

  @property
  def is_learned(self) -> bool:
    """Whether it is better than the most frequent label, by no accident."""
    return self.accuracy - self.majority > ERRORS * self.error


def number(line: Line, name: str) -> float:
  """Returns a value of a line; NaN if it is not there."""
  value = line.get(name)
  return float(value) if isinstance(value, int | float) else math.nan


def _below(line: Line, prefix: str) -> dict[str, float]:
  return {
    name.removeprefix(prefix): number(line, name)
    for name in line
    if name.startswith(prefix)
  }


def answers(line: Line) -> list[Answers]:
  """Reads the tasks with labels from a line of an evaluation."""
  suffix = "/legal_labels"
  tasks = [x.removesuffix(suffix) for x in line if x.endswith(suffix)]
  result = []
  for task in tasks:
    gold = _below(line, f"{task}/labels/gold/")
    cells = f"{task}/labels/confusion"
    correct = [number(line, f"{cells}/{label}/{label}") for label in gold]
    result.append(
      Answers(
        task=task,
        step=step(line),
        gold=gold,
        predicted=_below(line, f"{task}/labels/predicted/"),
        # A label of the rows that is not among the task's is never right.
        num_correct=float(np.nansum(correct)),
        outputs=_below(line, f"{task}/outputs/"),
        token_accuracy=number(line, f"{task}/token_accuracy"),
      )
    )
  return result


def step(line: Line) -> int:
  """Returns the step of a line."""
  return int(number(line, "step"))


def best(run: Run) -> Line:
  """Returns the evaluation that a checkpoint is selected by.

  By "score" if there is one, else by accuracy on the tasks with labels, else
  it is the last.
  """

  def value(line: Line) -> float:
    score = number(line, "score")
    if math.isfinite(score):
      return score
    found = [x.accuracy for x in answers(line)]
    return float(np.mean(found) if found else step(line))

  return max(run.evals, key=value)


def losses(run: Run) -> tuple[float, float]:
  """Returns the training loss per token of the first and of the last line."""
  return number(run.train[0], LOSS), number(run.train[-1], LOSS)


def is_learned(run: Run) -> bool:
  """Tells whether a run has learned.

  Tasks with labels decide. Without any it is the training loss, which must have
  fallen by a tenth.
  """
  found = answers(best(run)) if run.evals else []
  if found:
    return all(x.is_learned for x in found)
  before, after = losses(run)
  return after < 0.9 * before


def knowledge(line: Line) -> float:
  """Returns how many nats a token a base knows of a text beyond frequencies.

  Of the two forms of `base_probe` the one that it knows better; NaN if the base
  was not probed.
  """
  gains = [
    number(line, f"base/{form}_exchanged") - number(line, f"base/{form}")
    for form in ("continue", "fill_in")
  ]
  return max(gains)


def first_step(run: Run) -> int:
  """Returns the step that training began at: that of the base.

  A log that does not name it tells by an evaluation before training, or by the
  distance of its lines; with neither it is taken for 0.
  """
  if run.base:
    return step(run.base)
  first = step(run.train[0])
  if step(run.evals[0]) < first:
    return step(run.evals[0])
  return 2 * first - step(run.train[1]) if len(run.train) > 1 else 0
