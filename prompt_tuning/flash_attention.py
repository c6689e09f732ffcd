# SPDX-License-Identifier: Apache-2.0
"""Attention with a bias, padding and dropout, in one kernel and its gradients.

`jax.nn.dot_product_attention` has such a kernel too, of cuDNN, which is slower
with a bias, and adds up a gradient of the bias over the batch even if the bias
is frozen.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from prompt_tuning import attention_kernels, relative_position, tiling

KINDS = ("auto", "kernel", "plain")

# What the backward pass needs of the forward pass; names for `jax.checkpoint`.
KEPT = ("attention_output", "attention_sums")


def is_used(kind: str, dtype: DTypeLike, head_dim: int) -> bool:
  """Tells whether attention is to be computed by the kernel.

  Args:
    kind: "kernel", "plain", or "auto" for the kernel where it can run: on an
      NVIDIA GPU, in 16 bits, with heads whose width is a power of two.
    dtype: of the activations.
    head_dim: width of a head.

  Raises:
    ValueError: for an unknown kind, or the kernel where it cannot run.
  """
  if kind not in KINDS:
    raise ValueError(f"ATTENTION={kind!r} must be one of {KINDS}")
  if kind == "plain":
    return False
  is_16_bit = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  fits = head_dim >= tiling.MIN_BLOCK and head_dim.bit_count() == 1
  can_run = is_16_bit and fits and jax.default_backend() == "gpu"
  if kind == "kernel" and not can_run:
    raise ValueError(
      "ATTENTION='kernel' needs an NVIDIA GPU, 16-bit activations and heads of"
      f" 16, 32, 64, ... features, found {jax.default_backend()},"
      f" {jnp.dtype(dtype)} and {head_dim}: use ATTENTION='auto'"
    )
  return can_run


def attend(
  query: Float[Array, "B Q H K"],
  key: Float[Array, "B N H K"],
  value: Float[Array, "B N H K"],
  bias: Float[Array, "H Q+N-1"] | None,
  factors: Float[Array, "B H 1 N"] | None,
  lengths: Int[Array, " B"],
) -> Float[Array, "B Q H K"]:
  """Attends to the first keys of each row, without scaling the logits.

  Args:
    query: in 16 bits, as are key and value.
    key: of each position.
    value: of each key.
    bias: added to the logits in the query's dtype; the same for all pairs of a
      relative position, from 1 - Q to N - 1, and constant beyond
      `relative_position.MAX_DISTANCE`.
    factors: of the attention weights, after the softmax: dropout. They have no
      gradient.
    lengths: how many keys of a row there are; the others are not seen.
  """
  bias = None if bias is None else bias.astype(query.dtype)
  factors = None if factors is None else factors[:, :, 0]
  return _attend(query, key, value, bias, factors, jnp.maximum(lengths, 1))


@jax.custom_vjp
def _attend(*arrays: Any) -> Array:
  return _forward(tiling.Inputs(*arrays))[0]


def _forward(inputs: tiling.Inputs) -> tuple[Array, Array]:
  return _divided(attention_kernels.forward, inputs)


def _attend_fwd(*arrays: Any) -> tuple[Array, tuple]:
  """Keeps what the gradient needs, and whether the bias has one."""
  values: list[Any] = [None if x is None else x.value for x in arrays]
  inputs = tiling.Inputs(*values)
  output, sums = (
    ad_checkpoint.checkpoint_name(x, name)
    for x, name in zip(_forward(inputs), KEPT, strict=True)
  )
  bias = arrays[3]
  # Told by the structure: residuals are arrays.
  has_gradient = () if bias is not None and bias.perturbed else None
  return output, (inputs, output, sums, has_gradient)


def _attend_bwd(kept: tuple, gradient: Any) -> tuple[Array | None, ...]:
  inputs, output, sums, has_gradient = kept
  if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
    gradient = jnp.zeros_like(output)
  of_query, products = _divided(
    attention_kernels.query_gradient, inputs, output, gradient, sums
  )
  others = (gradient, sums, products)
  of_key, of_value = _divided(
    attention_kernels.key_value_gradient, inputs, *others
  )
  of_bias = jax.tree.map(jnp.zeros_like, inputs.bias)
  if has_gradient is not None:
    of_pairs = _divided(attention_kernels.bias_gradient, inputs, *others)
    spread = functools.partial(
      relative_position.of_pairs, length=of_pairs.shape[1]
    )
    (of_bias,) = jax.vjp(spread, of_bias.astype(jnp.float32))[1](of_pairs)
    of_bias = of_bias.astype(inputs.bias.dtype)
  of_factors = jax.tree.map(jnp.zeros_like, inputs.factors)
  return of_query, of_key, of_value, of_bias, of_factors, None


_attend.defvjp(_attend_fwd, _attend_bwd, symbolic_zeros=True)


def _divided(
  kernel: Callable[..., Any],
  inputs: tiling.Inputs,
  *others: Array,
) -> Any:
  """Calls a kernel on each device, for its own rows and heads.

  XLA cannot divide a kernel, and would gather what it takes. T5X's mesh is not
  seen here: there it does.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1 or AxisType.Auto not in mesh.axis_types:
    return kernel(inputs, *others)
  num_rows, _, num_heads, _ = inputs.query.shape
  data = "data" if num_rows % mesh.shape["data"] == 0 else None
  model = "model" if num_heads % mesh.shape["model"] == 0 else None

  def spec(x: Any) -> PartitionSpec:
    match x.ndim:
      case 4:
        return PartitionSpec(data, None, model)
      case 3:
        return PartitionSpec(data, model)
      case _:
        return PartitionSpec(data)

  of_bias = PartitionSpec(model)
  in_specs = jax.tree.map(spec, (inputs, *others))
  if inputs.bias is not None:
    in_specs = (in_specs[0]._replace(bias=of_bias), *in_specs[1:])

  def call(inputs: tiling.Inputs, *others: Array) -> Any:
    results = kernel(inputs, *others)
    if kernel is attention_kernels.bias_gradient and data is not None:
      return jax.lax.psum(results, data)
    return results

  out_specs = of_bias
  if kernel is not attention_kernels.bias_gradient:
    out_specs = jax.tree.map(spec, jax.eval_shape(kernel, inputs, *others))
  divided = jax.shard_map(
    call, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  return divided(inputs, *others)
