# SPDX-License-Identifier: Apache-2.0
"""Why a run has not learned: one function for each known cause."""

from collections.abc import Callable, Sequence
import math

import numpy as np

from prompt_tuning.doctor import evidence
from prompt_tuning.doctor.evidence import Finding

# Nats a token that a pretrained base must find a text likelier by than the same
# with its words exchanged. Measured: 0.4 at most for random weights or foreign
# ids; 5.0 for the base of gin/models/english_4m.gin on articles, 1.4 on the 60
# words of the demo.
_KNOWLEDGE = 0.5
# Of the prompt's size: by how much it must be able to move to change anything.
_REACH = 0.1
# Prompts of a size below so many learning rates are lost in the first steps:
# Adafactor's very first update is one learning rate in every element. Measured
# over 20 steps: 1.06 to 1.2 where the prompt was negligible, 4.5 at the rate
# that was right.
_SIZE = 2.5
_MOSTLY = 50.0  # Percent.


def _adapt(tasks: Sequence[str]) -> str:
  """Advises against a base that only fills in."""
  advice = (
    "use an LM-adapted base (t5_1_1_lm100k_...), or adapt this one with a"
    " prefix_lm task"
  )
  if tasks and all(task.startswith("sentinel_") for task in tasks):
    return advice
  return f"{advice}, or try the tasks sentinel_... (paper, sec. 3.2)"


def _labels_cut(run: evidence.Run) -> Finding | None:
  """Targets shorter than the labels: right tokens, yet no label."""
  for x in evidence.answers(evidence.best(run)):
    cut = x.outputs.get("cut", 0.0)
    is_right = x.token_accuracy > 0.9 and x.legal < 100 - _MOSTLY
    if cut >= _MOSTLY or is_right:
      return Finding(
        "labels cut off",
        f"{x.task}: {x.legal:.0f}% of the outputs are labels, {cut:.0f}% are"
        f" the beginning of one; {x.token_accuracy:.0%} of the target tokens"
        " are right under teacher forcing",
        "raise 'targets' of TASK_FEATURE_LENGTHS to the longest label and EOS",
      )
  return None


def _foreign_vocabulary(run: evidence.Run) -> Finding | None:
  """A base to which the text is no likelier than one of other words."""
  gain = evidence.knowledge(run.base)
  if math.isnan(gain) or gain >= _KNOWLEDGE:
    return None
  loss, exchanged = (
    evidence.number(run.base, f"base/continue{suffix}")
    for suffix in ("", "_exchanged")
  )
  return Finding(
    "wrong vocabulary",
    f"without a prompt the base continues the task's inputs at {loss:.1f} nats"
    f" a token and the same with words exchanged at {exchanged:.1f}: it does"
    " not know these ids",
    "choose the VOCABULARY that the base was pretrained with; or the base has"
    " random weights: set INITIAL_CHECKPOINT_PATH",
  )


def span_corruption(run: evidence.Run) -> Finding | None:
  """A base that fills in: its outputs begin with a sentinel."""
  probability = evidence.number(run.base, "base/sentinel")
  first = evidence.answers(run.evals[0])
  outputs = [x.outputs.get("sentinel", 0.0) for x in first]
  share = max(outputs, default=0.0)
  if not (probability >= 0.5 or share >= _MOSTLY):
    return None
  text = f"{share:.0f}% of the first outputs begin with a sentinel"
  if math.isfinite(probability):
    text += (
      "; without a prompt the base begins its answer with <extra_id_0> with"
      f" probability {probability:.2f}"
    )
  advice = _adapt([x.task for x in first])
  return Finding("base not LM-adapted", text, advice)


def _idle_answers(run: evidence.Run) -> Finding | None:
  """What the paper saw of bases that only fill in: nothing, or the input."""
  for x in evidence.answers(evidence.best(run)):
    empty, copied = (x.outputs.get(name, 0.0) for name in ("empty", "copied"))
    if empty + copied >= _MOSTLY:
      return Finding(
        "base not LM-adapted",
        f"{x.task}: {empty:.0f}% of the outputs are empty and {copied:.0f}% are"
        " pieces of the input",
        _adapt([x.task]),
      )
  return None


def _no_gradient(run: evidence.Run) -> Finding | None:
  """A prompt that the loss does not depend on."""
  rms = evidence.number(run.train[0], "grad_rms")
  if not rms < 1e-9:  # Also if it is not known.
    return None
  return Finding(
    "no gradient",
    f"the gradient's root mean square is {rms:.2g} in the first steps",
    "set ACTIVATION_DTYPE='float32', and check that the partition trains the"
    " prompt",
  )


def _sizes(run: evidence.Run) -> tuple[float, float]:
  """Returns mean learning rate and the prompt's first known element size.

  NaN for an optimizer whose steps are not of the learning rate's size.
  """
  rate = float(
    np.mean([evidence.number(x, "learning_rate") for x in run.train])
  )
  is_adafactor = math.isfinite(evidence.number(run.train[0], "clipped"))
  size = evidence.number(run.train[0], "trainable_rms")
  return (rate if is_adafactor else math.nan), size


def _rate_too_low(run: evidence.Run) -> Finding | None:
  """A rate at which the prompt stays where it is, whatever the gradient.

  No update of Adafactor is larger than the rate, as root mean square.
  """
  rate, size = _sizes(run)
  num_steps = run.end - evidence.first_step(run)
  if not rate * num_steps < _REACH * size:
    return None
  return Finding(
    "learning rate too low",
    f"{num_steps} steps of at most {rate:.2g} each move the prompt's elements"
    f" by {rate * num_steps:.2g} at most, and their size is {size:.2g}",
    "raise the learning rate: the paper's is 0.3, or about 3% of that size",
  )


def rate_too_high(run: evidence.Run) -> Finding | None:
  """A rate so large that the first steps overrun the initial prompt."""
  rate, size = _sizes(run)
  if not size < _SIZE * rate:
    return None
  before, after = (
    evidence.number(run.train[i], "grad_rms") for i in (0, len(run.train) - 1)
  )
  return Finding(
    "learning rate too high",
    f"the rate is {rate:.3g}, and the prompt's elements are {size:.3g} in the"
    " first steps: nothing is left of their initial value; the gradient fell"
    f" from {before:.2g} to {after:.2g}, as no step can turn so large a prompt",
    "lower the learning rate: the paper's is 0.3, about 3% of the initial size",
  )


def _one_label(run: evidence.Run) -> Finding | None:
  """One answer to everything."""
  for x in evidence.answers(evidence.best(run)):
    label, count = max(x.predicted.items(), key=lambda item: item[1])
    share = 100 * count / x.num_rows
    if label != "other" and share >= 95 and x.majority < 90:
      return Finding(
        "one label for all",
        f"{x.task}: {share:.0f}% of the outputs are {label!r}, which"
        f" {x.gold.get(label, 0.0):.0f} of {x.num_rows:.0f} rows are",
        "the prompt has learned the form of an answer only: train longer, take"
        " a larger base, or check that inputs and labels belong together",
      )
  return None


Check = Callable[[evidence.Run], Finding | None]
# The surest first; the first that fits is the diagnosis.
CAUSES: Sequence[Check] = (
  _labels_cut,
  _foreign_vocabulary,
  span_corruption,
  _no_gradient,
  _rate_too_low,
  rate_too_high,
  _idle_answers,
  _one_label,
)
# Those that are certain before there is anything to see of them.
EARLY: Sequence[Check] = (
  _foreign_vocabulary,
  span_corruption,
  _no_gradient,
  _rate_too_low,
)
