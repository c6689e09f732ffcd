# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from products import products
import pytest

from prompt_tuning import attention, quantization, t5, unprojected_attention

B, Q, N, D, H, K = 2, 3, 13, 24, 4, 8


def example():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(B, Q, D)), jnp.float32)
  features = jnp.asarray(rng.normal(size=(B, N, D)), jnp.float32)
  layer = attention.Attention(H, K)
  variables = layer.init(jax.random.key(0), x, features, None, None)
  return x, features, variables["params"]


def masks(kind):
  lengths = jnp.array([5, N])
  by_length = jnp.arange(N)[None, None, None] < lengths[:, None, None, None]
  if kind == "none":
    return {}
  if kind == "keys":
    return {"mask": by_length}
  if kind == "lengths":
    return {"lengths": lengths}
  of_queries = np.ones((B, 1, Q, 1), bool)
  of_queries[1, :, 1:] = False  # They see nothing, or all alike.
  return {"mask": by_length & of_queries}


def projected(monkeypatch):
  monkeypatch.setattr(unprojected_attention, "is_cheaper", lambda *_: False)


def total(params, x, features, *, mask=None, **options):
  settings = options.pop("settings", {})
  layer = attention.Attention(H, K, **settings)
  y = layer.apply({"params": params}, x, features, mask, None, **options)
  return jnp.sum(jnp.sin(y).astype(jnp.float32)), y


def differentiated(*arguments, **options):
  with_gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
  return with_gradients(*arguments, **options)


@pytest.mark.parametrize(
  ("kind", "dropped"), [("none", False), ("keys", True), ("pairs", True)]
)
def test_values_and_gradients_are_those_of_keys_and_values(
  monkeypatch, kind, dropped
):
  x, features, params = example()
  options = masks(kind)
  if dropped:
    dropped = np.random.default_rng(1).choice([0, 2.0], (B, H, 1, N))
    options["dropout"] = jnp.asarray(dropped, jnp.float32)
  found = differentiated(params, x, features, **options)
  projected(monkeypatch)
  expected = differentiated(params, x, features, **options)
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_lengths_are_a_mask():
  x, features, params = example()
  _, found = total(params, x, features, **masks("lengths"))
  _, expected = total(params, x, features, **masks("keys"))
  np.testing.assert_array_equal(found, expected)
  _, found = total(params, x, features, lengths=jnp.array([0, N]))
  _, expected = total(params, x, features, lengths=jnp.array([1, N]))
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_kernels_may_have_8_bits(monkeypatch, kind):
  x, features, params = example()
  names = {
    f"encoder/layers_0/{k}/kernel": v["kernel"] for k, v in params.items()
  }
  rounded = quantization.quantize(jax.tree.map(jnp.copy, names), kind)
  params = {}
  for name, value in rounded.items():
    _, _, module, leaf = name.split("/")
    params.setdefault(module, {})[leaf] = value
  _, found = total(params, x, features)
  projected(monkeypatch)
  _, expected = total(params, x, features)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("float32_logits", [False, True])
def test_16_bits_are_no_less_exact_than_with_keys(monkeypatch, float32_logits):
  x, features, params = example()
  _, exact = total(params, x, features)
  settings = {"dtype": jnp.bfloat16, "float32_logits": float32_logits}
  _, found = total(params, x, features, settings=settings)
  projected(monkeypatch)
  _, plain = total(params, x, features, settings=settings)
  assert found.dtype == plain.dtype == jnp.bfloat16
  error = lambda y: np.linalg.norm(np.asarray(y, np.float32) - exact)
  assert error(found) < 1.2 * error(plain)
  assert error(found) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("float32_logits", [False, True])
def test_logits_are_of_float32_if_that_is_wanted(float32_logits):
  x, features, params = example()
  settings = {"dtype": jnp.bfloat16, "float32_logits": float32_logits}
  call = functools.partial(total, settings=settings)
  (dtype,) = [
    dtype
    for shape, dtype in products(call, params, x, features)
    if shape == (B, Q, H, 16)
  ]
  assert dtype == (jnp.float32 if float32_logits else jnp.bfloat16)


@pytest.mark.parametrize("remat", ["none", "minimal"])
def test_logits_are_not_computed_again(tiny_config, tiny_params, remat):
  config = dataclasses.replace(tiny_config, remat=remat)
  model = t5.Transformer(config)
  params = traverse_util.unflatten_dict(tiny_params, sep="/")
  tokens = jnp.ones((B, 13), jnp.int32)

  def loss(params):
    few = tokens[:, :Q]
    logits = model.apply(
      {"params": params}, tokens, few, few, enable_dropout=False
    )
    return jnp.sum(logits)

  shapes = [shape for shape, _ in products(jax.grad(loss), params)]
  # Forward, and the gradient of the weights, in three layers.
  assert shapes.count((B, Q, config.num_heads, 16)) == 2 * 3


def test_no_feature_is_projected(monkeypatch):
  x, features, params = example()
  gradient = lambda: jax.grad(lambda *a: total(*a)[0], argnums=(1, 2))
  shapes = [s for s, _ in products(gradient(), params, x, features)]
  assert (B, N, H * K) not in shapes
  # For the features themselves there are two, over queries and heads.
  assert shapes.count((B, 16, D)) == 2
  projected(monkeypatch)
  shapes = [s for s, _ in products(gradient(), params, x, features)]
  assert shapes.count((B, N, H * K)) == 2


@pytest.mark.parametrize(("queries", "is_cheaper"), [(32, True), (33, False)])
def test_many_queries_have_keys_and_values(queries, is_cheaper):
  assert unprojected_attention.is_cheaper(queries, 64) is is_cheaper
