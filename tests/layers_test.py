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
