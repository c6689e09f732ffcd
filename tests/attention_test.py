# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import attention, flash_attention


@pytest.mark.parametrize("lengths", [None, jnp.array([6])])
def test_dropout_drops_a_key_for_all_queries_of_a_head(lengths, monkeypatch):
  layer = attention.Attention(num_heads=2, head_dim=4)
  x = jax.random.normal(jax.random.key(0), (1, 6, 8))
  variables = layer.init(jax.random.key(1), x, x, None, None)
  dropout = jnp.zeros((1, 2, 1, 6)).at[0, :, 0, 2].set(1.0)
  seen = []
  attend = lambda query, key, value, bias, lengths: seen.append(value) or query
  monkeypatch.setattr(flash_attention, "attend", attend)
  y = layer.apply(variables, x, x, None, None, lengths=lengths, dropout=dropout)
  if lengths is not None:  # The kernel knows no dropout: its values do.
    assert not np.delete(seen[0], 2, axis=1).any()
    assert seen[0][:, 2].all()
    return
  # Each query has the third value, times its weight of it.
  heads = np.array(y @ np.linalg.inv(variables["params"]["out"]["kernel"]))
  for head in heads[0].reshape(6, 2, 4).swapaxes(0, 1):
    assert np.linalg.matrix_rank(head, tol=1e-4) == 1


def test_a_query_without_a_visible_key_attends_to_all_alike():
  layer = attention.Attention(num_heads=1, head_dim=4)
  x = jax.random.normal(jax.random.key(0), (1, 3, 8))
  mask = jnp.zeros((1, 1, 3, 3), bool)
  variables = layer.init(jax.random.key(1), x, x, mask, None)
  y = layer.apply(variables, x, x, mask, None)
  np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-6)
