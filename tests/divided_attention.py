# SPDX-License-Identifier: Apache-2.0
"""Attention among four virtual devices, for attention_kernels_test.py."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from prompt_tuning import flash_attention, partitioning


def main():
  keys = jax.random.split(jax.random.key(0), 4)
  query, key, value = (jax.random.normal(k, (2, 37, 2, 16)) for k in keys[:3])
  bias = jax.random.normal(keys[3], (2, 73))
  arguments = query, key, value, bias, None, jnp.array([37, 12])
  total = lambda *arguments: jnp.sum(flash_attention.attend(*arguments) ** 2)
  grad = jax.grad(total, (0, 1, 2, 3))
  expected = jax.jit(grad)(*arguments)
  mesh = partitioning.make_mesh(partitioning.MeshConfig(num_partitions=2))
  spec = PartitionSpec("data", None, "model")
  of_heads, whole = (
    NamedSharding(mesh, spec),
    NamedSharding(mesh, PartitionSpec()),
  )
  placed = jax.device_put(
    arguments, (of_heads, of_heads, of_heads, whole, None, whole)
  )
  with jax.set_mesh(mesh):
    compiled = jax.jit(grad).lower(*placed).compile()
  assert "all-gather" not in compiled.as_text()
  for one, other in zip(compiled(*placed), expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
  features = jnp.ones((2, 5, 8))
  placed = jax.device_put(features, NamedSharding(mesh, PartitionSpec("data")))
  total = lambda x: jnp.sum(flash_attention.rows_first(x * 2) ** 2)
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(total)).lower(placed).compile()
  assert "all-gather" not in compiled.as_text()
  assert "all-reduce" not in compiled.as_text()
  np.testing.assert_array_equal(compiled(placed), 8 * features)
  alone = [None if x is None else x[:1] for x in arguments]  # Not divisible.
  alone[3] = bias
  with jax.set_mesh(mesh):
    found = jax.jit(grad)(*alone)
  for one, other in zip(found, jax.jit(grad)(*alone), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
  main()
