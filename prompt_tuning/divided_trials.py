# SPDX-License-Identifier: Apache-2.0
"""Trials divided among devices, each of which trains its own.

Where the devices can share the trials of a run equally, each takes all rows of
its own, and they say nothing to each other. Otherwise each takes some rows of
all trials, and they add up the gradients of every step.
"""

from flax import linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key, Num, PyTree

from prompt_tuning import partitioning, trainer, trials

_OWN = PartitionSpec("data")
# The step is that of all.
_SPECS = trials.States._make((PartitionSpec(), _OWN, _OWN, _OWN))


def is_possible(num_trials: int, config: partitioning.MeshConfig) -> bool:
  """Tells whether the devices of the current mesh are to divide the trials.

  So they are if each holds the whole model and gets equally many.
  """
  num_parts = partitioning.num_row_parts()
  is_whole = config.model_size == 1 and not config.parameter_sharding
  is_shared = num_parts > 1 and num_trials % num_parts == 0
  return is_shared and is_whole and not config.prompt_sharding


def state_shardings(states: trials.States) -> PyTree[NamedSharding]:
  """Places the states of the trials on the current mesh, each on its device."""
  mesh = jax.sharding.get_mesh()
  place = lambda spec, tree: jax.tree.map(
    lambda _: NamedSharding(mesh, spec), tree
  )
  return trials.States(*map(place, _SPECS, states))


def train_step(
  states: trials.States,
  frozen: trainer.Params,
  batch: dict[str, Num[Array, "K B _"]],
  rngs: Key[Array, " K"],
  *,
  step_fn: trials.StepFn,
) -> tuple[trials.States, trainer.StepMetrics]:
  """Takes a step of every trial on its device; see `trials.train_step`."""

  def step_of_own(
    states: trials.States,
    frozen: trainer.Params,
    batch: dict[str, Num[Array, "k B _"]],
    rngs: Key[Array, " k"],
  ) -> tuple[trials.States, trainer.StepMetrics]:
    with nn.logical_axis_rules([]):  # Nothing is divided any further.
      return trials.train_step(states, frozen, batch, rngs, step_fn=step_fn)

  divided = jax.shard_map(
    step_of_own,
    in_specs=(_SPECS, PartitionSpec(), _OWN, _OWN),
    out_specs=(_SPECS, _OWN),
    check_vma=False,
  )
  return divided(states, frozen, batch, rngs)
