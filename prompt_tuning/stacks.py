# SPDX-License-Identifier: Apache-2.0
"""T5's layers, and the stacks of them: encoder, prompted encoder, decoder.

Names, shapes and logical axes are those of T5X's example network, and so is
what is computed, but for the order of sums.
"""

from typing import Any

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
  prompts,
  relative_position,
)
from prompt_tuning.t5_config import T5Config


def _norm(config: T5Config, name: str) -> layers.RMSNorm:
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


def _position_bias(
  config: T5Config, *, bidirectional: bool
) -> relative_position.RelativePositionBias:
  return relative_position.RelativePositionBias(
    config.num_heads,
    bidirectional=bidirectional,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name="relpos_bias",
  )


def _draw(
  parent: nn.Module,
  config: T5Config,
  x: Float[Array, "B S D"],
  ends: dropout.Shapes,
  places: dropout.Shapes,
  *,
  num_layers: int,
) -> tuple[dropout.Factors, dropout.Factors]:
  """Draws the dropout around the layers of a stack, and that in all of them.

  For the rows of `x`: of the shapes at both ends, and in the places of a layer.
  """
  around, inside = jax.random.split(parent.make_rng("dropout"))
  options: dict[str, Any] = {
    "num_rows": x.shape[0],
    "rate": config.dropout_rate,
    "dtype": config.dtype,
  }
  return (
    dropout.draw(around, ends, **options),
    dropout.draw_for_layers(inside, places, num_layers=num_layers, **options),
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
    norm = _norm(config, "pre_attention_layer_norm")
    y = jax.tree.map(norm, x)
    if isinstance(x, tuple):
      x = flash_attention.rows_first(jnp.concatenate(x, axis=1))
    y = _attention(config, "attention")(
      *(y, y, mask, bias),
      lengths=lengths,
      dropout=dropout.at(factors, "attention"),
    )
    x = _keep(x + dropout.drop(y, factors, "attention_output"))
    y = _norm(config, "pre_mlp_layer_norm")(x)
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
    y = _norm(config, "pre_self_attention_layer_norm")(x)
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
      y = _norm(config, "pre_cross_attention_layer_norm")(x)
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
    y = _norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, dropout.at(factors, "mlp"))
    return x + dropout.drop(y, factors, "mlp_output")


def _encode(
  parent: nn.Module,
  config: T5Config,
  x: Float[Array, "B S D"],
  mask: Bool[Array, "B 1 S S"] | None,
  lengths: Int[Array, " B"] | None,
  *,
  deterministic: bool,
  behind_prompt: Float[Array, "B T D"] | None = None,
) -> Float[Array, "B S D"]:
  """Runs the encoder's layers as submodules of `parent`, which calls this.

  `behind_prompt` is what of `x` follows a prompt that stands in front.
  """
  bias = _position_bias(config, bidirectional=True)(x.shape[1])
  parts: attention.Features = x
  if lengths is None:
    bias = relative_position.of_pairs(bias, x.shape[1])[None]
  else:
    mask = None  # The lengths say what it does.
    if behind_prompt is not None:  # Of which a first layer needs no gradient.
      parts = x[:, : x.shape[1] - behind_prompt.shape[1]], behind_prompt
    parts = jax.tree.map(flash_attention.rows_first, parts)
  around, inside = None, None
  if config.dropout_rate and not deterministic:
    around, inside = _draw(
      parent,
      config,
      x,
      # Of the encoder's output T5X drops single elements, not whole features.
      {"input": (1, config.emb_dim), "output": x.shape[1:]},
      EncoderLayer.dropout_shapes(config, x.shape[1]),
      num_layers=config.num_encoder_layers,
    )
  x = layer_loop.run_layers(
    parent,
    EncoderLayer,
    config.num_encoder_layers,
    lambda layer, x, own: layer(x, mask, bias, lengths, own),
    jax.tree.map(lambda part: dropout.drop(part, around, "input"), parts),
    config,
    inside,
  )
  x = _norm(config, "encoder_norm")(x)
  return dropout.drop(x, around, "output")


class Encoder(nn.Module):
  """The encoder of T5."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    embedded: Float[Array, "B T D"],
    mask: Bool[Array, "B 1 T T"],
    lengths: Int[Array, " B"] | None = None,
    *,
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Encodes the embedded tokens."""
    del tokens
    return _encode(
      self, self.config, embedded, mask, lengths, deterministic=deterministic
    )


class PromptEncoder(nn.Module):
  """The encoder of T5 over `[prompt; embedded input]`.

  Attributes:
    config: the sizes.
    prompt: produces the prompt and joins it to the input.
  """

  config: T5Config
  prompt: prompts.JoinedPrompt

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    embedded: Float[Array, "B T D"],
    mask: Bool[Array, "B 1 S S"],
    lengths: Int[Array, " B"] | None = None,
    *,
    deterministic: bool,
  ) -> Float[Array, "B S D"]:
    """Joins the prompt, then encodes; dropout falls on the prompt too."""
    joined = self.prompt(tokens, embedded)
    in_front = self.prompt.join is prompts.prefix_prompt
    return _encode(
      self,
      self.config,
      joined,
      mask,
      lengths,
      deterministic=deterministic,
      behind_prompt=embedded if in_front else None,
    )


def run_decoder(  # noqa: PLR0913  # As many as the decoder has inputs.
  parent: nn.Module,
  config: T5Config,
  embed: layers.Embed,
  x: Float[Array, "N U D"],
  encoded: Float[Array, "B S D"] | None,
  mask: Bool[Array, "N 1 U M"] | None,
  encoder_decoder_mask: Bool[Array, "B 1 _ S"] | None,
  lengths: Int[Array, " B"] | None = None,
  *,
  num_positions: int,
  deterministic: bool,
  decode: bool = False,
) -> Float[Array, "N U V"]:
  """Runs the decoder's layers as submodules of `parent`, which calls this."""
  bias = _position_bias(config, bidirectional=False)(num_positions)
  if lengths is None or decode:
    bias = relative_position.of_pairs(bias, num_positions)[None]
  else:
    # No real position sees padding then, which is at the end.
    bias = relative_position.causal(bias, masked=attention.MASKED_LOGIT)
  around, inside = None, None
  if config.dropout_rate and not deterministic:
    num_encoded = None if encoded is None else encoded.shape[1]
    around, inside = _draw(
      parent,
      config,
      x,
      {"input": (1, config.emb_dim), "output": (1, config.emb_dim)},
      DecoderLayer.dropout_shapes(config, x.shape[1], num_encoded),
      num_layers=config.num_decoder_layers,
    )
  x = layer_loop.run_layers(
    parent,
    DecoderLayer,
    config.num_decoder_layers,
    lambda layer, x, own: layer(
      x,
      encoded,
      mask,
      encoder_decoder_mask,
      bias,
      lengths,
      own,
      decode=decode,
    ),
    dropout.drop(x, around, "input"),
    config,
    inside,
  )
  x = _norm(config, "decoder_norm")(x)
  x = dropout.drop(x, around, "output")
  # Logits in float32, for the stability of the softmax.
  if config.logits_via_embedding:
    return embed.attend(x) / jnp.sqrt(x.shape[-1]).astype(jnp.float32)
  return layers.Projection(
    config.vocab_size,
    axes=("embed", "vocab"),
    dtype=jnp.float32,
    param_dtype=config.param_dtype,
    name="logits_dense",
  )(x)


class Decoder(nn.Module):
  """The decoder of T5, with its logits."""

  config: T5Config
  embed: layers.Embed

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "N U"],
    encoded: Float[Array, "B S D"],
    mask: Bool[Array, "N 1 U U"] | None,
    encoder_decoder_mask: Bool[Array, "B 1 _ S"],
    lengths: Int[Array, " B"] | None = None,
    *,
    deterministic: bool,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, "N U V"]:
    """Decodes all positions, or with `decode` the next one."""
    return run_decoder(
      self,
      self.config,
      self.embed,
      self.embed(tokens),
      encoded,
      mask,
      encoder_decoder_mask,
      lengths,
      num_positions=(decode and max_decode_length) or tokens.shape[1],
      deterministic=deterministic,
      decode=decode,
    )
