# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import dropout


def draw(rate):
  shapes = {"features": (1, 50), "heads": (4, 1, 30), "more": (1, 50)}
  return dropout.draw(
    jax.random.key(0), shapes, num_rows=20, rate=rate, dtype=jnp.float32
  )


def test_factors_are_drawn_by_place_and_keep_the_mean():
  found = draw(0.2)
  assert found["features"].shape == (20, 1, 50)
  assert found["heads"].shape == (20, 4, 1, 30)
  for x in found.values():
    np.testing.assert_array_equal(np.unique(x), np.float32([0, 1 / 0.8]))
    np.testing.assert_allclose(x.mean(), 1, atol=0.05)


def test_every_row_and_place_drops_others():
  found = draw(0.5)
  assert len(np.unique(np.asarray(found["features"])[:, 0], axis=0)) == 20
  assert (found["features"] != found["more"]).any()


def test_a_rate_of_1_drops_all():
  assert not any(x.any() for x in draw(1.0).values())


def test_every_layer_draws_with_an_rng_of_its_own():
  rng, shapes = jax.random.key(3), {"x": (1, 5), "y": (2, 1, 4)}
  options = {"num_rows": 6, "rate": 0.5, "dtype": jnp.float32}
  found = dropout.draw_for_layers(rng, shapes, num_layers=3, **options)
  assert found["y"].shape == (3, 6, 2, 1, 4)
  for i, own in enumerate(jax.random.split(rng, 3)):
    for place, wanted in dropout.draw(own, shapes, **options).items():
      np.testing.assert_array_equal(found[place][i], wanted)


def test_what_is_not_drawn_drops_nothing():
  x = jnp.ones((1, 2, 3))
  assert dropout.at(None, "x") is None
  assert dropout.drop(x, None, "x") is x
