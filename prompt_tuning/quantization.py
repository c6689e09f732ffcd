# SPDX-License-Identifier: Apache-2.0
"""Frozen kernels of 8 bits, and products with them.

The kernels of all layers become integers or floats of 8 bits with a scale for
each output; embeddings, norms and the logits stay as they are.

    kernel [N, M] bfloat16  ->  kernel [N, M] int8, kernel_scale [M] float32
"""

from collections.abc import Callable, Mapping
import functools
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float8e4m3fn, Shaped

KINDS = ("none", "int8", "float8", "float8_products")
_KERNEL = re.compile(r"(encoder|decoder)/layers_\d+/.+/kernel")

_Leaf = TypeVar("_Leaf", jax.Array, jax.ShapeDtypeStruct)


def is_quantized(name: str, kind: str) -> bool:
  """Tells whether `quantize` changes the parameter at a path."""
  return kind != "none" and _KERNEL.fullmatch(name) is not None


def quantize(params: Mapping[str, _Leaf], kind: str) -> dict[str, _Leaf]:
  """Rounds the kernels of all layers to 8 bits.

  Args:
    params: by path, or what describes them. What becomes smaller is deleted.
    kind: "int8"; "float8" or "float8_products" for e4m3; "none" changes
      nothing.

  Returns:
    All parameters, with a `kernel_scale` beside each of those kernels.
  """
  result = {}
  for name, x in params.items():
    if not is_quantized(name, kind):
      result[name] = x
      continue
    result[name], result[f"{name}_scale"] = _round(
      x, dtype=jnp.int8 if kind == "int8" else jnp.float8_e4m3fn
    )
  return result


def _round(kernel: Any, *, dtype: type) -> tuple[Any, Any]:
  """Rounds a kernel [N, M]; the result and its scales are placed as it is."""
  places = None
  if isinstance(kernel.sharding, NamedSharding):
    inputs, outputs = (*kernel.sharding.spec, None, None)[:2]
    at = functools.partial(NamedSharding, kernel.sharding.mesh)
    places = (at(PartitionSpec(inputs, outputs)), at(PartitionSpec(outputs)))
  rounding = _rounding(dtype, places)
  if isinstance(kernel, jax.ShapeDtypeStruct):
    return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      jax.eval_shape(rounding, kernel),
      places or (None, None),
    )
  # One at a time, as in `fingerprint`: a maximum may be one of several devices.
  result = jax.block_until_ready(rounding(kernel))
  kernel.delete()
  return result


@functools.cache
def _rounding(
  dtype: type, places: tuple[NamedSharding, NamedSharding] | None
) -> Callable[..., tuple[Array, Array]]:
  """Returns the one program of all kernels that are placed alike."""
  scaled = functools.partial(_scaled, axis=0, dtype=dtype)
  return jax.jit(scaled, out_shardings=places)


def _scaled(
  x: Float[Array, "*N"], *, axis: int, dtype: DTypeLike
) -> tuple[Shaped[Array, "*N"], Float[Array, "*M"]]:
  """Divides by what makes the largest of an axis the largest of a dtype.

  Returns:
    What is left, rounded, and the divisors in float32, without the axis.
  """
  is_integer = jnp.issubdtype(dtype, jnp.integer)
  largest = (jnp.iinfo if is_integer else jnp.finfo)(dtype).max
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / float(largest)
  x = x / jnp.where(scale == 0, 1.0, scale)
  rounded = (jnp.round(x) if is_integer else x).astype(dtype)
  return rounded, jnp.squeeze(scale, axis)


def product(
  inputs: Float[Array, "*B N"],
  kernel: Shaped[Array, "N M"],
  scale: Float[Array, " M"],
  *,
  dtype: DTypeLike,
  in_float8: bool,
) -> Float[Array, "*B M"]:
  """Multiplies by a kernel of 8 bits.

  Args:
    inputs: what is multiplied.
    kernel: from `quantize`.
    scale: that of each output.
    dtype: of the result.
    in_float8: round the inputs to e4m3 too, each row with a scale of its own,
      and multiply in 8 bits, backward as well; the kernel must be e4m3.
      Otherwise the product is one of `dtype`.
  """
  inputs = inputs.astype(dtype)
  if in_float8:
    return _float8_product(inputs, kernel, scale)
  # The scales behind the product, where there is less to multiply.
  return times(jnp.dot(inputs, kernel.astype(dtype)), scale)


def times(x: Float[Array, "*B"], scale: Float[Array, "*M"]) -> Array:
  """Multiplies the last axes in float32, and keeps the dtype of `x`."""
  scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
  return (x.astype(jnp.float32) * scale).astype(x.dtype)


@jax.custom_vjp
def _float8_product(
  inputs: Float[Array, "*B N"],
  kernel: Float8e4m3fn[Array, "N M"],
  scale: Float[Array, " M"],
) -> Float[Array, "*B M"]:
  return times(_float8_dot(inputs, kernel), scale)


def _float8_dot(
  x: Float[Array, "*B N"], kernel: Float8e4m3fn[Array, "N M"]
) -> Float[Array, "*B M"]:
  """Multiplies in 8 bits; the sums have the dtype of `x`."""
  rows, scale = _scaled(x, axis=-1, dtype=kernel.dtype)
  result = jnp.dot(rows, kernel, preferred_element_type=x.dtype)
  return (result * scale[..., None]).astype(x.dtype)


def _forward(
  inputs: Float[Array, "*B N"],
  kernel: Float8e4m3fn[Array, "N M"],
  scale: Float[Array, " M"],
) -> tuple[Array, tuple[Array, Array]]:
  return _float8_product(inputs, kernel, scale), (kernel, scale)


def _backward(
  kept: tuple[Array, Array], grads: Float[Array, "*B M"]
) -> tuple[Array, None, None]:
  """Returns the gradient of the inputs: what is frozen has none."""
  kernel, scale = kept
  return _float8_dot(times(grads, scale), kernel.T), None, None


_float8_product.defvjp(_forward, _backward)
