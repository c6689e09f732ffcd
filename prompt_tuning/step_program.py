# SPDX-License-Identifier: Apache-2.0
"""The compiled step of a run, and the batches that it takes.

`compiling` compiles it while the base is read and the prompts are drawn, for
all lengths of inputs at once: all that it needs to know are shapes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree
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


def make_step(
  shardings: PyTree[NamedSharding],
  model: t5.Transformer,
  optimizer: optax.GradientTransformation,
  loss: losses.LossConfig,
  all_trials: Sequence[trials.Trial],
  config: loop.LoopConfig,
) -> functools.partial:
  """Returns the step of state, frozen and batch, to be compiled at a call.

  The next state is placed as `shardings` say.
  """
  step_fn = functools.partial(
    trainer.train_step,
    model=model,
    optimizer=optimizer,
    loss=loss,
    num_microbatches=config.num_microbatches,
  )
  rngs = [jax.random.key(trial.seed) for trial in all_trials]
  is_divided = divided_trials.is_possible(len(rngs), config.mesh)
  metrics = PartitionSpec("data") if is_divided else PartitionSpec()
  jit = functools.partial(
    jax.jit,
    donate_argnums=0,
    compiler_options=trainer.compiler_options(model.config),
    out_shardings=(
      shardings,
      NamedSharding(jax.sharding.get_mesh(), metrics),
    ),
  )
  if len(rngs) == 1:
    return functools.partial(jit(step_fn), rng=rngs[0])
  several = divided_trials if is_divided else trials
  step_of_all = functools.partial(several.train_step, step_fn=step_fn)
  return functools.partial(jit(step_of_all), rngs=jnp.stack(rngs))


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
  step_fn: functools.partial,
  state: trials.State,
  frozen: Mapping[str, jax.ShapeDtypeStruct],
  examples: Sequence[partitioning.Batch],
) -> Iterator[Callable[[], None]]:
  """Compiles a step, from `make_step`, in threads of its own.

  With the rules of `partitioning.gathered_parameters`, as it has to be called.

  A call of `step_fn` then finds its program, if the threads were waited for
  and the arrays are what was said; otherwise it compiles as ever.

  Args:
    step_fn: the step.
    state: shapes, dtypes and places of what it will be called with.
    frozen: the same of the frozen parameters.
    examples: a batch of each shape, from `batch_of_each_shape`.

  Yields:
    What waits for them, and raises what a thread has raised. A block that fails
    does not wait, but the interpreter does: a compiler cannot be interrupted.
  """
  mesh = jax.sharding.get_mesh()  # Which no other thread sees.
  jitted: Any = step_fn.func

  def compile_step(batch: partitioning.Batch) -> None:
    with jax.set_mesh(mesh), partitioning.gathered_parameters():
      jitted.lower(state, frozen, batch, **step_fn.keywords).compile()

  num_threads = min(len(examples), os.cpu_count() or 1)
  pool = futures.ThreadPoolExecutor(num_threads, "compile")
  running = [pool.submit(compile_step, batch) for batch in examples]

  def wait() -> None:
    for program in futures.as_completed(running):
      program.result()

  try:
    yield wait
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
