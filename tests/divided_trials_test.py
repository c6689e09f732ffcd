# SPDX-License-Identifier: Apache-2.0
"""Trials on a device each, against all of them on one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import (
  collectives,
  divided_trials,
  losses,
  optim,
  partitioning,
  prompts,
  t5,
  trainer,
  trials,
)

PROMPT = "encoder/prompt/prompt/prompt"


@pytest.fixture
def two(tiny_config, tiny_batch):
  """States, frozen parameters, batch and rngs of two trials, and a step."""
  config = dataclasses.replace(
    tiny_config, num_encoder_layers=1, num_decoder_layers=1
  )
  model = t5.Transformer(config, prompts.PromptConfig(length=5))
  params = t5.init_params(model, seed=0)
  rules = optim.Partition([([".*/prompt/.*"], optim.adafactor())])
  trainable, frozen = optim.split(params, rules.labels(params))
  optimizer = rules.optimizer(params)
  states = []
  for i in range(2):
    prompt = {PROMPT: trainable[PROMPT] + 0.3 * i}
    state = trainer.TrainState(jnp.int32(4), prompt, optimizer.init(prompt))
    states.append(state)
  batch = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), tiny_batch)
  rngs = jnp.stack([jax.random.key(i) for i in range(2)])
  step_fn = functools.partial(
    trainer.train_step,
    model=model,
    optimizer=optimizer,
    loss=losses.LossConfig(),
  )
  return trials.stack(states), frozen, batch, rngs, step_fn


@pytest.mark.slow
def test_devices_train_their_own_trials_and_say_nothing(two):
  states, frozen, batch, rngs, step_fn = two
  together = functools.partial(trials.train_step, step_fn=step_fn)
  expected, wanted = jax.jit(together)(states, frozen, batch, rngs)
  with jax.set_mesh(partitioning.make_mesh(partitioning.MeshConfig())):
    places = divided_trials.state_shardings(states)
    states = partitioning.place(states, places)
    step = functools.partial(divided_trials.train_step, step_fn=step_fn)
    with partitioning.gathered_parameters():
      lowered = jax.jit(step).lower(
        states, frozen, partitioning.place_batch(batch), rngs
      )
    program = lowered.compile()
    found, metrics = program(
      states, frozen, partitioning.place_batch(batch), rngs
    )
  assert not collectives.count(program.as_text())
  shards = found.trainable[PROMPT].addressable_shards
  assert [x.data.shape[0] for x in shards] == [1, 1]
  np.testing.assert_allclose(metrics.sums.loss, wanted.sums.loss, rtol=1e-5)
  prompt, wanted_prompt = found.trainable[PROMPT], expected.trainable[PROMPT]
  np.testing.assert_allclose(prompt, wanted_prompt, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
  ("num_trials", "mesh", "expected"),
  [
    (4, {}, True),
    (3, {}, False),
    (1, {}, False),
    (4, {"num_partitions": 2}, False),
    (4, {"parameter_sharding": True}, False),
    (4, {"prompt_sharding": True}, False),
  ],
)
def test_trials_are_divided_where_devices_hold_the_whole_model(
  num_trials, mesh, expected
):
  config = partitioning.MeshConfig(**mesh)
  with jax.set_mesh(partitioning.make_mesh(config)):
    assert divided_trials.is_possible(num_trials, config) is expected
  assert not divided_trials.is_possible(num_trials, config)
