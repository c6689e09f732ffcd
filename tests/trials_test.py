# SPDX-License-Identifier: Apache-2.0
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import (
  losses,
  optim,
  prompt_init,
  prompts,
  t5,
  trainer,
  trials,
)

PROMPT = "encoder/prompt/prompt/prompt"
UNIFORM, SAMPLED = prompt_init.random_uniform, prompt_init.sampled_vocab


def expand(**kwargs):
  sweep = trials.Sweep(**kwargs)
  return trials.expand(sweep, seed=5, initial_prompt=UNIFORM)


def test_an_empty_sweep_is_the_run_itself():
  (trial,) = expand()
  assert trial == trials.Trial("", "", 5, None, None, UNIFORM)
  # A task alone is the one that the data loader is bound to.
  assert expand(tasks="a") == [trial]
  (trial,) = expand(seeds=3, learning_rates=0.1, tasks=["a"])
  assert trial == trials.Trial("", "", 3, "a", 0.1, UNIFORM)


def test_trials_are_all_combinations_and_named_by_what_differs():
  found = expand(seeds=(0, 7), learning_rates=[0.1, 0.3], tasks=("a",))
  assert [(x.name, x.group) for x in found] == [
    ("lr_0.1-seed_0", "lr_0.1"),
    ("lr_0.1-seed_7", "lr_0.1"),
    ("lr_0.3-seed_0", "lr_0.3"),
    ("lr_0.3-seed_7", "lr_0.3"),
  ]
  assert [(x.seed, x.learning_rate, x.task) for x in found][1:3] == [
    (7, 0.1, "a"),
    (0, 0.3, "a"),
  ]
  assert [x.name for x in expand(seeds=(1, 2))] == ["seed_1", "seed_2"]
  assert {x.group for x in expand(seeds=(1, 2))} == {""}


def test_initialisers_are_combined_with_tasks_or_named_after_them():
  found = expand(tasks=("a", "b"), initial_prompts={"u": UNIFORM, "s": SAMPLED})
  assert [x.name for x in found] == ["a-u", "a-s", "b-u", "b-s"]
  found = expand(tasks=("a", "b"), initial_prompts={"b": SAMPLED, "a": UNIFORM})
  assert [(x.name, x.initial_prompt) for x in found] == [
    ("a", UNIFORM),
    ("b", SAMPLED),
  ]


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"seeds": (0, 1, 0)}, "SEEDS has 0 twice: name it once"),
    ({"seeds": (0, -1)}, "SEEDS: -1 must be a whole number"),
    ({"learning_rates": (0.1, 0.1)}, "LEARNING_RATES has 0.1 twice"),
    ({"learning_rates": 0.0}, "LEARNING_RATES: 0.0 must be above 0 and"),
    ({"learning_rates": float("inf")}, "LEARNING_RATES: inf must be above 0"),
    ({"tasks": ("a", "a")}, "MIXTURE_OR_TASK_NAME has 'a' twice"),
    ({"initial_prompts": {"a/b": UNIFORM}}, "INITIAL_PROMPTS: 'a/b' names a"),
  ],
)
def test_a_sweep_that_cannot_be_run_is_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    trials.Sweep(**kwargs)


def test_what_describes_trials_is_joined_by_name():
  one, two = {"a": 1, "b": 2}, {"a": 1, "b": 3}
  assert trials.joint(expand(), [one]) == one
  assert trials.joint(expand(seeds=(0, 1)), [one, two]) == {
    "trials": ["seed_0", "seed_1"],
    "a": 1,
    "b": [2, 3],
  }


@pytest.fixture
def model(tiny_config):
  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))


@pytest.fixture
def three(model, golden, tiny_params):
  """States of three prompts, the frozen parameters and the optimizer."""
  params = tiny_params | {PROMPT: golden("trainer_steps")["prompt0"]}
  rules = optim.Partition([([".*/prompt/.*"], optim.adafactor())])
  trainable, frozen = optim.split(params, rules.labels(params))
  optimizer = rules.optimizer(params)
  states = []
  for i in range(3):
    prompt = {PROMPT: trainable[PROMPT] + 0.3 * i}
    states.append(
      trainer.TrainState(jnp.int32(4), prompt, optimizer.init(prompt))
    )
  return states, frozen, optimizer


def step_fns(model, optimizer):
  step_fn = functools.partial(
    trainer.train_step,
    model=model,
    optimizer=optimizer,
    loss=losses.LossConfig(),
  )
  many = functools.partial(trials.train_step, step_fn=step_fn)
  return jax.jit(step_fn), jax.jit(many)


def stacked(batch):
  return jax.tree.map(lambda x: jnp.stack([x, x[::-1], x]), batch)


def test_states_are_stacked_and_taken_apart_again(three):
  states, _, _ = three
  assert trials.stack(states[:1]) is states[0]
  assert trials.unstack(states[0]) == [states[0]]
  assert trials.stopped_at(states[0]) == [-1]
  many = trials.stack(states)
  assert many.trainable[PROMPT].shape == (3, 5, 32)
  assert many.step.shape == ()
  for before, after in zip(states, trials.unstack(many), strict=True):
    jax.tree.map(np.testing.assert_array_equal, before, after)
  one_stopped = many._replace(stopped_at=jnp.array([-1, 9, -1]))
  states = trials.unstack(one_stopped)
  assert [x is None for x in states] == [False, True, False]
  assert trials.stopped_at(one_stopped) == [-1, 9, -1]


def test_a_loss_that_is_not_finite_stops_its_trial_alone(
  model, three, tiny_batch
):
  states, frozen, optimizer = three
  _, many_step_fn = step_fns(model, optimizer)
  rngs = jax.random.split(jax.random.key(0), 3)
  bad = states[1]._replace(trainable={PROMPT: states[1].trainable[PROMPT] / 0})
  many = trials.stack([states[0], bad, states[2]])
  first, metrics = many_step_fn(many, frozen, stacked(tiny_batch), rngs)
  assert first.stopped_at.tolist() == [-1, 5, -1]
  assert np.isfinite(metrics.sums.loss).tolist() == [True, False, True]
  # Even if its loss would be finite again.
  trainable = {PROMPT: first.trainable[PROMPT].at[1].set(0.5)}
  second, metrics = many_step_fn(
    first._replace(trainable=trainable), frozen, stacked(tiny_batch), rngs
  )
  assert second.stopped_at.tolist() == [-1, 5, -1]
  np.testing.assert_array_equal(second.trainable[PROMPT][1], 0.5)
  before, after = (
    jax.tree.map(lambda x: x[1], x.opt_state) for x in (many, second)
  )
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert np.isnan(metrics.sums.num_real).tolist() == [False, True, False]
  # Its neighbours have the bits that they have beside a sound one.
  sound = trials.stack(states)
  for _ in range(2):
    sound, _ = many_step_fn(sound, frozen, stacked(tiny_batch), rngs)
  assert sound.stopped_at.tolist() == [-1, -1, -1]
  assert second.step == sound.step == 6
  for i in (0, 2):
    np.testing.assert_array_equal(
      second.trainable[PROMPT][i], sound.trainable[PROMPT][i]
    )


def test_parameters_that_are_not_finite_stop_their_trial_too(
  model, three, tiny_batch
):
  states, frozen, optimizer = three
  rate = optim.with_learning_rate(states[1].opt_state, 1e39)
  many = trials.stack([states[0], states[1]._replace(opt_state=rate)])
  _, many_step_fn = step_fns(model, optimizer)
  rngs = jax.random.split(jax.random.key(0), 2)
  batch = jax.tree.map(lambda x: jnp.stack([x, x]), tiny_batch)
  new, metrics = many_step_fn(many, frozen, batch, rngs)
  assert np.isfinite(metrics.sums.loss).all()
  assert np.isfinite(metrics.trainable_rms).tolist() == [True, False]
  assert new.stopped_at.tolist() == [-1, 5]
  before, after = many.trainable[PROMPT], new.trainable[PROMPT]
  np.testing.assert_array_equal(after[1], before[1])
  assert not np.array_equal(after[0], before[0])


def test_each_trial_equals_a_step_of_its_own(model, three, tiny_batch):
  states, frozen, optimizer = three
  step_fn, many_step_fn = step_fns(model, optimizer)
  rngs = jax.random.split(jax.random.key(0), 3)
  many, metrics = many_step_fn(
    trials.stack(states), frozen, stacked(tiny_batch), rngs
  )
  for i, state in enumerate(states):
    batch = jax.tree.map(lambda x, i=i: x[i], stacked(tiny_batch))
    expected, own_metrics = step_fn(state, frozen, batch, rngs[i])
    np.testing.assert_allclose(
      many.trainable[PROMPT][i], expected.trainable[PROMPT], atol=1e-4
    )
    jax.tree.map(
      lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4),
      metrics,
      own_metrics,
    )


def test_no_frozen_matrix_is_multiplied_or_copied_once_per_trial(
  model, three, tiny_batch
):
  """In the compiled step no array has a trial axis in front of a matrix."""
  states, frozen, optimizer = three
  _, many_step_fn = step_fns(model, optimizer)
  rngs = jax.random.split(jax.random.key(0), 3)
  text = (
    many_step_fn.lower(trials.stack(states), frozen, stacked(tiny_batch), rngs)
    .compile()
    .as_text()
  )
  kernels = [x.shape for name, x in frozen.items() if name.endswith("kernel")]
  assert len(kernels) > 20
  found = set(re.findall(r"f32\[([\d,]+)\]", text))
  for shape in kernels:
    for sides in (shape, shape[::-1]):
      assert ",".join(map(str, (3, *sides))) not in found
    assert {",".join(map(str, x)) for x in (shape, shape[::-1])} & found


def test_learning_rates_are_of_each_trial(model, three, tiny_batch):
  states, frozen, optimizer = three
  rates = [0.1, 0.3, 1.0]
  states = [
    x._replace(
      trainable=states[0].trainable,
      opt_state=optim.with_learning_rate(x.opt_state, rate),
    )
    for x, rate in zip(states, rates, strict=True)
  ]
  _, many_step_fn = step_fns(model, optimizer)
  batch = jax.tree.map(lambda x: jnp.stack([x, x, x]), tiny_batch)
  rngs = jnp.stack([jax.random.key(0)] * 3)
  new, metrics = many_step_fn(trials.stack(states), frozen, batch, rngs)
  np.testing.assert_allclose(metrics.learning_rate, rates)
  moved = new.trainable[PROMPT] - states[0].trainable[PROMPT][None]
  # A decay of 1e-5 of the prompt is the same for all.
  np.testing.assert_allclose(moved[1], 3 * moved[0], atol=1e-4)
  np.testing.assert_allclose(moved[2], 10 * moved[0], atol=1e-3)


def test_batches_are_stacked_in_order():
  batches = [iter([{"x": np.full((2, 3), i)}] * 2) for i in (4, 5)]
  (first, second) = trials.stack_batches(batches)
  np.testing.assert_array_equal(first["x"][:, 0, 0], [4, 5])
  assert second["x"].shape == (2, 2, 3)


@pytest.mark.parametrize(
  "optimizer",
  [
    optim.adafactor(lambda step: 0.1),
    optax.sgd(0.1),
    optax.chain(optim.adafactor(), optim.adafactor()),
  ],
  ids=["schedule", "sgd", "two"],
)
def test_learning_rates_need_one_constant_to_replace(optimizer):
  state = optimizer.init({"x": jnp.ones((2, 3))})
  with pytest.raises(ValueError, match="LEARNING_RATES needs an optimizer wit"):
    optim.with_learning_rate(state, 0.1)
