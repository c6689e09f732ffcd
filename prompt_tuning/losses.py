# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy with z-loss, label smoothing and weights, as in T5X."""

import dataclasses
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

NORMALIZING_FACTORS = (
  "NUM_REAL_TARGET_TOKENS",
  "NUM_TOTAL_TARGET_TOKENS",
  "AVERAGE_PER_SEQUENCE",
)


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How the tokens of a batch become one number to minimise.

  Attributes:
    z_loss: factor of `logZ**2`, which keeps the logits from drifting.
    label_smoothing: probability that is spread over the other tokens.
    normalizing_factor: what the sum over tokens is divided by: a number, or
      one of `NORMALIZING_FACTORS`: the number of real target tokens, of all
      target positions, or such that every row weighs the same. None, as in
      the original: nothing.

  Raises:
    ValueError: for a normalizing factor that is none of these, or a label
      smoothing that is no probability below 1.
  """

  z_loss: float = 1e-4
  label_smoothing: float = 0.0
  normalizing_factor: float | str | None = None

  def __post_init__(self) -> None:
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"LABEL_SMOOTHING={self.label_smoothing} must be at least 0 and below 1"
      )
    factor = self.normalizing_factor
    if isinstance(factor, str) and factor not in NORMALIZING_FACTORS:
      raise ValueError(
        f"LOSS_NORMALIZING_FACTOR={factor!r} must be None, a number or one of"
        f" {NORMALIZING_FACTORS}"
      )


class LossSums(NamedTuple):
  """Sums over the target tokens of a batch, all float32 scalars.

  Attributes:
    loss: what is minimised: cross-entropy and z-loss, normalised.
    z_loss: the part of `loss` that is z-loss.
    num_correct: weighted number of tokens that have the highest logit.
    weights: sum of the loss weights.
    num_real: number of target tokens that are not padding.
  """

  loss: Float[Array, ""]
  z_loss: Float[Array, ""]
  num_correct: Float[Array, ""]
  weights: Float[Array, ""]
  num_real: Float[Array, ""]


def cross_entropy(
  logits: Float[Array, "B U V"],
  targets: Int[Array, "B U"],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, "B U"], Float[Array, "B U"]]:
  """Returns the loss of every token, z-loss included, and the z-loss alone.

  With label smoothing the entropy of the smoothed target is subtracted, so
  that the best loss is 0. Computed in float32.
  """
  logits = logits.astype(jnp.float32)
  vocab_size = logits.shape[-1]
  log_z = jax.nn.logsumexp(logits, axis=-1)
  # A comparison and a sum, which fuse, where a gather would be scattered back.
  is_target = (
    lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
  )
  target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  loss = log_z - target_logit
  if label_smoothing:
    other = label_smoothing / (vocab_size - 1)
    confidence = 1.0 - label_smoothing
    entropy = -(
      confidence * math.log(confidence) + label_smoothing * math.log(other)
    )
    uniform = vocab_size * log_z - jnp.sum(logits, axis=-1)
    loss = (confidence - other) * loss + other * uniform - entropy
  z_term = z_loss * lax.square(log_z)
  return loss + z_term, z_term


def weighted_loss(
  logits: Float[Array, "B U V"],
  targets: Int[Array, "B U"],
  weights: Num[Array, "B U"],
  config: LossConfig,
) -> LossSums:
  """Sums the loss over the tokens of a batch.

  Args:
    logits: of every target position.
    targets: 0 is padding.
    weights: 0 where a token does not count.
    config: z-loss, label smoothing and normalisation.
  """
  weights = weights.astype(jnp.float32)
  factor: float | Array = 1.0
  if config.normalizing_factor == "NUM_REAL_TARGET_TOKENS":
    factor = jnp.sum(weights)
  elif config.normalizing_factor == "NUM_TOTAL_TARGET_TOKENS":
    factor = targets.size
  elif config.normalizing_factor == "AVERAGE_PER_SEQUENCE":
    row_sums = jnp.sum(weights, axis=-1, keepdims=True)
    weights = jnp.where(row_sums > 0, weights / row_sums, 0.0)
    factor = jnp.sum(weights)
  elif config.normalizing_factor is not None:
    factor = float(config.normalizing_factor)
  loss, z_term = cross_entropy(
    logits,
    targets,
    label_smoothing=config.label_smoothing,
    z_loss=config.z_loss,
  )
  is_correct = jnp.argmax(logits, axis=-1) == targets
  return LossSums(
    loss=jnp.sum(loss * weights) / factor,
    z_loss=jnp.sum(z_term * weights) / factor,
    num_correct=jnp.sum(is_correct * weights),
    weights=jnp.sum(weights),
    num_real=jnp.sum(targets > 0).astype(jnp.float32),
  )
