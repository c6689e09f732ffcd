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


def test_of_an_mlp_the_products_alone_are_kept():
  mlp = layers.MLP(16, ("gelu", "linear"))
  x, dropout = jnp.ones((2, 3, 8)), jnp.ones((2, 1, 16))
  variables = mlp.init(jax.random.key(0), x)
  _, gradient = jax.vjp(lambda x: mlp.apply(variables, x, dropout), x)
  shapes = [x.shape for x in jax.tree.leaves(gradient)]
  assert shapes.count((2, 3, 16)) == 2
