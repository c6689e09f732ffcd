# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from products import products
import pytest

from prompt_tuning import fingerprint, losses, optim, prompts, t5, trainer

PROMPT = "encoder/prompt/prompt/prompt"


@pytest.fixture
def model(tiny_config):
  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))


@pytest.fixture
def params(golden, tiny_params):
  return tiny_params | {PROMPT: golden("trainer_steps")["prompt0"]}


def partition(regex=".*/prompt/.*", **kwargs):
  return optim.Partition([([regex], optim.adafactor(**kwargs))])


def start(params, rules, step=0):
  labels = rules.labels(params)
  trainable, frozen = optim.split(params, labels)
  optimizer = rules.optimizer(params)
  state = trainer.TrainState(
    jnp.int32(step), trainable, optimizer.init(trainable)
  )
  return state, frozen, optimizer


LOSS = losses.LossConfig()


def jitted_step(model, optimizer, loss=LOSS, **kwargs):
  return jax.jit(
    functools.partial(
      trainer.train_step, model=model, optimizer=optimizer, loss=loss, **kwargs
    )
  )


@pytest.mark.parametrize(
  ("case", "microbatches", "offset", "factor"),
  [
    ("plain", 1, 0, None),
    ("microbatches_3", 3, 0, None),
    ("from_step_1100000", 1, -1_100_000, None),
    ("normalized_by_real_tokens", 1, 0, "NUM_REAL_TARGET_TOKENS"),
    (
      "microbatches_3_normalized_by_real_tokens",
      3,
      0,
      "NUM_REAL_TARGET_TOKENS",
    ),
  ],
)
def test_five_steps_equal_t5x(
  golden, model, params, case, microbatches, offset, factor
):
  arrays = golden("trainer_steps")
  loss = losses.LossConfig(normalizing_factor=factor)
  state, frozen, optimizer = start(params, partition(decay_offset=offset))
  step_fn = jitted_step(model, optimizer, loss, num_microbatches=microbatches)
  for i in range(5):
    batch = {
      name.removeprefix("batches/"): x[i]
      for name, x in arrays.items()
      if name.startswith("batches/")
    }
    state, metrics = step_fn(state, frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(
      state.trainable[PROMPT],
      arrays[f"{case}/prompt_after_step"][i],
      atol=1e-5 if i == 0 else 1e-3,
      rtol=0,
    )
    expected = lambda name, i=i: arrays[f"{case}/train_metric/{name}"][i]
    sums = metrics.sums
    np.testing.assert_allclose(sums.loss, expected("loss"), rtol=1e-3)
    np.testing.assert_allclose(sums.z_loss, expected("z_loss"), rtol=1e-3)
    np.testing.assert_allclose(
      sums.num_correct / sums.weights, expected("accuracy"), rtol=1e-5
    )
    np.testing.assert_allclose(metrics.learning_rate, expected("learning_rate"))
  assert state.step == 5


@pytest.mark.parametrize("kind", ["plain", "prompted"])
def test_gradients_of_every_parameter_equal_t5x(
  golden, model, params, tiny_params, tiny_batch, kind
):
  arrays = golden("gradients_and_layers")
  if kind == "plain":
    model, params = model.clone(prompt=None), tiny_params
  else:
    params[PROMPT] = golden("prompted_t5_1_1_tiny")["prompt"]
  grad_fn = jax.value_and_grad(trainer.loss_fn, has_aux=True)
  loss_fn = functools.partial(grad_fn, model=model, loss=losses.LossConfig())
  (loss, _), grads = jax.jit(loss_fn)(params, {}, tiny_batch, None)
  np.testing.assert_allclose(loss, arrays[f"{kind}/loss"], atol=1e-3)
  assert len(grads) == sum(x.startswith(f"{kind}/grads/") for x in arrays)
  for name, grad in grads.items():
    np.testing.assert_allclose(
      grad,
      arrays[f"{kind}/grads/{name}"],
      atol=1e-3,
      rtol=1e-4,
      err_msg=name,
    )


def test_only_what_the_partition_names_changes(model, params, tiny_batch):
  rules = partition(".*/prompt/.*|.*/relpos_bias/.*")
  state, frozen, optimizer = start(params, rules)
  names = set(state.trainable)
  assert names == {
    PROMPT,
    "encoder/relpos_bias/rel_embedding",
    "decoder/relpos_bias/rel_embedding",
  }
  before = fingerprint.fingerprint(frozen)
  step_fn = jitted_step(model, optimizer)
  state, _ = step_fn(state, frozen, tiny_batch, jax.random.key(0))
  assert fingerprint.fingerprint(frozen) == before
  for name in names:
    assert np.abs(state.trainable[name] - params[name]).max() > 0.1
  opt_leaves = jax.tree.leaves(state.opt_state)
  assert sum(x.size for x in opt_leaves) < 2 * sum(
    x.size for x in state.trainable.values()
  )


def test_fingerprint_sees_one_flipped_bit_and_names(params):
  before = fingerprint.fingerprint(params)
  name = "decoder/logits_dense/kernel"
  bits = params[name].view(jnp.uint32)
  flipped = bits.at[3, 4].set(bits[3, 4] ^ 1).view(jnp.float32)
  assert fingerprint.fingerprint(params | {name: flipped}) != before
  swapped = params[name].at[0].set(params[name][1]).at[1].set(params[name][0])
  assert fingerprint.fingerprint(params | {name: swapped}) != before
  renamed = {f"x{name}": x for name, x in params.items()}
  assert fingerprint.fingerprint(renamed) != before
  sharding = jax.sharding.NamedSharding(
    jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec(None, "data")
  )
  sharded = jax.device_put(params[name], sharding)
  assert fingerprint.fingerprint(params | {name: sharded}) == before


def weight_gradient_dots(model, params, batch, regex):
  """Counts the products of a step that make a weight's shape."""
  state, frozen, optimizer = start(params, partition(regex))
  step_fn = jitted_step(model, optimizer)
  computed = products(step_fn, state, frozen, batch, jax.random.key(0))
  kernels = {
    shape
    for x in params.values()
    if x.ndim == 2
    for shape in (x.shape, x.shape[::-1])
  }
  return sum(shape in kernels for shape, _ in computed)


def test_a_prompt_only_step_computes_no_weight_gradient(model, params):
  # Sizes at which no activation has the shape of a kernel.
  batch = {
    "encoder_input_tokens": jnp.ones((3, 13), jnp.int32),
    "decoder_input_tokens": jnp.ones((3, 7), jnp.int32),
    "decoder_target_tokens": jnp.ones((3, 7), jnp.int32),
    "decoder_loss_weights": jnp.ones((3, 7), jnp.int32),
  }
  assert weight_gradient_dots(model, params, batch, ".*/prompt/.*") == 0
  num_kernels = sum(name.endswith("/kernel") for name in params)
  assert weight_gradient_dots(model, params, batch, ".*") >= num_kernels


def test_dropout_differs_by_step_and_repeats_by_seed(model, params, tiny_batch):
  config = dataclasses.replace(model.config, dropout_rate=0.3)
  model = model.clone(config=config)
  state, frozen, optimizer = start(params, partition())
  step_fn = jitted_step(model, optimizer)
  run = lambda step, seed: (
    step_fn(
      state._replace(step=jnp.int32(step)),
      frozen,
      tiny_batch,
      jax.random.key(seed),
    )[1].sums.loss
  )
  assert run(0, 0) == run(0, 0)
  assert len({float(run(*x)) for x in [(0, 0), (1, 0), (0, 1)]}) == 3


def test_loss_falls_on_a_fixed_problem(model, params, tiny_batch):
  state, frozen, optimizer = start(params, partition())
  step_fn = jitted_step(model, optimizer)
  loss = []
  for _ in range(30):
    state, metrics = step_fn(state, frozen, tiny_batch, jax.random.key(0))
    loss.append(float(metrics.sums.loss))
  np.testing.assert_allclose(loss[0], 113.133, atol=1e-2)
  assert min(loss) < loss[0] / 2


def test_an_sgd_partition_has_no_learning_rate_to_report():
  state = optax.sgd(0.1).init({"x": jnp.ones(())})
  assert np.isnan(optim.current_learning_rate(state))


@pytest.mark.parametrize("min_dim", [128, 4], ids=["whole", "factored"])
def test_clipping_is_told_from_the_second_moment(min_dim):
  """The share agrees with optax's own scaled update, before it is clipped."""
  params = {"a": jnp.zeros((5, 6)), "b": jnp.zeros((6, 5)), "c": jnp.zeros(7)}
  scale = optax.scale_by_factored_rms(min_dim_size_to_factor=min_dim)
  optimizer = optim.adafactor(min_dim_size_to_factor=min_dim)
  state, scale_state = optimizer.init(params), scale.init(params)
  shares = []
  for i, factor in enumerate([1.0, 0.1, 3.0]):
    rng = np.random.default_rng(i)
    grads = {
      name: jnp.float32(
        rng.normal(size=x.shape) * (factor if name != "c" else 1 / factor)
      )
      for name, x in params.items()
    }
    scaled, scale_state = scale.update(grads, scale_state, params)
    _, state = optimizer.update(grads, state, params)
    expected = np.mean([float(jnp.mean(x**2)) > 1 for x in scaled.values()])
    shares.append(float(optim.clipped_share(grads, state)))
    assert shares[-1] == pytest.approx(expected)
  assert len(set(shares)) > 1


def test_a_step_reports_root_mean_squares(model, params, tiny_batch):
  state, frozen, optimizer = start(params, partition())
  step_fn = jitted_step(model, optimizer)
  new, metrics = step_fn(state, frozen, tiny_batch, jax.random.key(0))
  prompt = np.asarray(new.trainable[PROMPT])
  np.testing.assert_allclose(
    metrics.trainable_rms, np.sqrt(np.mean(prompt**2)), rtol=1e-6
  )
  np.testing.assert_allclose(
    metrics.grad_rms, metrics.grad_norm / np.sqrt(prompt.size), rtol=1e-6
  )
  sgd = optax.sgd(0.1).init(state.trainable)
  assert np.isnan(optim.clipped_share(state.trainable, sgd))


@pytest.mark.parametrize(
  ("capability", "quantization", "restricts"),
  [
    ("9.0", "float8_products", True),
    ("9.0", "float8", False),
    ("8.0", "float8_products", False),
  ],
)
def test_only_cublas_is_tried_for_products_in_e4m3(
  tiny_config, monkeypatch, capability, quantization, restricts
):
  config = dataclasses.replace(tiny_config, quantization=quantization)
  assert not trainer.compiler_options(config)
  gpu = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "devices", lambda: [gpu])
  backends = trainer.compiler_options(config).get(
    "xla_gpu_experimental_autotune_backends", "TRITON"
  )
  assert ("TRITON" not in backends) == restricts
