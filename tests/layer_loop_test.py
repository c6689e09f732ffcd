# SPDX-License-Identifier: Apache-2.0
"""That the layers of a stack are traced as one, and compute what they did."""

import dataclasses
import functools
import re

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import layer_loop, t5, t5_config

CONFIG = t5.T5Config(
  vocab_size=32,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=4,
  num_decoder_layers=3,
  head_dim=4,
  mlp_dim=16,
  dropout_rate=0.5,
)
MODEL = t5.Transformer(CONFIG)
TOKENS = jnp.array([[3, 4, 5], [6, 7, 0]])


@pytest.fixture(scope="module", name="params")
def _params():
  rng = jax.random.key(0)
  return MODEL.init(rng, TOKENS, TOKENS, TOKENS, enable_dropout=False)["params"]


def loss(params, mutable, remat="none"):
  """Sums logits; with something mutable every layer is traced on its own."""
  model = MODEL.clone(config=dataclasses.replace(CONFIG, remat=remat))
  arguments = {"params": params}, TOKENS, TOKENS, TOKENS
  rngs = {"dropout": jax.random.key(1)}
  logits, _ = model.apply(*arguments, rngs=rngs, mutable=mutable)
  return jnp.sum(logits**2)


def num_functions(params, mutable, remat="none"):
  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=(1, 2))
  text = gradient.lower(params, mutable, remat).as_text()
  names = re.findall(r"func\.func private @(one_layer\w*)", text)
  num_calls = len(re.findall(r"call @one_layer", text))
  return len(names), num_calls


@pytest.mark.parametrize("remat", t5_config.REMAT)
def test_layers_of_a_stack_are_one_function(params, remat):
  # Forward and backward.
  assert num_functions(params, (), remat) == (4, 14)


def test_layers_that_may_write_are_none(params):
  assert num_functions(params, ("cache",)) == (0, 0)


def test_every_layer_has_its_own_parameters_and_dropout(params):
  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  together, alone = (gradient(params, mutable) for mutable in ((), ("cache",)))
  check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(check, together, alone)


class Doubled(nn.Module):
  """Doubles its input, at first, and adds its factors."""

  config: t5.T5Config

  @nn.compact
  def __call__(self, x, own):
    return self.param("scale", lambda _: 2.0) * x + own["place"]


class Stack(nn.Module):
  @nn.compact
  def __call__(self, x, factors):
    apply = lambda layer, x, own: layer(x, own)
    return layer_loop.run_layers(self, Doubled, 3, apply, x, CONFIG, factors)


def test_every_layer_is_given_its_own_factors():
  x, factors = jnp.zeros((1, 1, 1)), {"place": jnp.array([1.0, 10.0, 100.0])}
  found, variables = Stack().init_with_output(jax.random.key(0), x, factors)
  assert found == ((1 * 2) + 10) * 2 + 100
  assert jax.jit(Stack().apply)(variables, x, factors) == found


def test_a_call_that_is_not_compiled_compiles_no_layer():
  found = []

  def function(x):
    found.append(layer_loop._is_compiled(x))
    return jnp.sum(x**2)

  x = jnp.ones((1, 1, 1))
  function(x)
  jax.grad(function)(x)
  assert found == [False, False]
  jax.jit(function)(x)
  jax.jit(jax.grad(function))(x)
  assert found[2:] == [True, True]


def test_a_missing_parameter_is_named(params):
  encoder = dict(params["encoder"])
  del encoder["layers_3"]
  run = functools.partial(loss, mutable=())
  with pytest.raises(flax.errors.ScopeParamNotFoundError, match="layers_3/"):
    jax.eval_shape(run, params | {"encoder": encoder})
