# SPDX-License-Identifier: Apache-2.0
"""What is said of a run's first state before it is there."""

import dataclasses

import jax
import pytest

from prompt_tuning import (
  loop,
  optim,
  partitioning,
  prompt_init,
  prompts,
  start,
  t5,
  task_data,
  trials,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

BYTES = vocabulary_lib.from_bytes(128)
LENGTHS = {"inputs": 8, "targets": 2}
DATA = task_data.TaskData("task", [], [], [], LENGTHS, BYTES)


@pytest.mark.parametrize(
  ("mesh", "quantization", "sweep"),
  [
    pytest.param(
      *(partitioning.MeshConfig(), "none", trials.Sweep()),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      partitioning.MeshConfig(2),
      "int8",
      trials.Sweep(learning_rates=(0.1, 0.2)),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      partitioning.MeshConfig(parameter_sharding=True),
      "float8",
      trials.Sweep(seeds=(0, 1)),
      marks=pytest.mark.slow,
    ),
  ],
  ids=["data", "model", "fsdp"],
)
def test_the_states_that_are_described_are_those_that_are_loaded(
  tiny_config, mesh, quantization, sweep
):
  """Or the step that is compiled ahead is not the one that runs."""
  config = dataclasses.replace(
    tiny_config,
    num_encoder_layers=1,
    num_decoder_layers=1,
    quantization=quantization,
  )
  model = t5.Transformer(config, prompts.PromptConfig(length=3))
  partition = optim.Partition([([".*/prompt/.*"], optim.adafactor())])
  all_trials = trials.expand(
    sweep, seed=0, initial_prompt=prompt_init.random_uniform
  )
  with partitioning.use(mesh):
    source = start.prepare(
      model,
      partition,
      lambda: DATA._replace(batches_fn=lambda **_: iter(())),
      None,
      all_trials=all_trials,
      config=loop.LoopConfig(train_steps=1, mesh=mesh),
    )
    described = start.describe_states(
      source, model=model, all_trials=all_trials
    )
    loaded = start.load_states(
      None, source, model=model, all_trials=all_trials, seed=0
    )
    assert jax.tree.structure(described) == jax.tree.structure(loaded)
    leaves = map(jax.tree.leaves, (described, loaded))
    for found, x in zip(*leaves, strict=True):
      assert (found.shape, found.dtype) == (x.shape, x.dtype)
    frozen, found = loaded[1], described[1]
    assert {name: x.sharding for name, x in found.items()} == {
      name: x.sharding for name, x in frozen.items()
    }
