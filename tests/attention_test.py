# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import attention


def test_dropout_drops_a_key_for_all_queries_of_a_head():
  layer = attention.Attention(num_heads=2, head_dim=4)
  x = jax.random.normal(jax.random.key(0), (1, 6, 8))
  variables = layer.init(jax.random.key(1), x, x, None, None)
  dropout = jnp.zeros((1, 2, 1, 6)).at[0, :, 0, 2].set(1.0)
  y = layer.apply(variables, x, x, None, None, dropout=dropout)
  params = variables["params"]
  heads = np.array(y @ np.linalg.inv(params["out"]["kernel"])).reshape(6, 2, 4)
  value = np.array(x[0, 2] @ params["value"]["kernel"]).reshape(2, 4)
  # Each query has the third value, times its weight of it.
  weights = heads / value
  assert (weights > 0).all()
  np.testing.assert_allclose(
    weights, np.broadcast_to(weights[..., :1], weights.shape), rtol=1e-3
  )


def test_a_query_without_a_visible_key_attends_to_all_alike():
  layer = attention.Attention(num_heads=1, head_dim=4)
  x = jax.random.normal(jax.random.key(0), (1, 3, 8))
  mask = jnp.zeros((1, 1, 3, 3), bool)
  variables = layer.init(jax.random.key(1), x, x, mask, None)
  y = layer.apply(variables, x, x, mask, None)
  np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-6)
