# SPDX-License-Identifier: Apache-2.0
"""The sizes and switches of a T5, as gin configures them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from prompt_tuning import flash_attention, quantization

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
    attention: how attention is computed: "plain"; "kernel", that of
      `flash_attention`; or "auto", the kernel where it can run. Packed rows,
      prompts of several lengths in a batch or with a visibility of their own,
      and steps of decoding attend plainly whatever is set, and few targets see
      the encoder as in `unprojected_attention`. The kernel takes all 0 in a row
      for padding at its end.
    remat: what a layer keeps for the backward pass: "none", whatever XLA
      chooses; "minimal", the results of products and its dropout alone; "full",
      its input and its dropout, so that it is computed twice.
    quantization: of frozen kernels: "int8" or "float8" to store them in 8 bits,
      "float8_products" to multiply in 8 bits too; see `quantization`.
    dtype: dtype of the activations, none of 16 bits but bfloat16; logits are
      float32 always.
    param_dtype: dtype in which the parameters, but for the prompt, are stored.

  Raises:
    ValueError: for a value that is none of these.
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
    if jnp.dtype(self.dtype) == jnp.float16:
      raise ValueError(
        "ACTIVATION_DTYPE='float16' is too small for the activations of a T5:"
        " use 'bfloat16' or 'float32'"
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f"DROPOUT_RATE={self.dropout_rate} must be at least 0 and below 1"
      )
    for name in self.mlp_activations:
      if name != "linear" and not hasattr(jax.nn, name):
        raise ValueError(
          f"mlp_activations={self.mlp_activations}: {name!r} must be 'linear'"
          " or a function of jax.nn, such as 'gelu'"
        )
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
