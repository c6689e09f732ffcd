# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import dropout


def draw(rate):
  shapes = {"features": (1, 50), "heads": (4, 1, 30)}
  return dropout.draw(jax.random.key(0), rate, 20, shapes, jnp.float32)


def test_factors_are_drawn_by_place_and_keep_the_mean():
  found = draw(0.2)
  assert found["features"].shape == (20, 1, 50)
  assert found["heads"].shape == (20, 4, 1, 30)
  for x in found.values():
    np.testing.assert_array_equal(np.unique(x), np.float32([0, 1 / 0.8]))
    np.testing.assert_allclose(x.mean(), 1, atol=0.05)


def test_a_rate_of_1_drops_all():
  assert not any(x.any() for x in draw(1.0).values())


def test_no_rng_drops_nothing():
  x = jnp.ones((1, 2, 3))
  assert dropout.draw(None, 0.5, 1, {"x": (1, 3)}, jnp.float32) is None
  assert dropout.drop(x, None, "x") is x
