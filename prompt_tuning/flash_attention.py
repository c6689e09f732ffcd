# SPDX-License-Identifier: Apache-2.0
"""Attention with an additive bias, fused into one kernel by cuDNN.

`jax.nn.dot_product_attention` calls the same kernel, but its backward pass
always adds up a gradient of the bias over the batch, which a frozen bias does
not need, and `jax.checkpoint` cannot keep the statistics of its softmax.
"""

from typing import Any

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

KINDS = ("auto", "cudnn", "plain")

# With a bias the kernel exists for lengths of this multiple.
LENGTH_MULTIPLE = 2

# What the backward pass needs of the forward pass; names for `jax.checkpoint`.
KEPT = ("attention_output", "attention_statistics")


def is_used(kind: str, dtype: DTypeLike) -> bool:
  """Tells whether attention is to be computed by the kernel.

  Args:
    kind: "cudnn", "plain", or "auto" for the kernel where it can run: on an
      NVIDIA GPU, in 16 bits.
    dtype: of the activations.

  Raises:
    ValueError: for an unknown kind, or the kernel where it cannot run.
  """
  if kind not in KINDS:
    raise ValueError(f"ATTENTION={kind!r} must be one of {KINDS}")
  if kind == "plain":
    return False
  is_16_bit = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  on_gpu = jax.default_backend() == "gpu"
  if kind == "cudnn" and not (is_16_bit and on_gpu):
    raise ValueError(
      f"ATTENTION='cudnn' needs an NVIDIA GPU and 16-bit activations, found"
      f" {jax.default_backend()} and {jnp.dtype(dtype)}: use ATTENTION='auto'"
    )
  return is_16_bit and on_gpu


def attend(
  query: Float[Array, "B Q H K"],
  key: Float[Array, "B N H K"],
  value: Float[Array, "B N H K"],
  bias: Float[Array, "1 H Q N"] | None,
  lengths: Int[Array, " B"],
) -> Float[Array, "B Q H K"]:
  """Attends to the first keys of each row, without scaling the logits.

  Args:
    query: in 16 bits, as are key, value and bias.
    key: of each position.
    value: of each key.
    bias: added to the logits.
    lengths: how many keys of a row there are; the others are not seen.
  """
  num_queries, num_keys = query.shape[1], key.shape[1]
  more_queries, more_keys = padding(num_queries), padding(num_keys)
  fill = lambda x, more: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
  if bias is not None:
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, more_queries), (0, more_keys)))
    query, key, value = (
      fill(query, more_queries),
      fill(key, more_keys),
      fill(value, more_keys),
    )
  output = _attend(query, key, value, bias, lengths.astype(jnp.int32))
  return output[:, :num_queries]


@jax.custom_vjp
def _attend(
  query: Array, key: Array, value: Array, bias: Array | None, lengths: Array
) -> Array:
  return _forward(query, key, value, bias, lengths, is_training=False)[0]


def _forward(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None,
  lengths: Array,
  *,
  is_training: bool,
) -> Any:
  """Returns the output and, in training, the statistics of the softmax."""
  kernels, arguments = _kernels(), _arguments(query, key, value, bias, lengths)
  return kernels._dot_product_attention_fwd_p_wrapper.bind(
    *arguments, **_parameters(bias), is_training=is_training
  )


def _kernels() -> Any:
  from jax._src.cudnn import fused_attention_stablehlo

  return fused_attention_stablehlo


def _arguments(
  query: Array, key: Array, value: Array, bias: Array | None, lengths: Array
) -> tuple[Array, ...]:
  none = jnp.zeros(0, query.dtype)
  num_queries = jnp.full_like(lengths, query.shape[1])
  return (
    *(query, key, value),
    none if bias is None else bias.astype(query.dtype),
    *(num_queries, jnp.maximum(lengths, 1)),
    *(none, none, none, none),  # Offsets of packed rows, pages of a cache.
  )


def _parameters(
  bias: Array | None, *, bias_gradient: bool = False
) -> dict[str, Any]:
  kernels = _kernels()
  return {
    "scale": 1.0,
    "seed": 0,
    "dropout_rate": 0.0,
    "variadic_args": (bias is not None, bias_gradient),
    "mask_type": kernels.MaskType.PADDING,
    "layout": kernels.AttentionLayout.BTNH.value,
    "sliding_window_length": None,
  }


def _attend_fwd(
  query: Any, key: Any, value: Any, bias: Any, lengths: Any
) -> tuple[Array, tuple]:
  """Keeps what the gradient needs, and whether the bias has one."""
  arguments = (
    query.value,
    key.value,
    value.value,
    None if bias is None else bias.value,
    lengths.value,
  )
  output, statistics = _forward(*arguments, is_training=True)
  output, statistics = (
    ad_checkpoint.checkpoint_name(x, name)
    for x, name in zip((output, statistics), KEPT, strict=True)
  )
  # Told by the structure: residuals are arrays.
  has_gradient = () if bias is not None and bias.perturbed else None
  residuals = (*arguments, output, statistics)
  return output, (residuals, has_gradient)


def _attend_bwd(kept: tuple, gradient: Any) -> tuple:
  (query, key, value, bias, lengths, output, statistics), has_gradient = kept
  if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
    gradient = jnp.zeros_like(output)
  kernels = _kernels()
  grads = kernels._dot_product_attention_bwd_p_wrapper.bind(
    *_arguments(query, key, value, bias, lengths),
    *(statistics, output, gradient),
    **_parameters(bias, bias_gradient=has_gradient is not None),
  )
  of_bias = None
  if bias is not None:
    of_bias = jnp.zeros_like(bias)
    if has_gradient is not None:
      of_bias = grads[3].astype(bias.dtype)
  return *grads[:3], of_bias, None


_attend.defvjp(_attend_fwd, _attend_bwd, symbolic_zeros=True)


def padding(length: int) -> int:
  """Returns how many positions fill a length up to what the kernel likes."""
  return -length % LENGTH_MULTIPLE
