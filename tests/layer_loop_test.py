# SPDX-License-Identifier: Apache-2.0
"""That the layers of a stack are traced as one, and compute what they did."""

import functools
import re

from fast_jit import fast_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import layer_loop, t5

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


def loss(params, mutable):
  """Sums logits; with something mutable every layer is traced on its own."""
  arguments = {"params": params}, TOKENS, TOKENS, TOKENS
  rngs = {"dropout": jax.random.key(1)}
  logits, _ = MODEL.apply(*arguments, rngs=rngs, mutable=mutable)
  return jnp.sum(logits**2)


def num_functions(params, mutable):
  text = jax.jit(loss, static_argnums=1).lower(params, mutable).as_text()
  names = re.findall(r"func\.func private @(one_layer\w*)", text)
  num_calls = len(re.findall(r"call @one_layer", text))
  return len(names), num_calls


def test_layers_of_a_stack_are_one_function(params):
  assert num_functions(params, ()) == (2, 7)
  assert num_functions(params, ("cache",)) == (0, 0)


def test_every_layer_has_its_own_parameters_and_dropout(params):
  gradient = fast_jit(jax.value_and_grad(loss), static_argnums=1)
  together, alone = (gradient(params, mutable) for mutable in ((), ("cache",)))
  check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(check, together, alone)


@pytest.mark.slow
def test_a_gradient_that_is_not_compiled_compiles_no_layer(params, monkeypatch):
  monkeypatch.setattr(layer_loop, "_traced_once", lambda *_: None)
  assert jax.tree.leaves(jax.grad(loss)(params, ()))
