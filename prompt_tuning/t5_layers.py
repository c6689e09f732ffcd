# SPDX-License-Identifier: Apache-2.0
"""A layer of T5's encoder, and one of its decoder.

Names, shapes and logical axes are those of T5X's example network, and so is
what is computed, but for the order of sums.
"""

from flax import linen as nn
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import (
  attention,
  dropout,
  flash_attention,
  layer_loop,
  layers,
)
from prompt_tuning.t5_config import T5Config


def norm(config: T5Config, name: str) -> layers.RMSNorm:
  """Makes the norm that stands before each block, and behind a stack."""
  return layers.RMSNorm(config.dtype, config.param_dtype, name=name)


def _attention(config: T5Config, name: str) -> attention.Attention:
  return attention.Attention(
    num_heads=config.num_heads,
    head_dim=config.head_dim,
    float32_logits=config.float32_attention_logits,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    in_float8=config.quantization == "float8_products",
    name=name,
  )


def _mlp(config: T5Config) -> layers.MLP:
  return layers.MLP(
    config.mlp_dim,
    config.mlp_activations,
    config.dtype,
    config.param_dtype,
    in_float8=config.quantization == "float8_products",
    name="mlp",
  )


def _keep(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
  """Names the sum of a layer's residual branch, for `layer_loop`."""
  return ad_checkpoint.checkpoint_name(x, layer_loop.RESIDUAL)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward block, each normalised before."""

  config: T5Config

  @staticmethod
  def dropout_shapes(config: T5Config, num_positions: int) -> dropout.Shapes:
    """Returns the places of dropout, and what shape a row has there."""
    features = (1, config.emb_dim)  # Dropped for all positions at once.
    return {
      "attention": (config.num_heads, 1, num_positions),
      "attention_output": features,
      "mlp": (1, config.mlp_dim),
      "mlp_output": features,
    }

  @nn.compact
  def __call__(
    self,
    x: attention.Features,
    mask: Bool[Array, "B 1 S S"] | None,
    bias: Float[Array, "1 H S S"] | Float[Array, "H _"],
    lengths: Int[Array, " B"] | None,
    factors: dropout.Factors | None,
  ) -> Float[Array, "B S D"]:
    """Applies the layer; see `attention.Attention` for the arguments."""
    config = self.config
    y = jax.tree.map(norm(config, "pre_attention_layer_norm"), x)
    if isinstance(x, tuple):
      x = flash_attention.rows_first(jnp.concatenate(x, axis=1))
    y = _attention(config, "attention")(
      *(y, y, mask, bias),
      lengths=lengths,
      dropout=dropout.at(factors, "attention"),
    )
    x = _keep(x + dropout.drop(y, factors, "attention_output"))
    y = norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, dropout.at(factors, "mlp"))
    return x + dropout.drop(y, factors, "mlp_output")


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder, and feed-forward block.

  Without an encoder, of a decoder-only model, there is no attention to it.
  """

  config: T5Config

  @staticmethod
  def dropout_shapes(
    config: T5Config, num_positions: int, num_encoded: int | None
  ) -> dropout.Shapes:
    """Returns the places of dropout, and what shape a row has there."""
    features = (1, config.emb_dim)  # Dropped for all positions at once.
    shapes: dict[str, tuple[int, ...]] = {
      "self_attention": (config.num_heads, 1, num_positions),
      "self_attention_output": features,
      "mlp": (1, config.mlp_dim),
      "mlp_output": features,
    }
    if num_encoded is not None:
      shapes |= {
        "encoder_decoder_attention": (config.num_heads, 1, num_encoded),
        "encoder_decoder_attention_output": features,
      }
    return shapes

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N U D"],
    encoded: Float[Array, "B S D"] | None,
    mask: Bool[Array, "N 1 U M"] | None,
    encoder_decoder_mask: Bool[Array, "B 1 _ S"] | None,
    bias: Float[Array, "1 H M M"] | Float[Array, "H _"],
    lengths: Int[Array, " B"] | None,
    factors: dropout.Factors | None,
    *,
    decode: bool = False,
  ) -> Float[Array, "N U D"]:
    """Applies the layer; `lengths` are those of the encoder's rows.

    With them, and not while decoding, the bias is by relative position, and
    masks the keys after a query.

    While decoding, several rows in a row may belong to one encoded input, and
    there is no dropout.
    """
    config = self.config
    assert factors is None or not decode, "decoding has no dropout"
    y = norm(config, "pre_self_attention_layer_norm")(x)
    own_lengths = None
    if lengths is not None and not decode:
      own_lengths = jnp.full(x.shape[0], x.shape[1])
    y = _attention(config, "self_attention")(
      *(y, y, mask, bias),
      lengths=own_lengths,
      dropout=dropout.at(factors, "self_attention"),
      decode=decode,
    )
    x = _keep(x + dropout.drop(y, factors, "self_attention_output"))
    if encoded is not None:
      y = norm(config, "pre_cross_attention_layer_norm")(x)
      # As queries of their one input, so that its keys need no copies.
      y = _attention(config, "encoder_decoder_attention")(
        y.reshape(encoded.shape[0], -1, y.shape[2]),
        encoded,
        encoder_decoder_mask,
        None,
        lengths=lengths,
        dropout=dropout.at(factors, "encoder_decoder_attention"),
        keep=decode,
      ).reshape(y.shape)
      x = _keep(
        x + dropout.drop(y, factors, "encoder_decoder_attention_output")
      )
    y = norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, dropout.at(factors, "mlp"))
    return x + dropout.drop(y, factors, "mlp_output")
