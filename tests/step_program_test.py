# SPDX-License-Identifier: Apache-2.0
"""The step of a run: compiled once a shape, while the base is read."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from prompt_tuning import (
  configuration,
  partitioning,
  step_program,
  train,
  trainer,
)

TINY = (
  "TRAIN_STEPS = 2",
  "EVAL_MODE = 'rank'",
  "loop.LoopConfig.eval_at_start = False",
  "loop.LoopConfig.num_microbatches = 1",
)
# The tenth batch is the first with longer rows.
TWO_LENGTHS = ("loop.LoopConfig.num_buckets = 2", "TRAIN_STEPS = 10")


@pytest.fixture
def log_compiles():
  """In all threads, unlike `jax.log_compiles`."""
  jax.config.update("jax_log_compiles", True)
  yield
  jax.config.update("jax_log_compiles", False)


def train_and_find_compiled(tmp_path, caplog, bindings):
  """Trains; returns how many steps were compiled, all of them ahead."""
  folder = f"MODEL_DIR = '{tmp_path}'"
  flags = configuration.Flags(
    ("tests/tiny_run.gin",), (*TINY, folder, *bindings), ()
  )
  configuration.load(flags)
  with caplog.at_level(logging.WARNING):
    gin.get_configurable(train.train)()
  compiled = [
    (record.threadName, record.getMessage())
    for record in caplog.records
    if "Finished XLA compilation of jit(train_step)" in record.getMessage()
  ]
  assert all(thread.startswith("compile") for thread, _ in compiled), compiled
  return len(compiled)


@pytest.mark.slow
@pytest.mark.usefixtures("log_compiles")
@pytest.mark.parametrize(
  ("bindings", "num_programs"),
  [
    ((), 1),
    (("SEEDS = (0, 1, 2)",), 1),
    (("SEEDS = (0, 1)", "QUANTIZATION = 'float8_products'"), 1),
    (
      (
        "PARAMETER_SHARDING = True",
        "loop.LoopConfig.stack_layers = True",
        "QUANTIZATION = 'float8_products'",
      ),
      1,
    ),
    (TWO_LENGTHS, 2),
  ],
  ids=["one", "seeds", "seeds_float8", "sharded_float8_loop", "two_lengths"],
)
def test_the_program_compiled_ahead_is_the_one_that_runs(
  tmp_path, caplog, bindings, num_programs
):
  """A step that found other arrays than were described would compile anew."""
  assert train_and_find_compiled(tmp_path, caplog, bindings) == num_programs


@pytest.mark.usefixtures("log_compiles")
@pytest.mark.parametrize(
  ("bindings", "num_programs"),
  [
    (TWO_LENGTHS, 2),
    pytest.param(("SEEDS = (0, 1, 2)",), 1, marks=pytest.mark.slow),
  ],
  ids=["two_lengths", "seeds"],
)
def test_on_one_device_too(
  tmp_path, caplog, monkeypatch, bindings, num_programs
):
  """Where batches stay on the host until the step is called."""
  make_mesh = partitioning.make_mesh
  monkeypatch.setattr(
    partitioning,
    "make_mesh",
    lambda config: make_mesh(config, jax.devices()[:1]),
  )
  found = train_and_find_compiled(tmp_path, caplog, bindings)
  assert found == num_programs


def test_what_one_of_several_threads_raises_is_raised_at_every_wait():
  @jax.jit
  def step(state, frozen, batch, rng):
    if len(batch["x"]) == 2:  # Is traced, but cannot be compiled.
      return jax.ffi.ffi_call("no_such_call", batch["x"])(batch["x"])
    return state

  state = trainer.TrainState(jnp.int32(0), {}, ())
  batches = [{"x": np.zeros(n)} for n in (1, 2, 3)]
  with (
    partitioning.use(partitioning.MeshConfig()),
    step_program.compiling(step, state, {}, batches, jax.random.key(0)) as wait,
  ):
    for _ in range(2):
      with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_call"):
        wait()


def test_what_fails_while_it_is_traced_is_one_sentence(tmp_path):
  """The kernel does not run on a CPU, which tracing the step finds."""
  folder = f"MODEL_DIR = '{tmp_path}'"
  configuration.load(
    configuration.Flags(
      ("tests/tiny_run.gin",), (*TINY, folder, "ATTENTION = 'kernel'"), ()
    )
  )
  with pytest.raises(
    ValueError, match="ATTENTION='kernel' needs an NVIDIA GPU"
  ):
    gin.get_configurable(train.train)()
