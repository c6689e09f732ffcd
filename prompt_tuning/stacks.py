# SPDX-License-Identifier: Apache-2.0
"""T5's layers, and the stacks of them: encoder, prompted encoder, decoder.

Names, shapes, logical axes and numerics are those of T5X's example network.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math

from flax import linen as nn
import jax
from jax import ad_checkpoint, lax
from jax.experimental import layout
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from prompt_tuning import (
  flash_attention,
  layers,
  prompts,
  quantization,
  relative_position,
)

REMAT = ("none", "minimal", "full")


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
    attention: how attention to the encoder's positions is computed: "plain";
      "cudnn", the kernel of `flash_attention`; or "auto", the kernel where it
      can run. Rows whose padding is not all at the end, packed ones and prompts
      with a visibility of their own are computed plainly whatever is set.
    remat: what a layer keeps for the backward pass: "none", whatever XLA
      chooses; "minimal", the results of products alone; "full", its input
      alone, so that it is computed twice.
    quantization: of frozen kernels: "int8" or "float8" to store them in 8 bits,
      "float8_products" to multiply in 8 bits too; see `quantization`.
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
  attention: str = "plain"
  remat: str = "none"
  quantization: str = "none"
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.remat not in REMAT:
      raise ValueError(f"REMAT={self.remat!r} must be one of {REMAT}")
    if self.quantization not in quantization.KINDS:
      raise ValueError(
        f"QUANTIZATION={self.quantization!r} must be one of"
        f" {quantization.KINDS}"
      )
    if self.attention not in flash_attention.KINDS:
      raise ValueError(
        f"ATTENTION={self.attention!r} must be one of {flash_attention.KINDS}"
      )


def _norm(config: T5Config, name: str) -> layers.RMSNorm:
  return layers.RMSNorm(config.dtype, config.param_dtype, name=name)


# Dropout: factors (`layers.dropout_factors`) by place, and their shapes.
_Dropout = dict[str, Float[Array, "B ..."]]
_Shapes = Mapping[str, tuple[int, ...]]
_Rng = Key[Array, ""] | None  # None: no dropout.


def _rngs(
  parent: nn.Module, config: T5Config, *, deterministic: bool
) -> tuple[_Rng, _Rng]:
  """Returns the rngs of the dropout outside of the layers, and in them."""
  if deterministic or not config.dropout_rate:
    return None, None
  outside, inside = jax.random.split(parent.make_rng("dropout"))
  return outside, inside


def _draw(
  rng: _Rng, config: T5Config, batch: int, shapes: _Shapes
) -> _Dropout | None:
  """Draws dropout by place.

  All of it at once: drawn place by place, the random bits were most of what XLA
  had to compile.

  Args:
    rng: to draw with; None draws nothing.
    config: the sizes.
    batch: number of rows.
    shapes: of the factors of a row.
  """
  if rng is None:
    return None
  ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
  factors = layers.dropout_factors(
    rng, config.dropout_rate, (batch, int(ends[-1])), config.dtype
  )
  factors = lax.optimization_barrier(factors)  # Or each use draws them again.
  parts = jnp.split(factors, ends[:-1], axis=1)
  return {
    place: part.reshape(batch, *shape)
    for (place, shape), part in zip(shapes.items(), parts, strict=True)
  }


def _drop(
  x: Float[Array, "B S D"], dropout: _Dropout | None, place: str
) -> Float[Array, "B S D"]:
  return x if dropout is None else x * dropout[place]


def _attention(config: T5Config, name: str) -> layers.Attention:
  return layers.Attention(
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


def _keep(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
  """Names the sum of a layer's residual branch, for `_rematerialized`."""
  return ad_checkpoint.checkpoint_name(x, "residual")


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward block, each normalised before."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B S D"],
    mask: Bool[Array, "B 1 S S"] | None,
    bias: Float[Array, "1 H S S"],
    lengths: Int[Array, " B"] | None,
    dropout: _Dropout | None,
  ) -> Float[Array, "B S D"]:
    """Applies the layer; see `layers.Attention` for the arguments."""
    config, places = self.config, dropout or {}
    y = _norm(config, "pre_attention_layer_norm")(x)
    y = _attention(config, "attention")(
      y, y, mask, bias, lengths=lengths, dropout=places.get("attention")
    )
    x = _keep(x + _drop(y, dropout, "attention_output"))
    y = _norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, places.get("mlp"))
    return x + _drop(y, dropout, "mlp_output")


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder, and feed-forward block.

  Without an encoder, of a decoder-only model, there is no attention to it.
  """

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "N U D"],
    encoded: Float[Array, "B S D"] | None,
    mask: Bool[Array, "N 1 U M"] | None,
    encoder_decoder_mask: Bool[Array, "B 1 #U S"] | None,
    bias: Float[Array, "1 H M M"],
    lengths: Int[Array, " B"] | None,
    dropout: _Dropout | None,
    *,
    decode: bool = False,
  ) -> Float[Array, "N U D"]:
    """Applies the layer; `lengths` are those of the encoder's rows.

    While decoding, several rows in a row may belong to one encoded input.
    """
    config, places = self.config, dropout or {}
    y = _norm(config, "pre_self_attention_layer_norm")(x)
    y = _attention(config, "self_attention")(
      *(y, y, mask, bias), dropout=places.get("self_attention"), decode=decode
    )
    x = _keep(x + _drop(y, dropout, "self_attention_output"))
    if encoded is not None:
      y = _norm(config, "pre_cross_attention_layer_norm")(x)
      # As queries of their one input, so that its keys need no copies.
      y = _attention(config, "encoder_decoder_attention")(
        y.reshape(encoded.shape[0], -1, y.shape[2]),
        encoded,
        encoder_decoder_mask,
        None,
        lengths=lengths,
        dropout=places.get("encoder_attention"),
        keep=decode,
      ).reshape(y.shape)
      x = _keep(x + _drop(y, dropout, "encoder_attention_output"))
    y = _norm(config, "pre_mlp_layer_norm")(x)
    y = _mlp(config)(y, places.get("mlp"))
    return x + _drop(y, dropout, "mlp_output")


# A layer, its input and its dropout -> its output.
_Apply = Callable[..., Float[Array, "B S D"]]


def _run_layers(
  parent: nn.Module,
  layer_type: type[nn.Module],
  num_layers: int,
  apply: _Apply,
  x: Float[Array, "B S D"],
  config: T5Config,
  rng: _Rng,
  shapes: _Shapes,
) -> Float[Array, "B S D"]:
  """Runs the layers of a stack, submodules of `parent`, one after the other.

  They are scanned where `parent` has their parameters stacked; see
  `layer_stacking`.

  Args:
    parent: the encoder or decoder.
    layer_type: of the layers.
    num_layers: how many.
    apply: of a layer, its input and its dropout.
    x: input of the first layer.
    config: the sizes.
    rng: of the dropout in all layers.
    shapes: of the dropout of a row in one layer.
  """
  rngs = None if rng is None else jax.random.split(rng, num_layers)
  draw = lambda rng: _draw(rng, config, x.shape[0], shapes)
  if not parent.is_initializing():
    in_scan = parent.has_variable("params", "layers")
    apply = _rematerialized(apply, config, in_scan=in_scan)
    if in_scan:
      scan = nn.scan(
        lambda layer, x, rng: (apply(layer, x, draw(rng)), None),
        variable_axes={"params": 0},
        split_rngs={},
        length=num_layers,
      )
      return scan(layer_type(config, name="layers"), x, rngs)[0]
  for i in range(num_layers):
    dropout = draw(None if rngs is None else rngs[i])
    x = apply(layer_type(config, name=f"layers_{i}"), x, dropout)
  return x


def _rematerialized(
  apply: _Apply, config: T5Config, *, in_scan: bool
) -> _Apply:
  """Lets the backward pass of a layer compute again what it does not keep."""
  if config.remat == "none":
    return apply
  policy = None
  if config.remat == "minimal":
    policy = jax.checkpoint_policies.save_only_these_names(
      "residual",
      *layers.PRODUCTS,
      *flash_attention.KEPT,
    )
  return nn.remat(apply, policy=policy, prevent_cse=not in_scan)


def _encode(
  parent: nn.Module,
  config: T5Config,
  x: Float[Array, "B S D"],
  mask: Bool[Array, "B 1 S S"] | None,
  lengths: Int[Array, " B"] | None,
  *,
  deterministic: bool,
) -> Float[Array, "B S D"]:
  """Runs the encoder's layers as submodules of `parent`, which calls this."""
  if lengths is not None:  # They say what the mask does.
    mask = None
  bias = _position_bias(config, bidirectional=True)(x.shape[1])
  # Or XLA makes the batch the minor axis, and each layer transposes twice.
  x = layout.with_layout_constraint(x, layout.Layout((0, 1, 2)))
  features = (1, config.emb_dim)  # Dropped for all positions at once.
  # Of the encoder's output T5X drops single elements, not whole features.
  ends = {"input": features, "output": x.shape[1:]}
  outside, inside = _rngs(parent, config, deterministic=deterministic)
  dropout = _draw(outside, config, x.shape[0], ends)
  x = _run_layers(
    parent,
    EncoderLayer,
    config.num_encoder_layers,
    lambda layer, x, dropout: layer(x, mask, bias, lengths, dropout),
    _drop(x, dropout, "input"),
    config,
    inside,
    {
      "attention": (config.num_heads, 1, x.shape[1]),
      "attention_output": features,
      "mlp": (1, config.mlp_dim),
      "mlp_output": features,
    },
  )
  x = _norm(config, "encoder_norm")(x)
  return _drop(x, dropout, "output")


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
    return _encode(
      self, self.config, joined, mask, lengths, deterministic=deterministic
    )


def run_decoder(  # noqa: PLR0913  # As many as the decoder has inputs.
  parent: nn.Module,
  config: T5Config,
  embed: layers.Embed,
  x: Float[Array, "N U D"],
  encoded: Float[Array, "B S D"] | None,
  mask: Bool[Array, "N 1 U M"] | None,
  encoder_decoder_mask: Bool[Array, "B 1 #U S"] | None,
  lengths: Int[Array, " B"] | None = None,
  *,
  num_positions: int,
  deterministic: bool,
  decode: bool = False,
) -> Float[Array, "N U V"]:
  """Runs the decoder's layers as submodules of `parent`, which calls this."""
  bias = _position_bias(config, bidirectional=False)(num_positions)
  features = (1, config.emb_dim)  # Dropped for all positions at once.
  places = {
    "self_attention": (config.num_heads, 1, x.shape[1]),
    "self_attention_output": features,
    "mlp": (1, config.mlp_dim),
    "mlp_output": features,
  }
  if encoded is not None:
    places |= {
      "encoder_attention": (config.num_heads, 1, encoded.shape[1]),
      "encoder_attention_output": features,
    }
  ends = {"input": features, "output": features}
  outside, inside = _rngs(parent, config, deterministic=deterministic)
  dropout = _draw(outside, config, x.shape[0], ends)
  x = _run_layers(
    parent,
    DecoderLayer,
    config.num_decoder_layers,
    lambda layer, x, dropout: layer(
      x,
      encoded,
      mask,
      encoder_decoder_mask,
      bias,
      lengths,
      dropout,
      decode=decode,
    ),
    _drop(x, dropout, "input"),
    config,
    inside,
    places,
  )
  x = _norm(config, "decoder_norm")(x)
  x = _drop(x, dropout, "output")
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
    encoder_decoder_mask: Bool[Array, "B 1 #U S"],
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
