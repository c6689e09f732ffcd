# SPDX-License-Identifier: Apache-2.0
"""Several trainings at once against one frozen model: which, and their step.

A trial is what a run of its own would be: a seed, a task, a learning rate and
an initial prompt. The frozen parameters are there once. What a step changes
has a leading axis K, the trials, and so have its batches; a product with a
frozen matrix is one product over the rows of all trials.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
import re
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, Num
import numpy as np
import optax

from prompt_tuning import partitioning, prompt_init, trainer

Value = TypeVar("Value", int, float, str)
StepFn = Callable[..., tuple[trainer.TrainState, trainer.StepMetrics]]


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Ways to spell the trials of a run: all combinations of what is listed.

  What is left empty is as in a run of one, and so is all of it by default.

  Attributes:
    seeds: of the prompt's initial value, the order of the rows and dropout.
    learning_rates: constant ones, in place of the optimizer's.
    tasks: one task or mixture, or a list of them, a prompt each.
    initial_prompts: initialisers by a name of one's own. If the names are
      those of `tasks`, each belongs to its task alone.

  Raises:
    ValueError: for a value that cannot be used, or that comes twice.
  """

  seeds: int | Sequence[int] = ()
  learning_rates: float | Sequence[float] = ()
  tasks: str | Sequence[str] = ()
  initial_prompts: Mapping[str, prompt_init.PromptInit] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self) -> None:
    seeds, rates = _several(self.seeds), _several(self.learning_rates)
    _check_once("SEEDS", seeds)
    _check_once("LEARNING_RATES", rates)
    _check_once("MIXTURE_OR_TASK_NAME", _several(self.tasks))
    for seed in seeds:
      if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"SEEDS: {seed!r} must be a whole number from 0 on")
    for rate in rates:
      if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ValueError(f"LEARNING_RATES: {rate!r} must be above 0 and finite")
    for name in self.initial_prompts:
      if not re.fullmatch(r"[\w.:]+", name):
        raise ValueError(
          f"INITIAL_PROMPTS: {name!r} names a folder too: use letters, digits,"
          " '_', '.' and ':'"
        )


def _several(values: Value | Sequence[Value]) -> tuple[Value, ...]:
  """Takes one value for a list of one."""
  if isinstance(values, Sequence) and not isinstance(values, str):
    return tuple(values)
  return (values,)


def _check_once(macro: str, values: Sequence[object]) -> None:
  """Refuses a list with a value that comes twice."""
  for i, value in enumerate(values):
    if value in values[:i]:
      raise ValueError(f"{macro} has {value!r} twice: name it once")


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training among those of a run.

  Attributes:
    name: what sets it apart, such as "lr_0.1-seed_2"; "" for a run of one.
    group: its name without the seed. Means are over the trials of a group.
    seed: see `Sweep.seeds`.
    task: a task or mixture; None for the one that the data loader is bound to.
    learning_rate: a constant one; None for that of the optimizer.
    initial_prompt: the initialiser; None for a model without a prompt.
  """

  name: str
  group: str
  seed: int
  task: str | None
  learning_rate: float | None
  initial_prompt: prompt_init.PromptInit | None


def expand(
  sweep: Sweep, *, seed: int, initial_prompt: prompt_init.PromptInit | None
) -> list[Trial]:
  """Lists the trials: tasks, initialisers, learning rates, then seeds.

  Args:
    sweep: what they are combined from.
    seed: what an empty `sweep.seeds` stands for.
    initial_prompt: what an empty `sweep.initial_prompts` stands for.
  """
  seeds = _several(sweep.seeds) or (seed,)
  rates = _several(sweep.learning_rates) or (None,)
  # A text alone is what the data loader is bound to already.
  tasks: Sequence[str | None] = [None]
  if sweep.tasks and not isinstance(sweep.tasks, str):
    tasks = sweep.tasks
  inits: Mapping[str, prompt_init.PromptInit | None] = {"": initial_prompt}
  if sweep.initial_prompts:
    inits = sweep.initial_prompts
  is_paired = set(tasks) == set(inits)
  starts = [
    (task, init)
    for task, init in itertools.product(tasks, inits)
    if task == init or not is_paired
  ]
  result = []
  for (task, init), rate, seed in itertools.product(starts, rates, seeds):
    parts = [
      (task, len(tasks) > 1),
      (init, len(inits) > 1 and not is_paired),
      (f"lr_{rate}", len(rates) > 1),
      (f"seed_{seed}", len(seeds) > 1),
    ]
    group, name = (
      "-".join(str(part) for part, varies in some if varies)
      for some in (parts[:-1], parts)
    )
    result.append(Trial(name, group, seed, task, rate, inits[init]))
  return result


def joint(
  all_trials: Sequence[Trial], runs: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
  """Joins what describes the trials: by name a value for all, or a list."""
  if len(runs) == 1:
    return runs[0]
  result: dict[str, Any] = {"trials": [trial.name for trial in all_trials]}
  for name in runs[0]:
    values = [run[name] for run in runs]
    is_one = values.count(values[0]) == len(values)
    result[name] = values[0] if is_one else values
  return result


class States(NamedTuple):
  """The states of K trials side by side.

  Attributes:
    step: number of steps taken, the same for all.
    trainable: the parameters that are trained, `[K, ...]`.
    opt_state: the state of their optimizer, `[K, ...]`.
    stopped_at: the step whose loss, or what it made of the parameters, was not
      finite, before which the trial has stayed; -1 for one that goes on.
  """

  step: Int[Array, ""]
  trainable: trainer.Params
  opt_state: optax.OptState
  stopped_at: Int[Array, " K"]


# A run of one is not stacked.
State = trainer.TrainState | States


def stack(states: Sequence[trainer.TrainState]) -> State:
  """Puts states of the same step side by side; one alone stays as it is."""
  if len(states) == 1:
    return states[0]
  trainable, opt_state = jax.tree.map(
    lambda *xs: jnp.stack(xs), *[(x.trainable, x.opt_state) for x in states]
  )
  stopped_at = jnp.full(len(states), -1, jnp.int32)
  return States(states[0].step, trainable, opt_state, stopped_at)


def stopped_at(state: State) -> list[int]:
  """Returns `States.stopped_at` of every trial; [-1] for a run of one."""
  if isinstance(state, trainer.TrainState):
    return [-1]
  return jax.device_get(partitioning.gather(state.stopped_at)).tolist()


def unstack(state: State) -> list[trainer.TrainState | None]:
  """Returns the state of each trial; None for one that has stopped."""
  if isinstance(state, trainer.TrainState):
    return [state]
  stacked = (state.trainable, state.opt_state)
  return [
    trainer.TrainState(state.step, *jax.tree.map(lambda x, i=i: x[i], stacked))
    if step < 0
    else None
    for i, step in enumerate(stopped_at(state))
  ]


def stack_batches(
  batches: Sequence[Iterator[Mapping[str, Num[np.ndarray, "B _"]]]],
) -> Iterator[dict[str, Num[np.ndarray, "K B _"]]]:
  """Yields one batch of each trial at a time, side by side."""
  for rows in zip(*batches, strict=True):
    yield {name: np.stack([x[name] for x in rows]) for name in rows[0]}


def train_step(
  states: States,
  frozen: trainer.Params,
  batch: Mapping[str, Num[Array, "K B _"]],
  rngs: Key[Array, " K"],
  *,
  step_fn: StepFn,
) -> tuple[States, trainer.StepMetrics]:
  """Takes a step of every trial that is and has been finite.

  Args:
    states: what the step changes.
    frozen: the parameters that are not trained, of all trials.
    batch: of each trial.
    rngs: of each trial; see `trainer.train_step`.
    step_fn: `trainer.train_step` of state, frozen, batch and rng.

  Returns:
    The next states, and float32[K] metrics: those of the step at which a trial
    stops tell why, and are NaN from then on.
  """

  def step_unless_stopped(
    trainable: trainer.Params,
    opt_state: optax.OptState,
    stopped_at: Int[Array, ""],
    batch: trainer.Batch,
    rng: Key[Array, ""],
  ) -> tuple[
    trainer.Params, optax.OptState, Int[Array, ""], trainer.StepMetrics
  ]:
    state = trainer.TrainState(states.step, trainable, opt_state)
    new, metrics = step_fn(state, frozen, batch, rng)
    was_running = stopped_at < 0
    is_finite = jnp.isfinite(metrics.sums.loss + metrics.trainable_rms)
    is_running = was_running & is_finite
    choose = functools.partial(jnp.where, is_running)
    return (
      jax.tree.map(choose, new.trainable, trainable),
      jax.tree.map(choose, new.opt_state, opt_state),
      jnp.where(was_running & ~is_running, new.step, stopped_at),
      jax.tree.map(lambda x: jnp.where(was_running, x, jnp.nan), metrics),
    )

  *new, metrics = jax.vmap(step_unless_stopped)(
    states.trainable, states.opt_state, states.stopped_at, batch, rngs
  )
  return States(states.step + 1, *new), metrics
