# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, and what happens every so many of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import signal
import threading
import time
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from prompt_tuning import (
  distributed,
  losses,
  metrics_log,
  partitioning,
  trainer,
  trials,
)

StepFn = Callable[..., tuple[trials.State, trainer.StepMetrics]]
# The values of the metrics of a step, in order: one list a trial.
StepValues = list[list[float]]
# Where a list has the size of what is trained, behind the sums of the loss.
_RMS = (
  len(losses.LossSums._fields)
  - 1
  + trainer.StepMetrics._fields.index("trainable_rms")
)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long to train, and how often to look.

  Attributes:
    train_steps: the step to stop at. As in T5X it is counted from the
      beginning of the base's pretraining: 1_130_000 trains 30,000 steps on a
      base of 1,100,000.
    batch_size: rows a step of each trial, of all devices together.
    eval_period: steps between evaluations.
    eval_steps: batches of the teacher-forced evaluation.
    eval_mode: "generation", or "rank" for the likeliest label of each task
      that has labels.
    eval_at_start: evaluate before the first step too.
    probe_base: look before the first step whether the base knows the inputs at
      all, which the prompt doctor goes by; compiles four more programs.
    checkpoint_period: steps between checkpoints.
    checkpoint_keep: how many of the newest checkpoints stay.
    log_period: steps whose metrics are averaged to one line of the log.
    num_microbatches: see `trainer.train_step`.
    num_buckets: how many lengths the inputs of a batch may have, chosen from
      the data; 0 for one length alone, that of TASK_FEATURE_LENGTHS.
    stack_layers: run frozen layers as a loop over their stacked parameters, so
      that one is compiled instead of all of them; see `layer_stacking`. An
      evaluation takes them apart, and so needs their memory twice.
    seed: of the prompt's initial value, the order of the rows and dropout,
      unless `sweep` has seeds; and of a base with random weights.
    sweep: the trials, if there are several.
    mesh: how the devices share the model.

  Raises:
    ValueError: for a number below 1 where there must be one, an unknown mode,
      or a batch that cannot be cut into equal microbatches.
  """

  train_steps: int
  batch_size: int = 32
  eval_period: int = 1000
  eval_steps: int = 20
  eval_mode: str = "generation"
  eval_at_start: bool = False
  probe_base: bool = False
  checkpoint_period: int = 1000
  checkpoint_keep: int = 2
  log_period: int = 100
  num_microbatches: int = 1
  num_buckets: int = 0
  stack_layers: bool = False
  seed: int = 0
  sweep: trials.Sweep = trials.Sweep()
  mesh: partitioning.MeshConfig = partitioning.MeshConfig()

  def __post_init__(self) -> None:
    for name in (
      "train_steps",
      "batch_size",
      "eval_period",
      "eval_steps",
      "checkpoint_period",
      "checkpoint_keep",
      "log_period",
      "num_microbatches",
    ):
      value = getattr(self, name)
      if value < 1:
        raise ValueError(f"LoopConfig.{name}={value} must be 1 or more")
    if self.num_buckets < 0:
      raise ValueError(
        f"LoopConfig.num_buckets={self.num_buckets} must be 0 or more"
      )
    if self.eval_mode not in ("generation", "rank"):
      raise ValueError(
        f"EVAL_MODE={self.eval_mode!r} must be 'generation' or 'rank'"
      )
    if self.batch_size % self.num_microbatches:
      raise ValueError(
        f"BATCH_SIZE={self.batch_size} must be divisible by the"
        f" {self.num_microbatches} microbatches"
      )


class Hooks(NamedTuple):
  """What the loop calls.

  Attributes:
    evaluate: called with a state; writes its metrics down, and returns them
      as a text for the screen.
    save: called with a state and the values of the steps that no line of the
      log has yet.
  """

  evaluate: Callable[[trials.State], str]
  save: Callable[[trials.State, Sequence[StepValues]], None]


def summarize(values: Sequence[Sequence[float]]) -> dict[str, float]:
  """Averages the metrics of some steps of a trial, under T5X's names.

  Sums over a batch are averaged over the steps; accuracy and the loss per
  token are averages over all tokens. As in T5X that is the loss which is
  minimised: with LOSS_NORMALIZING_FACTOR it has been divided before.

  Args:
    values: the values of `trainer.StepMetrics` of each step, in order.
  """
  totals = np.sum(np.array(values, np.float64), axis=0).tolist()
  loss, z_loss, num_correct, weights, num_real, *others = totals
  num_steps = len(values)
  result = {
    "loss": loss / num_steps,
    "cross_ent_loss": (loss - z_loss) / num_steps,
    "z_loss": z_loss / num_steps,
    "loss_per_nonpadding_target_token": loss / max(num_real, 1.0),
    "accuracy": num_correct / max(weights, 1.0),
  }
  for name, total in zip(trainer.StepMetrics._fields[1:], others, strict=True):
    result[name] = total / num_steps
  return result


def fit(
  state: trials.State,
  frozen: trainer.Params,
  batches: Iterator[partitioning.Batch],
  *,
  step_fn: StepFn,
  hooks: Hooks,
  logs: Mapping[str, metrics_log.MetricsLog],
  config: LoopConfig,
  unlogged: Sequence[StepValues] = (),
) -> trials.State:
  """Trains until `config.train_steps`, or until SIGTERM has been received.

  Args:
    state: where to start; its arrays are used up.
    frozen: the parameters that are not trained.
    batches: from the state's step on.
    step_fn: the compiled `trainer.train_step` or `trials.train_step` of state,
      frozen and batch.
    hooks: evaluation and saving.
    logs: where metrics go: the log of each trial, by its name.
    config: how long, how often.
    unlogged: what `hooks.save` was given with this state.

  Returns:
    The last state, which is being saved.

  Raises:
    FloatingPointError: if the loss or what is trained is not finite, of the
      last trial that was left. It has not been saved.
  """
  values = list(unlogged)
  running: list[trainer.StepMetrics] = []
  step = saved_step = int(state.step)
  stopped_at = trials.stopped_at(state)
  left = [x for x, at in zip(logs, stopped_at, strict=True) if at < 0]
  bar = tqdm.tqdm(
    initial=step,
    total=config.train_steps,
    unit="step",
    disable=None if distributed.is_first() else True,
    dynamic_ncols=True,
  )
  clock = _Clock(step)

  def collect() -> None:
    """Waits for the running steps and takes their metrics."""
    found = jax.device_get(partitioning.gather(running))
    rows = [_rows(metrics) for metrics in found]
    running.clear()
    for row_step, row in enumerate(rows, step - len(rows) + 1):
      own = dict(zip(logs, row, strict=True))
      for line in _stop_diverged(left, own, row_step):
        bar.write(line)
    values.extend(rows)

  with _sigterm() as stopped, bar:
    while step < config.train_steps and not distributed.should_stop(
      stopped, step
    ):
      state, metrics = step_fn(state, frozen, next(batches))
      running.append(metrics)
      step += 1
      # One step ahead of the device, so that it never waits, and no more, so
      # that the bar tells the truth.
      jax.block_until_ready(running[-2:][0])
      bar.update()
      is_last = step == config.train_steps
      if step % config.log_period == 0 or is_last:
        collect()
        speed = clock.speed(step)
        averages = _log_averages(logs, step, values, speed)
        values.clear()
        _report(bar, step, averages, speed, config)
      if step % config.eval_period == 0 or is_last:
        collect()
        with clock.paused():
          bar.write(f"step {step}: {hooks.evaluate(state)}")
      if step % config.checkpoint_period == 0 or is_last:
        collect()
        with clock.paused():
          hooks.save(state, values)
        saved_step = step
    if step < config.train_steps:
      if saved_step != step:
        collect()
        hooks.save(state, values)
      bar.write(f"stopped by SIGTERM; saving step {step}")
  return state


class _Clock:
  """Tells steps a second, without the time that is spent between steps."""

  def __init__(self, step: int) -> None:
    self._started, self._step = time.monotonic(), step

  def speed(self, step: int) -> float:
    """Returns the speed up to a step, and begins anew."""
    now = time.monotonic()
    speed = (step - self._step) / (now - self._started)
    self._started, self._step = now, step
    return speed

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stands still."""
    paused = time.monotonic()
    yield
    self._started += time.monotonic() - paused


def _rows(metrics: trainer.StepMetrics) -> StepValues:
  """Lists the metrics of a step by trial."""
  columns = [np.atleast_1d(x).tolist() for x in jax.tree.leaves(metrics)]
  return [list(row) for row in zip(*columns, strict=True)]


def _log_averages(
  logs: Mapping[str, metrics_log.MetricsLog],
  step: int,
  values: Sequence[StepValues],
  speed: float,
) -> list[dict[str, float]]:
  """Averages the metrics of the trials that go on, and writes them down."""
  result = []
  for log, *rows in zip(logs.values(), *values, strict=True):
    if _is_finite(rows[-1]):
      result.append(summarize(rows))
      metrics_log.write(log, step, "train", result[-1])
      timing = {"steps_per_second": speed}
      metrics_log.write_scalars(log, step, "timing", timing)
  return result


def is_shown(name: str) -> bool:
  """Tells whether a metric is for the screen too: counts of texts are not."""
  return "/labels/" not in name and "/outputs/" not in name


def format_scores(scores: Mapping[str, float]) -> str:
  """Writes metrics on one line."""
  return ", ".join(
    f"{name} {value:.4g}" for name, value in scores.items() if is_shown(name)
  )


def _report(
  bar: tqdm.tqdm,
  step: int,
  averages: Sequence[Mapping[str, float]],
  speed: float,
  config: LoopConfig,
) -> None:
  """Shows the mean loss in the bar or, where there is none, on a line."""
  mean = lambda name: float(np.mean([x[name] for x in averages]))
  loss = mean("loss_per_nonpadding_target_token")
  accuracy = mean("accuracy")
  if not bar.disable:
    bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
    return
  left = (config.train_steps - step) / speed
  print(
    f"step {step}/{config.train_steps}: loss per token {loss:.4f}, accuracy"
    f" {accuracy:.3f}, {speed:.2f} steps/s, {left:.0f} s left",
    flush=True,
  )


def _is_finite(row: Sequence[float]) -> bool:
  """Tells whether a step had a loss, and left something to go on with."""
  return math.isfinite(row[0]) and math.isfinite(row[_RMS])


def _stop_diverged(
  left: list[str], rows: Mapping[str, Sequence[float]], step: int
) -> list[str]:
  """Takes the trials that have diverged out of those that are left.

  Args:
    left: names of trials, some of which are removed.
    rows: the metrics of all trials at a step.
    step: which.

  Returns:
    A line for the screen of each that is removed.

  Raises:
    FloatingPointError: if none would be left.
  """
  diverged = [name for name in left if not _is_finite(rows[name])]
  if diverged == left:
    raise FloatingPointError(_advice(rows[left[-1]], step))
  for name in diverged:
    left.remove(name)
  return [
    f"{name} is stopped: {_advice(rows[name], step)}" for name in diverged
  ]


def _advice(row: Sequence[float], step: int) -> str:
  found = f"the loss is {row[0]}"
  if math.isfinite(row[0]):
    found = f"the size of what is trained is {row[_RMS]}"
  return (
    f"{found} at step {step}: try a lower learning rate or a warm-up"
    " (optim.learning_rate_schedule), or ACTIVATION_DTYPE='float32'"
  )


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
  """Turns SIGTERM into an event while the block runs.

  Of several processes it is left to JAX; see `distributed.should_stop`.
  """
  received = threading.Event()
  if jax.process_count() > 1:
    yield received
    return
  before = signal.signal(signal.SIGTERM, lambda *_: received.set())
  try:
    yield received
  finally:
    signal.signal(signal.SIGTERM, before)
