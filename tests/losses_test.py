# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import losses

NORMALIZATIONS = [
  "NUM_REAL_TARGET_TOKENS",
  "NUM_TOTAL_TARGET_TOKENS",
  "AVERAGE_PER_SEQUENCE",
  7.0,
]


@pytest.fixture
def prompted(golden):
  return golden("prompted_t5_1_1_tiny")


def weighted(arrays, **kwargs):
  return losses.weighted_loss(
    arrays["logits"],
    arrays["batch/decoder_target_tokens"],
    arrays["batch/decoder_loss_weights"],
    losses.LossConfig(**kwargs),
  )


def test_loss_and_its_parts_equal_t5x(prompted):
  sums = weighted(prompted)
  np.testing.assert_allclose(sums.loss, prompted["loss"], atol=1e-3)
  np.testing.assert_allclose(sums.z_loss, prompted["z_loss_sum"], rtol=1e-5)
  assert sums.weights == prompted["weight_sum"] == sums.num_real
  np.testing.assert_allclose(
    sums.num_correct / sums.weights, prompted["metric/accuracy"]
  )
  without_z = weighted(prompted, z_loss=0.0)
  np.testing.assert_allclose(
    without_z.loss, prompted["loss_sum_no_z"], atol=1e-3
  )
  assert without_z.z_loss == 0


def test_loss_per_token_equals_t5x(prompted):
  loss, _ = losses.cross_entropy(
    prompted["logits"], prompted["batch/decoder_target_tokens"]
  )
  real = prompted["batch/decoder_loss_weights"] > 0
  np.testing.assert_allclose(
    loss[real], prompted["per_token_loss_no_z"][real], atol=2e-5
  )


def test_label_smoothing_equals_t5x(prompted):
  sums = weighted(prompted, label_smoothing=0.1)
  np.testing.assert_allclose(
    sums.loss, prompted["loss_sum_smoothing_0_1"], atol=1e-3
  )
  np.testing.assert_allclose(
    sums.z_loss, prompted["z_loss_sum_smoothing_0_1"], rtol=1e-5
  )


@pytest.mark.parametrize("factor", NORMALIZATIONS)
def test_normalization_equals_t5x(prompted, factor):
  sums = weighted(prompted, normalizing_factor=factor)
  np.testing.assert_allclose(
    sums.loss, prompted[f"loss_sum_normalized/{factor}"], rtol=1e-5
  )


def test_smoothed_loss_of_the_smoothed_target_is_zero():
  target = jnp.array([0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3])
  loss, _ = losses.cross_entropy(
    jnp.log(target)[None, None], jnp.array([[1]]), label_smoothing=0.1
  )
  np.testing.assert_allclose(loss, [[0.0]], atol=1e-6)


def test_a_row_without_weights_adds_nothing():
  logits = jnp.arange(12.0).reshape(2, 2, 3)
  targets = jnp.array([[1, 1], [0, 0]])
  config = losses.LossConfig(normalizing_factor="AVERAGE_PER_SEQUENCE")
  both = losses.weighted_loss(logits, targets, targets, config)
  first = losses.weighted_loss(logits[:1], targets[:1], targets[:1], config)
  np.testing.assert_allclose(both.loss, first.loss, rtol=1e-6)


def test_an_unknown_normalization_is_refused():
  with pytest.raises(ValueError, match="LOSS_NORMALIZING_FACTOR='TOKENS' must"):
    losses.LossConfig(normalizing_factor="TOKENS")


def test_a_label_smoothing_of_1_is_refused():
  with pytest.raises(
    ValueError, match="LABEL_SMOOTHING=1.0 must be at least 0"
  ):
    losses.LossConfig(label_smoothing=1.0)
