# SPDX-License-Identifier: Apache-2.0
"""Fixtures that more than one file of tests uses."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

# Before JAX is imported anywhere: two virtual devices, no accelerator, bfloat16
# rounded where the program says so, as in the goldens (by default XLA keeps
# more digits where it fuses), and little optimisation of programs that take
# longer to compile than to run.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=2 --xla_allow_excess_precision=false"
  " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Tests that run the same program compile it once, in whichever worker: these
# have the folder of the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Not by way of the package: within its checked imports Python finds no compiled
# files, and compiles thousands of others' anew.
import flax  # noqa: F401
import jax
import numpy as np
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
from paths import GOLDENS
import pytest
import seqio  # noqa: F401

# For all threads, unlike `jax.numpy_rank_promotion`.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _clear_gin():
  import gin

  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture
def gin_model():
  """Builds the network that gin files and bindings describe."""
  import gin
  from prompt_tuning import configuration, t5

  def build(*files, bindings=()):
    configuration.load(configuration.Flags(files, bindings, ()))
    return gin.get_configurable(t5.Transformer)()

  return build


@pytest.fixture(scope="session")
def write_tiny_base():
  """Writes the random base of tests/tiny_run.gin to a file."""
  from prompt_tuning import pretrained, t5

  config = t5.T5Config(
    vocab_size=8192,
    emb_dim=16,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=16,
    mlp_dim=32,
  )

  def write(path, *, step=0):
    params = t5.init_params(t5.Transformer(config), seed=0)
    pretrained.save(str(path), params, step, {})

  return write


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory):
  """Writes the cache that tests/tiny_run_from_cache.gin reads."""
  folder = tmp_path_factory.mktemp("demo") / "cache"
  command = [
    *(sys.executable, "-m", "prompt_tuning.cache_task"),
    *("--gin_file=tests/tiny_run.gin", "--gin_file=gin/runs/cache.gin"),
    *("--gin.MODEL_DIR=None", f"--gin.CACHE_DIR='{folder}'"),
  ]
  subprocess.run(
    command, cwd=GOLDENS.parents[1], check=True, capture_output=True
  )
  return folder


@pytest.fixture
def golden():
  """Loads an archive of tests/goldens as a dict of JAX arrays."""
  import jax.numpy as jnp

  def load(name):
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as archive:
      return {name: jnp.asarray(array) for name, array in archive.items()}

  return load


@pytest.fixture
def tiny_config():
  """The sizes of the golden models (T5 1.1 form)."""
  from prompt_tuning import t5

  return t5.T5Config(
    vocab_size=128,
    emb_dim=32,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=3,
    head_dim=8,
    mlp_dim=64,
    dropout_rate=0.0,
  )


@pytest.fixture
def tiny_params(golden):
  """The parameters of t5_1_1_tiny as `path -> array`."""
  arrays = golden("t5_1_1_tiny")
  prefix = "params/"
  return {
    name.removeprefix(prefix): value
    for name, value in arrays.items()
    if name.startswith(prefix)
  }


@pytest.fixture
def tiny_batch(golden):
  """The batch that the golden models were fed."""
  arrays = golden("t5_1_1_tiny")
  return {name: x for name, x in arrays.items() if "tokens" in name} | {
    "decoder_loss_weights": arrays["decoder_loss_weights"]
  }
