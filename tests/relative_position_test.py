# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import relative_position


@pytest.mark.parametrize(
  ("name", "bidirectional", "sizes"),
  [
    ("bidirectional_32_128", True, (32, 128)),
    ("causal_32_128", False, (32, 128)),
    ("bidirectional_4_8", True, (4, 8)),
    ("causal_4_8", False, (4, 8)),
  ],
)
def test_buckets_equal_t5x(golden, name, bidirectional, sizes):
  arrays = golden("relative_position_buckets")
  buckets = relative_position.buckets(
    np.asarray(arrays["relative_position"]),
    bidirectional=bidirectional,
    num_buckets=sizes[0],
    max_distance=sizes[1],
  )
  np.testing.assert_array_equal(buckets, arrays[name])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_and_its_gradient_are_those_of_a_gather(bidirectional):
  module = relative_position.RelativePositionBias(3, bidirectional)
  variables = module.init(jax.random.key(0), 150)
  (table,) = jax.tree.leaves(variables["params"])
  positions = np.arange(150)
  where = relative_position.buckets(
    positions[None, :] - positions[:, None], bidirectional=bidirectional
  )
  bias = lambda variables: relative_position.of_pairs(
    module.apply(variables, 150), 150
  )
  np.testing.assert_array_equal(bias(variables), table[:, where])
  weights = jax.random.normal(jax.random.key(1), (3, 150, 150))
  loss = lambda variables: jnp.vdot(bias(variables), weights)
  (found,) = jax.tree.leaves(jax.grad(loss)({"params": variables["params"]}))
  wanted = jax.grad(lambda table: jnp.vdot(table[:, where], weights))(table)
  np.testing.assert_allclose(found, wanted, atol=1e-3)
