# SPDX-License-Identifier: Apache-2.0
import functools
import inspect
import json

import as_in_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
from paths import GOLDENS
import pytest

from prompt_tuning import optim

CASES = json.loads((GOLDENS / "adafactor.json").read_text())
TRAJECTORIES = [name for name, case in CASES.items() if "optax" in case]
SCHEDULES = [name for name in CASES if name.startswith("lr/")]
NAMES = [
  "decoder/prompt/prompt/prompt",
  "encoder/prompt/prompt/prompt",
  "encoder/prompt",
  "token_embedder/embedding",
]
SGD = optax.sgd(1.0)


def adafactor_of(case):
  """The optimizer with the hyper-parameters that a golden was made with."""
  settings = {"decay_offset": -case["start_step"], "weight_decay_rate": None}
  names = inspect.signature(optim.adafactor).parameters
  for key, value in case["optax"].items():
    if key in names and key != "decay_offset":
      settings[key] = value
  return optim.adafactor(**settings)


def trajectory(optimizer, params, grads):
  def step(carry, grads):
    params, opt_state = carry
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, opt_state), params

  run = as_in_runs.jit(functools.partial(jax.lax.scan, step))
  (_, opt_state), params = run((params, optimizer.init(params)), grads)
  return params, opt_state


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_adafactor_equals_t5x(golden, name):
  arrays, case = golden("adafactor"), CASES[name]
  params, opt_state = trajectory(
    adafactor_of(case), arrays[f"{name}/param0"], arrays[f"{name}/grads"]
  )
  expected = arrays[f"{name}/params"]
  if len(expected) == 2:  # Only the first and the last were kept.
    params = params[jnp.array([0, -1])]
  atol = 5e-6 if case["learning_rate"] == 0.3 else 2e-7
  np.testing.assert_allclose(params, expected, atol=atol, rtol=0)
  factored = optax.tree.get(opt_state, "v_row").size > 1
  assert factored == case["factored_in_fact"]


def test_stacked_layers_are_optimized_one_by_one_as_in_t5x(golden):
  arrays = golden("adafactor")
  optimizer = optim.adafactor(
    1e-3,
    multiply_by_parameter_scale=True,
    weight_decay_rate=None,
    min_dim_size_to_factor=16,
  )
  run = lambda params, grads: trajectory(optimizer, params, grads)[0]
  params = jax.vmap(run, in_axes=(1, 2), out_axes=2)(
    arrays["scanned_3d/param0"], arrays["scanned_3d/grads"]
  )
  np.testing.assert_allclose(
    params, arrays["scanned_3d/params"], atol=2e-7, rtol=0
  )


def test_first_updates_are_those_worked_out_by_hand():
  # The first step's second moment is the squared gradient: each element moves
  # by the rate. Then it decays by 1 - 2**-0.8 = 0.4257, and the update is
  # 0.1 / sqrt(0.4257 * 1 + 0.5743 * 0.01) = 0.1522 of the rate.
  optimizer = optim.adafactor(0.3, weight_decay_rate=None)
  params, _ = trajectory(
    optimizer, jnp.zeros((1, 2)), jnp.array([[[1.0, -1.0]], [[0.1, -0.1]]])
  )
  np.testing.assert_allclose(params[0], [[-0.3, 0.3]], rtol=1e-6)
  moved = 0.3 * 0.1 / np.sqrt((1 - 2**-0.8) + 2**-0.8 * 0.01)
  np.testing.assert_allclose(
    params[1], [[-0.3 - moved, 0.3 + moved]], rtol=1e-5
  )


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_equal_t5x(golden, name):
  arrays = golden("adafactor")
  schedule = optim.learning_rate_schedule(**CASES[name])
  rates = [schedule(step) for step in arrays["lr/steps"]]
  np.testing.assert_allclose(rates, arrays[name], rtol=1e-6)


def test_step_decay_multiplies_each_period():
  schedule = optim.learning_rate_schedule(
    "constant * decay_every",
    base_learning_rate=0.4,
    decay_factor=0.5,
    steps_per_decay=10,
  )
  rates = [float(schedule(step)) for step in (0, 9, 10, 25)]
  np.testing.assert_allclose(rates, [0.4, 0.4, 0.2, 0.1], rtol=1e-6)


def test_the_current_learning_rate_is_in_the_state():
  optimizer = optim.adafactor(
    optim.learning_rate_schedule("constant * linear_warmup", warmup_steps=4)
  )
  _, opt_state = trajectory(optimizer, jnp.ones(3), jnp.ones((3, 3)))
  rate = optim.current_learning_rate(opt_state)
  np.testing.assert_allclose(rate, 0.3 * 2 / 4, rtol=1e-6)


def test_regexes_match_whole_paths_as_in_t5x():
  for path, is_trained in CASES["trainable_filter"].items():
    names = {path.removeprefix("/"), "other/prompt/prompt"}
    labels = optim.Partition([([".*/prompt/.*"], SGD)]).labels(names)
    assert (path.removeprefix("/") in labels) == is_trained


def test_the_first_matching_rule_wins_and_the_rest_is_frozen():
  sgd = optax.sgd(2.0)
  partition = optim.Partition(
    [([".*/prompt/.*"], SGD), (["/encoder/.*", ".*embedding"], sgd)]
  )
  names = [*NAMES, "decoder/scale"]
  labels = partition.labels(names)
  assert labels == dict(zip(NAMES, [0, 0, 1, 1], strict=True))
  params = dict.fromkeys(names, jnp.ones(()))
  trainable, frozen = optim.split(params, labels)
  assert list(trainable) == NAMES
  assert list(frozen) == ["decoder/scale"]
  optimizer = partition.optimizer(names)
  updates, _ = optimizer.update(trainable, optimizer.init(trainable))
  assert [float(updates[name]) for name in NAMES] == [-1, -1, -2, -2]


@pytest.mark.parametrize(
  ("regex", "message"),
  [
    (".*/promtp/.*", r"'\.\*/promtp/\.\*' matches no parameter.*prompt"),
    ("encoder/prompt", r"whole path such as /encoder/prompt"),
    ("(", r"'\(' is no regular expression"),
  ],
)
def test_a_useless_regex_is_refused(regex, message):
  with pytest.raises(ValueError, match=message):
    optim.Partition([([regex], SGD)]).labels(NAMES)


def test_an_unknown_factor_is_refused():
  with pytest.raises(ValueError, match="'cosine' must be one of"):
    optim.learning_rate_schedule("constant * cosine")


def test_each_rule_has_a_learning_rate():
  params = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(3)}
  rules = [
    (["/a"], optax.sgd(0.1)),
    (["/b"], optim.adafactor(0.5)),
    (["/c"], optim.adafactor(0.25)),
  ]
  opt_state = optim.Partition(rules).optimizer(params).init(params)
  assert [float(x) for x in optim.learning_rates(opt_state)] == [0.5, 0.25]
  assert float(optim.current_learning_rate(opt_state)) == 0.5


def test_a_warm_up_of_no_step_is_refused():
  with pytest.raises(ValueError, match="WARMUP_STEPS=0 must be 1 or more"):
    optim.learning_rate_schedule("constant * linear_warmup", warmup_steps=0)


def test_an_offset_that_makes_the_first_steps_nan_is_refused():
  with pytest.raises(ValueError, match="decay_offset=1 must be 0 or less"):
    optim.adafactor(decay_offset=1)


def test_a_partition_of_a_model_without_a_prompt_says_so():
  with pytest.raises(ValueError, match="no prompt: add a file of gin/prompts"):
    optim.Partition([([".*/prompt/.*"], SGD)]).labels({"encoder/kernel"})
