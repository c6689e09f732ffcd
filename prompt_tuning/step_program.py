# SPDX-License-Identifier: Apache-2.0
"""The compiled step of a run, and the batches and rngs that it takes.

`compiling` compiles it while the base is read and the prompts are drawn, for
all lengths of inputs at once: all that it needs to know are shapes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import functools
import os

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree
import numpy as np
import optax

from prompt_tuning import (
  divided_trials,
  loop,
  losses,
  partitioning,
  t5,
  task_data,
  trainer,
  trials,
)


def state_shardings(
  state: trials.State, model: t5.Transformer, config: loop.LoopConfig
) -> PyTree[NamedSharding]:
  """Places the state of a run: trials side by side, or parameter by rule."""
  if isinstance(state, trials.States) and divided_trials.is_possible(
    len(state.stopped_at), config.mesh
  ):
    return divided_trials.state_shardings(state)
  return partitioning.state_shardings(state, model, config.mesh)


def batches(
  data: Sequence[task_data.TaskData],
  all_trials: Sequence[trials.Trial],
  config: loop.LoopConfig,
  start_step: int,
) -> Iterator[partitioning.Batch]:
  """Returns the batches from a step on, counted from that of the base."""
  streams = [
    task_data.train_batches(
      own_data,
      batch_size=config.batch_size,
      seed=trial.seed,
      start_step=start_step,
    )
    for own_data, trial in zip(data, all_trials, strict=True)
  ]
  if len(streams) == 1:
    return map(partitioning.place_batch, streams[0])
  is_divided = divided_trials.is_possible(len(streams), config.mesh)
  row_axis = 0 if is_divided else 1  # Of trials, or of the rows of each.
  place = functools.partial(partitioning.place_batch, row_axis=row_axis)
  return map(place, trials.stack_batches(streams))


def rngs(all_trials: Sequence[trials.Trial]) -> Key[Array, "..."]:
  """Returns the rng of a run's only trial, or an rng for each of several."""
  each = [jax.random.key(trial.seed) for trial in all_trials]
  if len(each) == 1:
    return each[0]
  place = describe_rngs(len(each)).sharding
  return jax.jit(jnp.stack, out_shardings=place)(each)


def describe_rngs(num_trials: int) -> jax.ShapeDtypeStruct:
  """Describes `rngs`, and does not wait for a device as making them does."""
  rng = jax.eval_shape(lambda: jax.random.key(0))
  shape = () if num_trials == 1 else (num_trials,)
  # Of keys JAX makes P(None) where P() is asked for, and a program for the one
  # is not found for the other.
  everywhere = PartitionSpec(*[None] * len(shape))
  sharding = NamedSharding(jax.sharding.get_mesh(), everywhere)
  return jax.ShapeDtypeStruct(shape, rng.dtype, sharding=sharding)


def make_step(
  shardings: PyTree[NamedSharding],
  model: t5.Transformer,
  optimizer: optax.GradientTransformation,
  loss: losses.LossConfig,
  config: loop.LoopConfig,
  *,
  num_trials: int,
) -> jax.stages.Wrapped:
  """Returns the step of state, frozen, batch and rngs, compiled at a call.

  The next state is placed as `shardings` say.
  """
  step_fn = functools.partial(
    trainer.train_step,
    model=model,
    optimizer=optimizer,
    loss=loss,
    num_microbatches=config.num_microbatches,
  )
  is_divided = divided_trials.is_possible(num_trials, config.mesh)
  if num_trials > 1:
    several = divided_trials if is_divided else trials
    step_fn = functools.partial(several.train_step, step_fn=step_fn)
  metrics = PartitionSpec("data") if is_divided else PartitionSpec()
  return jax.jit(
    step_fn,
    donate_argnums=0,
    compiler_options=trainer.compiler_options(model.config),
    out_shardings=(
      shardings,
      NamedSharding(jax.sharding.get_mesh(), metrics),
    ),
  )


def batch_of_each_shape(
  data: Sequence[task_data.TaskData],
  all_trials: Sequence[trials.Trial],
  config: loop.LoopConfig,
) -> list[partitioning.Batch]:
  """Returns the first batch, and for other lengths what it would be like.

  Inputs have several lengths only where there is one trial.
  """
  batch = next(batches(data, all_trials, config, 0))
  name = "encoder_input_tokens"
  first = batch[name]
  cut = lambda length: np.broadcast_to(np.int32(0), (len(first), length))
  others = [x for x in task_data.train_buckets(data[0]) if x != first.shape[-1]]
  return [
    batch,
    *[{**batch, name: partitioning.place_rows(cut(x))} for x in others],
  ]


@contextlib.contextmanager
def compiling(
  step_fn: jax.stages.Wrapped,
  state: trials.State,
  frozen: Mapping[str, jax.ShapeDtypeStruct],
  examples: Sequence[partitioning.Batch],
  rng: jax.ShapeDtypeStruct | Key[Array, "..."],
) -> Iterator[Callable[[], None]]:
  """Traces a step, then compiles it in threads; wakes the devices meanwhile.

  With the rules of `partitioning.gathered_parameters`, as it has to be called.

  A call of `step_fn` then finds its program, if the threads were waited for
  and the arrays are what was said; otherwise it compiles as ever.

  Args:
    step_fn: the step, from `make_step`.
    state: shapes, dtypes and places of what it will be called with.
    frozen: the same of the frozen parameters.
    examples: a batch of each shape, from `batch_of_each_shape`.
    rng: from `rngs`, or from `describe_rngs` what they are like.

  Yields:
    What waits for them, and raises what a thread has raised. A block that fails
    does not wait, but the interpreter does: a compiler cannot be interrupted.
  """
  _wake_devices()
  num_threads = min(len(examples), os.cpu_count() or 1)
  pool = futures.ThreadPoolExecutor(num_threads, "compile")
  running = []
  try:
    # Traced here: two threads that both run Python hold each other up.
    with partitioning.gathered_parameters():
      for batch in examples:
        running.append(
          pool.submit(step_fn.lower(state, frozen, batch, rng).compile)
        )

    def wait() -> None:
      for program in futures.as_completed(running):
        program.result()

    yield wait
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _wake_devices() -> None:
  """Moves something to each device of this process, and does not wait.

  A GPU's first transfer takes two seconds, as long as tracing. What fails here
  fails again where it is needed.
  """
  devices = jax.local_devices()
  pool = futures.ThreadPoolExecutor(len(devices), "wake")
  for device in devices:
    pool.submit(jax.device_put, np.int32(0), device)
  pool.shutdown(wait=False)
