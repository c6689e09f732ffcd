# SPDX-License-Identifier: Apache-2.0
"""Attention with a bias, padding and dropout, in a kernel and its gradients'.

`jax.nn.dot_product_attention` has such a kernel too, of cuDNN, which is slower
with a bias, and adds up a gradient of the bias over the batch even if the bias
is frozen.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import ad_checkpoint
from jax.experimental import layout
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
import numpy as np

from prompt_tuning import attention_kernels, relative_position, tiling

KINDS = ("auto", "kernel", "plain")

# An array, or two parts of one.
Parts = (
  Float[Array, "B _ H K"]
  | tuple[Float[Array, "B _ H K"], Float[Array, "B _ H K"]]
)
JoinedParts = (
  Float[Array, "B _ 3 H K"]
  | tuple[Float[Array, "B _ 3 H K"], Float[Array, "B _ 3 H K"]]
)

# What the backward pass needs of the forward pass; names for `jax.checkpoint`.
KEPT = ("attention_output", "attention_sums")


def is_used(kind: str, dtype: DTypeLike, head_dim: int) -> bool:
  """Tells whether attention is to be computed by the kernel.

  Args:
    kind: "kernel", "plain", or "auto" for the kernel where it can run: on an
      NVIDIA GPU, in bfloat16, with heads whose width is a power of two.
    dtype: of the activations.
    head_dim: width of a head.

  Raises:
    ValueError: for an unknown kind, or the kernel where it cannot run.
  """
  if kind not in KINDS:
    raise ValueError(f"ATTENTION={kind!r} must be one of {KINDS}")
  if kind == "plain":
    return False
  fits = head_dim >= tiling.MIN_BLOCK and head_dim.bit_count() == 1
  is_small = jnp.dtype(dtype) == jnp.bfloat16
  can_run = is_small and fits and jax.default_backend() == "gpu"
  if kind == "kernel" and not can_run:
    raise ValueError(
      "ATTENTION='kernel' needs an NVIDIA GPU, bfloat16 activations and heads"
      f" of 16, 32, 64, ... features, found {jax.default_backend()},"
      f" {jnp.dtype(dtype)} and {head_dim}: use ATTENTION='auto'"
    )
  return can_run


def attend(
  query: Parts,
  key: Parts,
  value: Parts,
  bias: Float[Array, "H _"] | None,
  factors: Float[Array, "B H 1 N"] | None,
  lengths: Int[Array, " B"],
) -> Float[Array, "B Q H K"]:
  """Attends to the first keys of each row, without scaling the logits.

  Args:
    query: `[B, Q, H, K]` in 16 bits, or its parts: the first positions, and
      the others. If these are differentiated in none of the three arguments,
      as in the first layer behind a frozen embedding, only the gradients of
      the first positions are computed.
    key: `[B, N, H, K]`, of each position, in the same parts.
    value: of each key, likewise.
    bias: added to the logits in the query's dtype; the same for all pairs of a
      relative position, from 1 - Q to N - 1, and constant beyond
      `relative_position.MAX_DISTANCE`. It is differentiated for Q = N alone.
    factors: of the attention weights, after the softmax: dropout. They have no
      gradient.
    lengths: how many keys of a row there are, where 0 counts as 1; the others
      are not seen.
  """
  return _call(bias, factors, lengths, query, key, value)


def attend_jointly(
  query_key_value: JoinedParts,
  bias: Float[Array, "H _"] | None,
  factors: Float[Array, "B H 1 S"] | None,
  lengths: Int[Array, " B"],
) -> Float[Array, "B S H K"]:
  """Attends as `attend` does, from each position to those of the same row.

  Args:
    query_key_value: one array of all three, as one product makes them, or its
      parts. Its gradient is one array too, for one product.
    bias: see `attend`.
    factors: see `attend`.
    lengths: see `attend`.
  """
  return _call(bias, factors, lengths, query_key_value)


def _call(
  bias: Array | None, factors: Array | None, lengths: Array, *arrays: Any
) -> Array:
  """Brings the arguments into one form."""
  parts = tuple(x if isinstance(x, tuple) else (x,) for x in arrays)
  dtype = parts[0][0].dtype
  bias = None if bias is None else bias.astype(dtype)
  if factors is not None:
    factors = factors[:, :, 0].astype(dtype)
  return _attend(parts, bias, factors, jnp.maximum(lengths, 1))


@jax.custom_vjp
def _attend(arrays: tuple[tuple[Array, ...], ...], *others: Any) -> Array:
  """Takes the parts of query, key and value, or those of the one array."""
  return _forward(_inputs(arrays, *others))[0]


def _inputs(
  arrays: tuple[tuple[Array, ...], ...], *others: Any
) -> tiling.Inputs:
  joined = [
    parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    for parts in arrays
  ]
  return tiling.Inputs(*(joined * 3 if len(joined) == 1 else joined), *others)


def _forward(inputs: tiling.Inputs) -> tuple[Array, Array]:
  return _divided(attention_kernels.forward, inputs)


def _attend_fwd(*arguments: Any) -> tuple[Array, tuple]:
  """Keeps what the gradient needs, and which gradients there are."""
  values = jax.custom_derivatives.custom_vjp_primal_tree_values(arguments)
  inputs = _inputs(*values)
  output, sums = (
    ad_checkpoint.checkpoint_name(x, name)
    for x, name in zip(_forward(inputs), KEPT, strict=True)
  )
  arrays, bias, _, _ = arguments
  # Residuals are arrays: their shapes and the structure tell what is not one.
  sizes = tuple(jnp.zeros((x.shape[1], 0)) for x in values[0][0])
  rest = [x for parts in arrays for x in parts[1:]]
  is_first_alone = bool(rest) and not any(x.perturbed for x in rest)
  has_bias_gradient = bias is not None and bias.perturbed
  flags = [() if x else None for x in (is_first_alone, has_bias_gradient)]
  return output, (inputs, output, sums, sizes, flags)


def _attend_bwd(kept: tuple, gradient: Any) -> tuple:
  inputs, output, sums, sizes, (is_first_alone, has_bias_gradient) = kept
  if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
    gradient = jnp.zeros_like(output)
  ends = [int(x) for x in np.cumsum([x.shape[0] for x in sizes])]
  if is_first_alone is not None:
    products = jnp.sum(
      output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1
    ).transpose(0, 2, 1)
    arrays = output, gradient, sums, products
    found = _gradient_of_first(inputs, *arrays, num_first=ends[0])
  else:
    of_query, products = _divided(
      attention_kernels.query_gradient, inputs, output, gradient, sums
    )
    found = _completed(of_query, inputs, gradient, sums, products)
  of_bias = jax.tree.map(jnp.zeros_like, inputs.bias)
  if has_bias_gradient is not None:
    of_pairs = _divided(
      attention_kernels.bias_gradient, inputs, gradient, sums, products
    )
    spread = functools.partial(
      relative_position.of_pairs, length=of_pairs.shape[1]
    )
    (of_bias,) = jax.vjp(spread, of_bias.astype(jnp.float32))[1](of_pairs)
    of_bias = of_bias.astype(inputs.bias.dtype)
  parts = tuple(tuple(jnp.split(x, ends[:-1], axis=1)) for x in found)
  return parts, of_bias, None, None


_attend.defvjp(_attend_fwd, _attend_bwd, symbolic_zeros=True)


def _completed(
  of_query: Array, inputs: tiling.Inputs, *others: Array
) -> tuple[Array, ...]:
  """Returns the gradients of query, key and value, or that of the one array."""
  kernel = attention_kernels.key_value_gradient
  if inputs.are_joined:
    return (_divided(kernel, inputs, *others, of_query),)
  return of_query, *_divided(kernel, inputs, *others)


def _gradient_of_first(
  inputs: tiling.Inputs,
  output: Float[Array, "B Q H K"],
  gradient: Float[Array, "B Q H K"],
  sums: Float[Array, "B H Q"],
  products: Float[Array, "B H Q"],
  *,
  num_first: int,
) -> tuple[Array, ...]:
  """Returns the gradients of all positions, which are 0 but for the first."""
  query, key, value, bias, factors, lengths = inputs
  num_queries, num_keys = query.shape[1], key.shape[1]
  first = lambda x: x[:, :num_first]
  queries = inputs._replace(
    query=first(query),
    bias=None if bias is None else bias[:, num_queries - num_first :],
  )
  of_query, _ = _divided(
    attention_kernels.query_gradient,
    queries,
    first(output),
    first(gradient),
    sums[:, :, :num_first],
  )
  keys = inputs._replace(
    key=first(key),
    value=first(value),
    bias=None if bias is None else bias[:, : num_queries + num_first - 1],
    factors=None if factors is None else factors[:, :, :num_first],
    lengths=jnp.minimum(lengths, num_first),
  )
  found = _completed(of_query, keys, gradient, sums, products)
  fill = [(0, 0)] * query.ndim
  fill[1] = (0, num_keys - num_first)
  return tuple(jnp.pad(x, fill) for x in found)


def rows_first(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
  """Constrains the layout of features on their way to the kernel.

  Or XLA makes the batch the minor axis on a GPU, and each layer transposes
  twice. It cannot divide the constraint either; see `_divided`.
  """
  constrain = lambda x: layout.with_layout_constraint(
    x, layout.Layout((0, 1, 2))
  )
  if not _is_on_mesh():
    return constrain(x)
  spec = PartitionSpec(_axis("data", x.shape[0]))
  divided = jax.shard_map(
    constrain, in_specs=spec, out_specs=spec, axis_names={"data"}
  )
  return divided(x)


def _is_on_mesh() -> bool:
  """Tells whether there is a mesh of several devices that XLA divides."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto}


def _axis(name: str, size: int) -> str | None:
  """Returns the name of a mesh axis, if it divides an axis of this size."""
  number = jax.sharding.get_abstract_mesh().shape.get(name)
  return name if number and size % number == 0 else None


def _divided(
  kernel: Callable[..., Any],
  inputs: tiling.Inputs,
  *others: Array,
) -> Any:
  """Calls a kernel on each device, for its own rows and heads.

  XLA cannot divide a kernel, and would gather what it takes. T5X's mesh is not
  seen here: there it does.
  """
  if not _is_on_mesh():
    return kernel(inputs, *others)
  data = _axis("data", inputs.query.shape[0])
  model = _axis("model", inputs.query.shape[-2])

  def spec(x: Any) -> PartitionSpec:
    heads_at = {len("BHN"): 1, len("BNHK"): 2, len("BN3HK"): 3}.get(x.ndim)
    if heads_at is None:
      return PartitionSpec(data)
    return PartitionSpec(data, *[None] * (heads_at - 1), model)

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
