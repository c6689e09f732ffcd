# SPDX-License-Identifier: Apache-2.0
"""T5's stacks of layers (`t5_layers`): encoder, prompted encoder, decoder."""

from flax import linen as nn
import jax
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
  t5_layers,
)
from prompt_tuning.t5_config import T5Config


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
  deterministic: bool,
) -> tuple[dropout.Factors | None, dropout.Factors | None]:
  """Draws the dropout around the layers of a stack, and that in all of them.

  Returns:
    For the rows of `x` the factors at `ends`, `[B, ...]`, and those of all
    layers in `places`, `[L, B, ...]`. Neither, if there is no dropout.
  """
  if deterministic or not config.dropout_rate:
    return None, None
  around, inside = jax.random.split(parent.make_rng("dropout"))
  rate, dtype, num_rows = config.dropout_rate, config.dtype, x.shape[0]
  of_ends = dropout.draw(
    around, ends, num_rows=num_rows, rate=rate, dtype=dtype
  )
  of_layers = dropout.draw_for_layers(
    inside,
    places,
    num_layers=num_layers,
    num_rows=num_rows,
    rate=rate,
    dtype=dtype,
  )
  return of_ends, of_layers


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
  around, inside = _draw(
    parent,
    config,
    x,
    # Of the encoder's output T5X drops single elements, not whole features.
    {"input": (1, config.emb_dim), "output": x.shape[1:]},
    t5_layers.EncoderLayer.dropout_shapes(config, x.shape[1]),
    num_layers=config.num_encoder_layers,
    deterministic=deterministic,
  )
  x = layer_loop.run_layers(
    parent,
    t5_layers.EncoderLayer,
    config.num_encoder_layers,
    lambda layer, x, own: layer(x, mask, bias, lengths, own),
    jax.tree.map(lambda part: dropout.drop(part, around, "input"), parts),
    config,
    inside,
  )
  x = t5_layers.norm(config, "encoder_norm")(x)
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
  num_encoded = None if encoded is None else encoded.shape[1]
  around, inside = _draw(
    parent,
    config,
    x,
    {"input": (1, config.emb_dim), "output": (1, config.emb_dim)},
    t5_layers.DecoderLayer.dropout_shapes(config, x.shape[1], num_encoded),
    num_layers=config.num_decoder_layers,
    deterministic=deterministic,
  )
  x = layer_loop.run_layers(
    parent,
    t5_layers.DecoderLayer,
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
  x = t5_layers.norm(config, "decoder_norm")(x)
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
