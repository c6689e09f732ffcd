# SPDX-License-Identifier: Apache-2.0
"""T5: encoder, decoder, and the Transformer with or without a prompt.

Names, shapes, logical axes and numerics are those of T5X's example network;
the prompt sits where google-research/prompt-tuning puts it, at
`encoder/prompt/prompt/prompt`. `Transformer` can be handed to
`t5x.models.EncoderDecoderModel`, whose argument names its methods take.
"""

import dataclasses
import functools

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning import layers, prompts


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The sizes of a T5; the defaults are those of T5 1.1 small.

  The names are T5X's. T5 1.0 has `mlp_activations=("relu",)`,
  `logits_via_embedding=True` and, in its small size, `mlp_dim=2048`,
  `num_heads=8` and six layers.

  Attributes:
    vocab_size: rows of the embedding table, V.
    emb_dim: model width, D.
    num_heads: heads, H.
    num_encoder_layers: encoder layers, L.
    num_decoder_layers: decoder layers.
    head_dim: width of a head, K.
    mlp_dim: inner width of the feed-forward block, F.
    mlp_activations: see `layers.MLP`.
    dropout_rate: of embeddings, attention weights and feed-forward blocks.
    logits_via_embedding: output through the transposed embedding table.
    float32_attention_logits: attention logits in float32 whatever `dtype`.
    one_hot_embedding: see `layers.Embed`.
    dtype: dtype of the activations; logits are float32 always.
    param_dtype: dtype in which the parameters, but for the prompt, are stored.
  """

  vocab_size: int = 32128
  emb_dim: int = 512
  num_heads: int = 6
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  head_dim: int = 64
  mlp_dim: int = 1024
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  one_hot_embedding: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32


def _norm(config: T5Config, name: str) -> layers.RMSNorm:
  return layers.RMSNorm(config.dtype, config.param_dtype, name=name)


def _dropout(config: T5Config) -> nn.Dropout:
  """Drops features of a row for all of its positions at once, as T5 does."""
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


def _attention(config: T5Config, name: str) -> layers.Attention:
  return layers.Attention(
    num_heads=config.num_heads,
    head_dim=config.head_dim,
    dropout_rate=config.dropout_rate,
    float32_logits=config.float32_attention_logits,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name=name,
  )


def _mlp(config: T5Config) -> layers.MLP:
  return layers.MLP(
    config.mlp_dim,
    config.mlp_activations,
    config.dropout_rate,
    config.dtype,
    config.param_dtype,
    name="mlp",
  )


def _position_bias(
  config: T5Config, *, bidirectional: bool
) -> layers.RelativePositionBias:
  return layers.RelativePositionBias(
    config.num_heads,
    bidirectional=bidirectional,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name="relpos_bias",
  )


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward block, each normalised before."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B S D"],
    mask: Bool[Array, "B 1 S S"],
    bias: Float[Array, "1 H S S"],
    *,
    deterministic: bool,
  ) -> Float[Array, "B S D"]:
    """Applies the layer."""
    config = self.config
    y = _norm(config, "pre_attention_layer_norm")(x)
    y = _attention(config, "attention")(
      y, y, mask, bias, deterministic=deterministic
    )
    x = x + _dropout(config)(y, deterministic=deterministic)
    y = _norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, deterministic=deterministic)
    return x + _dropout(config)(y, deterministic=deterministic)


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder, and feed-forward block."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B U D"],
    encoded: Float[Array, "B S D"],
    mask: Bool[Array, "B 1 U U"] | None,
    encoder_decoder_mask: Bool[Array, "B 1 U S"],
    bias: Float[Array, "1 H M M"],
    *,
    deterministic: bool,
    decode: bool = False,
  ) -> Float[Array, "B U D"]:
    """Applies the layer."""
    config = self.config
    y = _norm(config, "pre_self_attention_layer_norm")(x)
    y = _attention(config, "self_attention")(
      y, y, mask, bias, deterministic=deterministic, decode=decode
    )
    x = x + _dropout(config)(y, deterministic=deterministic)
    y = _norm(config, "pre_cross_attention_layer_norm")(x)
    y = _attention(config, "encoder_decoder_attention")(
      y, encoded, encoder_decoder_mask, None, deterministic=deterministic
    )
    x = x + _dropout(config)(y, deterministic=deterministic)
    y = _norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, deterministic=deterministic)
    return x + _dropout(config)(y, deterministic=deterministic)


def _encode(
  config: T5Config,
  x: Float[Array, "B S D"],
  mask: Bool[Array, "B 1 S S"],
  *,
  deterministic: bool,
) -> Float[Array, "B S D"]:
  """Runs the encoder's layers as submodules of the module that calls this."""
  bias = _position_bias(config, bidirectional=True)(x.shape[1])
  x = _dropout(config)(x, deterministic=deterministic)
  for i in range(config.num_encoder_layers):
    layer = EncoderLayer(config, name=f"layers_{i}")
    x = layer(x, mask, bias, deterministic=deterministic)
  x = _norm(config, "encoder_norm")(x)
  # The one place where T5X drops single elements, not whole features.
  return nn.Dropout(config.dropout_rate)(x, deterministic=deterministic)


class Encoder(nn.Module):
  """The encoder of T5."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    embedded: Float[Array, "B T D"],
    mask: Bool[Array, "B 1 T T"],
    *,
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Encodes the embedded tokens."""
    del tokens
    return _encode(self.config, embedded, mask, deterministic=deterministic)


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
    *,
    deterministic: bool,
  ) -> Float[Array, "B S D"]:
    """Joins the prompt, then encodes; dropout falls on the prompt too."""
    joined = self.prompt(tokens, embedded)
    return _encode(self.config, joined, mask, deterministic=deterministic)


class Decoder(nn.Module):
  """The decoder of T5, with its logits."""

  config: T5Config
  embed: layers.Embed

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B U"],
    encoded: Float[Array, "B S D"],
    mask: Bool[Array, "B 1 U U"] | None,
    encoder_decoder_mask: Bool[Array, "B 1 U S"],
    *,
    deterministic: bool,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, "B U V"]:
    """Decodes all positions, or with `decode` the next one."""
    config = self.config
    num_positions = (decode and max_decode_length) or tokens.shape[1]
    bias = _position_bias(config, bidirectional=False)(num_positions)
    x = _dropout(config)(self.embed(tokens), deterministic=deterministic)
    for i in range(config.num_decoder_layers):
      x = DecoderLayer(config, name=f"layers_{i}")(
        x,
        encoded,
        mask,
        encoder_decoder_mask,
        bias,
        deterministic=deterministic,
        decode=decode,
      )
    x = _norm(config, "decoder_norm")(x)
    x = _dropout(config)(x, deterministic=deterministic)
    # Logits in float32, for the stability of the softmax.
    if config.logits_via_embedding:
      return self.embed.attend(x) / jnp.sqrt(x.shape[-1]).astype(jnp.float32)
    return layers.Projection(
      config.vocab_size,
      axes=("embed", "vocab"),
      dtype=jnp.float32,
      param_dtype=config.param_dtype,
      name="logits_dense",
    )(x)


class Transformer(nn.Module):
  """T5, plain or with a prompt in front of its encoder.

  Attributes:
    config: the sizes.
    prompt: the prompt's length and place, or None for the plain model.
  """

  config: T5Config
  prompt: prompts.PromptConfig | None = None

  def setup(self) -> None:
    """Creates the embedding table, the encoder and the decoder."""
    config = self.config
    self.token_embedder = layers.Embed(
      config.vocab_size,
      config.emb_dim,
      one_hot=config.one_hot_embedding,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
    )
    if self.prompt is None:
      self.encoder: nn.Module = Encoder(config)
    else:
      prompt = prompts.Prompt(
        self.prompt.length, config.emb_dim, dtype=config.dtype
      )
      self.encoder = PromptEncoder(
        config, prompts.JoinedPrompt(prompt, self.prompt.join)
      )
    self.decoder = Decoder(config, self.token_embedder)

  def _check_packing(self, segment_ids: Array | None) -> None:
    if self.prompt is not None and segment_ids is not None:
      raise ValueError(
        "a prompted model cannot read packed examples: set pack=False"
      )

  def encode(
    self,
    encoder_input_tokens: Int[Array, "B T"],
    encoder_segment_ids: Int[Array, "B T"] | None = None,
    enable_dropout: bool = True,
  ) -> Float[Array, "B S D"]:
    """Encodes the input, with the prompt if there is one.

    Args:
      encoder_input_tokens: 0 is padding.
      encoder_segment_ids: which of several packed examples a position belongs
        to; the plain model only.
      enable_dropout: needs an rng named `dropout`.

    Returns:
      S is T, or P+T with a prompt.

    Raises:
      ValueError: for packed examples with a prompt.
    """
    self._check_packing(encoder_segment_ids)
    tokens = encoder_input_tokens
    if self.prompt is None:
      mask = prompts.encoder_mask(tokens, prompt_length=0)
    else:
      mask = prompts.encoder_mask(
        tokens,
        prompt_length=self.prompt.length,
        visibility=self.prompt.visibility,
      )
    if encoder_segment_ids is not None:
      mask &= _same_segment(encoder_segment_ids, encoder_segment_ids)
    embedded = self.token_embedder(tokens)
    return self.encoder(
      tokens, embedded, mask, deterministic=not enable_dropout
    )

  def decode(  # noqa: PLR0913  # T5X's arguments.
    self,
    encoded: Float[Array, "B S D"],
    encoder_input_tokens: Int[Array, "B T"],
    decoder_input_tokens: Int[Array, "B U"],
    decoder_target_tokens: Int[Array, "B U"],
    encoder_segment_ids: Int[Array, "B T"] | None = None,
    decoder_segment_ids: Int[Array, "B U"] | None = None,
    decoder_positions: Int[Array, "B U"] | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, "B U V"]:
    """Decodes against an encoded input.

    Args:
      encoded: the result of `encode`.
      encoder_input_tokens: the tokens it was made from, for the mask alone.
      decoder_input_tokens: the targets, shifted to the right.
      decoder_target_tokens: 0 is padding; for the mask alone.
      encoder_segment_ids: see `encode`.
      decoder_segment_ids: the same for the targets.
      decoder_positions: not used: T5 knows relative positions only.
      enable_dropout: needs an rng named `dropout`.
      decode: use the key-value cache (collection `cache`), one position a call.
      max_decode_length: length of the cache.

    Returns:
      float32 logits.

    Raises:
      ValueError: for packed examples with a prompt.
    """
    del decoder_positions
    self._check_packing(encoder_segment_ids)
    prompt_length = 0 if self.prompt is None else self.prompt.length
    encoder_real = (
      prompts.prepend_real(encoder_input_tokens, prompt_length=prompt_length)
      > 0
    )
    decoder_real = decoder_target_tokens > 0
    mask = None
    if decode:  # What is generated is real, whatever its token.
      decoder_real = jnp.ones_like(decoder_real)
    else:
      mask = prompts.decoder_only_mask(
        decoder_target_tokens, None, prompt_length=0
      )
    cross_mask = (decoder_real[:, :, None] & encoder_real[:, None, :])[:, None]
    if decoder_segment_ids is not None and mask is not None:
      mask &= _same_segment(decoder_segment_ids, decoder_segment_ids)
    if decoder_segment_ids is not None and encoder_segment_ids is not None:
      cross_mask &= _same_segment(decoder_segment_ids, encoder_segment_ids)
    return self.decoder(
      decoder_input_tokens,
      encoded,
      mask,
      cross_mask,
      deterministic=not enable_dropout,
      decode=decode,
      max_decode_length=max_decode_length,
    )

  def __call__(  # noqa: PLR0913  # T5X's arguments.
    self,
    encoder_input_tokens: Int[Array, "B T"],
    decoder_input_tokens: Int[Array, "B U"],
    decoder_target_tokens: Int[Array, "B U"],
    encoder_segment_ids: Int[Array, "B T"] | None = None,
    decoder_segment_ids: Int[Array, "B U"] | None = None,
    encoder_positions: Int[Array, "B T"] | None = None,
    decoder_positions: Int[Array, "B U"] | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
  ) -> Float[Array, "B U V"]:
    """Returns the float32 logits of every target position.

    The arguments are those of `encode` and `decode`.
    """
    del encoder_positions
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout=enable_dropout,
      decode=decode,
    )


def _same_segment(
  queries: Int[Array, "B Q"], keys: Int[Array, "B N"]
) -> Bool[Array, "B 1 Q N"]:
  return (queries[:, :, None] == keys[:, None, :])[:, None]


def _init(model: Transformer, rng: Key[Array, ""]) -> dict[str, Array]:
  """Draws all parameters, by path, without computing anything else."""
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  variables = model.lazy_init(rng, tokens, tokens, tokens, enable_dropout=False)
  return traverse_util.flatten_dict(variables["params"], sep="/")


def init_params(model: Transformer, *, seed: int) -> dict[str, Array]:
  """Draws a network with random weights; keys are T5X's parameter paths."""
  return _init(model, jax.random.key(seed))


def param_shapes(model: Transformer) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shape and dtype of every parameter, by path."""
  return jax.eval_shape(functools.partial(_init, model), jax.random.key(0))
