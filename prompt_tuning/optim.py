# SPDX-License-Identifier: Apache-2.0
"""What is trained, and how: the partition, Adafactor, learning rates.

The partition is a list of rules, each some regular expressions and an
optimizer. A parameter belongs to the first rule that matches its whole path,
written with a leading "/" as in T5X ("/encoder/prompt/prompt/prompt"); what no
rule matches is frozen.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import difflib
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num
import numpy as np
import optax

Rule = tuple[Sequence[str], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Partition:
  """Regular expressions to optimizers; what none matches is frozen.

  Attributes:
    rules: pairs of regular expressions and an optimizer, in order.
  """

  rules: Sequence[Rule]

  def labels(self, names: Iterable[str]) -> dict[str, int]:
    """Maps each trained parameter to the index of its rule.

    Args:
      names: paths of all parameters.

    Raises:
      ValueError: if an expression is malformed or matches no parameter.
    """
    names = list(names)
    labels: dict[str, int] = {}
    for i, (regexes, _) in enumerate(self.rules):
      for regex in [regexes] if isinstance(regexes, str) else regexes:
        matched = _matches(regex, names)
        if not matched:
          near = difflib.get_close_matches(regex, names, n=3, cutoff=0.0)
          hint = ""
          if "prompt" in regex and not any("/prompt/" in x for x in names):
            hint = "; the model has no prompt: add a file of gin/prompts"
          raise ValueError(
            f"{regex!r} matches no parameter: it must match a whole path such"
            f" as {', '.join(f'/{name}' for name in near)}{hint}"
          )
        labels |= {name: labels.get(name, i) for name in matched}
    return labels

  def optimizer(self, names: Iterable[str]) -> optax.GradientTransformation:
    """Builds the one optimizer of all trained parameters."""
    labels = self.labels(names)
    if len(self.rules) == 1:
      return self.rules[0][1]
    optimizers = {i: optimizer for i, (_, optimizer) in enumerate(self.rules)}
    return optax.partition(
      optimizers, lambda params: {name: labels[name] for name in params}
    )


def _matches(regex: str, names: Sequence[str]) -> list[str]:
  try:
    pattern = re.compile(regex)
  except re.error as error:
    raise ValueError(f"{regex!r} is no regular expression: {error}") from error
  return [name for name in names if pattern.fullmatch(f"/{name}")]


def split(
  params: Mapping[str, Array], labels: Mapping[str, int]
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Splits the parameters into `(trainable, frozen)`."""
  trainable = {name: x for name, x in params.items() if name in labels}
  frozen = {name: x for name, x in params.items() if name not in labels}
  return trainable, frozen


def adafactor(
  learning_rate: float | optax.Schedule = 0.3,
  *,
  decay_rate: float = 0.8,
  decay_offset: int = 0,
  multiply_by_parameter_scale: bool = False,
  weight_decay_rate: float | None = 1e-5,
  momentum: float | None = None,
  min_dim_size_to_factor: int = 128,
) -> optax.GradientTransformation:
  """Builds T5X's Adafactor; the defaults are the paper's for a prompt.

  Model tuning in the T5X manner has `learning_rate=1e-3`,
  `multiply_by_parameter_scale=True` and `weight_decay_rate=None`. Updates are
  clipped to a root mean square of 1 before the learning rate is applied, and
  the second moment of a matrix is factored if both its sides are long enough:
  that of a prompt of 128 positions or more too, as in T5X.

  Args:
    learning_rate: a number, or a schedule over the steps of this run.
    decay_rate: the second moment of step t decays by `1 - t**-decay_rate`.
    decay_offset: step t is counted from `1 - decay_offset`. The original
      counts from the step of its base: -1_100_000 for the LM-adapted T5 1.1,
      where the second moment is then nearly a sum over all steps and updates
      stay clipped for long. See `gin/runs/match_t5x.gin`.
    multiply_by_parameter_scale: scale an update by the root mean square of its
      parameter.
    weight_decay_rate: share by which a parameter shrinks each step, whatever
      the learning rate.
    momentum: exponential average of the updates; None for none.
    min_dim_size_to_factor: shortest side of a matrix that is factored.

  Returns:
    An optimizer whose state holds the current learning rate.

  Raises:
    ValueError: for a positive `decay_offset`, which makes the first steps nan.
  """
  if decay_offset > 0:
    raise ValueError(
      f"decay_offset={decay_offset} must be 0 or less: T5X's step_offset less"
      " the step of the base"
    )

  def make(learning_rate: Array) -> optax.GradientTransformation:
    scaled = optax.adafactor(
      learning_rate,
      decay_rate=decay_rate,
      decay_offset=decay_offset,
      multiply_by_parameter_scale=multiply_by_parameter_scale,
      momentum=momentum,
      min_dim_size_to_factor=min_dim_size_to_factor,
    )
    return optax.chain(scaled, _shrink(weight_decay_rate or 0.0))

  return optax.inject_hyperparams(make)(learning_rate=learning_rate)


def learning_rates(opt_state: optax.OptState) -> list[Array]:
  """Finds the learning rate of the last step of each rule that has one."""
  found = optax.tree.get_all_with_path(
    opt_state, "learning_rate", filtering=lambda _, x: isinstance(x, jax.Array)
  )
  return [jnp.float32(rate) for _, rate in found]


def current_learning_rate(opt_state: optax.OptState) -> Array:
  """Returns the first of `learning_rates`; NaN if the state holds none."""
  return next(iter(learning_rates(opt_state)), jnp.float32(jnp.nan))


def with_learning_rate(
  opt_state: optax.OptState, learning_rate: float
) -> optax.OptState:
  """Replaces the constant learning rate that a fresh state holds.

  Raises:
    ValueError: unless it holds just one, and no schedule.
  """
  rates = optax.tree.get_all_with_path(opt_state, "learning_rate")
  if len(rates) != 1:
    raise ValueError(
      "LEARNING_RATES needs an optimizer with one constant learning rate: bind"
      " a number, no schedule, to optim.adafactor.learning_rate of one rule"
    )
  return optax.tree.set(opt_state, learning_rate=jnp.float32(learning_rate))


def clipped_share(
  grads: Mapping[str, Array], opt_state: optax.OptState
) -> Float[Array, ""]:
  """Returns which share of the parameters Adafactor has clipped in a step.

  That is, whose gradient over the root of its second moment has a root mean
  square above 1 (see `adafactor`).

  Args:
    grads: of the step.
    opt_state: after the step; NaN is returned if it is not Adafactor's.
  """
  moments = optax.tree.get_all_with_path(opt_state, "FactoredState")
  is_clipped = [
    jnp.mean(jnp.square(grads[name]) / _second_moment(state, name, grads)) > 1
    for _, state in moments
    for name, x in state.v.items()
    if isinstance(x, jax.Array)  # And no parameter of another rule.
  ]
  if not is_clipped:
    return jnp.float32(jnp.nan)
  return jnp.mean(jnp.stack(is_clipped), dtype=jnp.float32)


def _second_moment(
  state: optax.FactoredState, name: str, grads: Mapping[str, Array]
) -> Array:
  """Puts a factored second moment together; returns another as it is."""
  shape = grads[name].shape
  if state.v[name].shape == shape:
    return state.v[name]
  # The two longest axes, as optax chooses them.
  column_axis, row_axis = np.argsort(shape)[-2:].tolist()
  row = jnp.expand_dims(state.v_row[name], row_axis)
  column = jnp.expand_dims(state.v_col[name], column_axis)
  return row * column / jnp.mean(row, axis=column_axis, keepdims=True)


def _shrink(rate: float) -> optax.GradientTransformation:
  """Shrinks the parameters, rounded as T5X does: `param * (1 - rate) + update`.

  The sum of a parameter and the result is just that, as the difference of two
  neighbours is exact. optax's own decay ends 7e-7 away after 20 steps.
  """

  def update(updates: Any, params: Any) -> Any:
    return jax.tree.map(
      lambda u, p: (p * (1.0 - rate) + u) - p, updates, params
    )

  return optax.stateless(update)


_FACTORS = (
  "constant",
  "linear_warmup",
  "linear_decay",
  "rsqrt_decay",
  "rsqrt_normalized_decay",
  "decay_every",
)


def learning_rate_schedule(
  factors: str = "constant",
  *,
  base_learning_rate: float = 0.3,
  warmup_steps: int = 1000,
  decay_factor: float = 0.5,
  steps_per_decay: int = 4000,
) -> optax.Schedule:
  """Builds a schedule as a product of factors, in T5X's words.

  Args:
    factors: names joined by "*": "constant" (the base rate), "linear_warmup"
      (rises to 1 over `warmup_steps`), "rsqrt_decay" (`1/sqrt(step)`, constant
      while warming up), "rsqrt_normalized_decay" (the same, starting from 1),
      "decay_every" (`decay_factor` each `steps_per_decay`), or "linear_decay"
      alone (base rate and warm-up, then down by `decay_factor` of it a step).
    base_learning_rate: the base rate.
    warmup_steps: length of the warm-up, in steps; 1 or more.
    decay_factor: see `factors`.
    steps_per_decay: see `factors`.

  Returns:
    A function of the step of this run, counted from 0. Never below 1e-8.

  Raises:
    ValueError: for an unknown factor, or a warm-up without a step.
  """
  if warmup_steps < 1:
    raise ValueError(
      f"WARMUP_STEPS={warmup_steps} must be 1 or more: without a warm-up, leave"
      " 'linear_warmup' out of factors"
    )
  names = [name.strip() for name in factors.split("*")]
  unknown = [name for name in names if name not in _FACTORS]
  if unknown:
    raise ValueError(
      f"factors={factors!r}: {unknown[0]!r} must be one of {_FACTORS}"
    )

  def schedule(count: Num[Array, ""] | int) -> Array:
    step = jnp.asarray(count, jnp.float32)
    warmup = jnp.minimum(1.0, step / warmup_steps)
    after_warmup = jnp.maximum(step, warmup_steps)
    linear = 1.0 + decay_factor * (warmup_steps - after_warmup)
    values: dict[str, Any] = {
      "constant": base_learning_rate,
      "linear_warmup": warmup,
      "linear_decay": base_learning_rate * jnp.minimum(warmup, linear),
      "rsqrt_decay": jax.lax.rsqrt(after_warmup),
      "rsqrt_normalized_decay": math.sqrt(warmup_steps)
      * jax.lax.rsqrt(after_warmup),
      "decay_every": decay_factor ** (step // steps_per_decay),
    }
    rate = jnp.float32(math.prod(values[name] for name in names))
    return jnp.maximum(rate, 1e-8)

  return schedule
