# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import layers


def test_norm_divides_by_the_root_mean_square():
  norm = layers.RMSNorm()
  x = jnp.array([[3.0, -4.0]])
  variables = norm.init(jax.random.key(0), x)
  expected = [[3 / np.sqrt(12.5), -4 / np.sqrt(12.5)]]
  np.testing.assert_allclose(norm.apply(variables, x), expected, rtol=1e-6)


def test_attention_weights_are_dropped_for_all_queries_of_a_head_at_once():
  attention = layers.Attention(num_heads=2, head_dim=4, dropout_rate=0.5)
  x = jnp.tile(jax.random.normal(jax.random.key(0), (1, 1, 8)), (1, 6, 1))
  variables = attention.init(
    jax.random.key(1), x, x, None, None, deterministic=True
  )
  y = attention.apply(
    variables,
    x,
    x,
    None,
    None,
    deterministic=False,
    rngs={"dropout": jax.random.key(2)},
  )
  # All positions are alike, so that only a mask per query could tell them
  # apart.
  np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-6)


def test_a_query_without_a_visible_key_attends_to_all_alike():
  attention = layers.Attention(num_heads=1, head_dim=4)
  x = jax.random.normal(jax.random.key(0), (1, 3, 8))
  mask = jnp.zeros((1, 1, 3, 3), bool)
  variables = attention.init(
    jax.random.key(1), x, x, mask, None, deterministic=True
  )
  y = attention.apply(variables, x, x, mask, None, deterministic=True)
  np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-6)
