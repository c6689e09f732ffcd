# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of `flash_attention`, in Pallas, compiled by Triton.

FlashAttention-2 (Dao, 2023) for what T5 needs: a bias of relative positions,
padding told by a length for each row, and dropout of whole keys. Arrays are
`[B, positions, H, K]`, as the projections make them, so that nothing is
transposed. A program computes a block of queries or keys of one head and row.
"""

from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning import kernel_calls, tiling

# The fastest of those tried on an H200; see docs/performance.md.
FORWARD = tiling.Blocks(queries=128, keys=32, num_warps=4, num_stages=3)
QUERY_GRADIENT = tiling.Blocks(queries=64, keys=64, num_warps=4, num_stages=3)
KEY_GRADIENT = tiling.Blocks(queries=128, keys=64, num_warps=4, num_stages=2)
BIAS_GRADIENT = tiling.Blocks(queries=64, keys=64, num_warps=4, num_stages=3)


def _attention(
  refs: tiling.Inputs,
  output_ref: Any,
  sums_ref: Any,
  *,
  blocks: tiling.Blocks,
) -> None:
  rows = tiling.block_at(pl.program_id(0), blocks.queries)
  length = refs.lengths[...]
  query = tiling.load(refs.query, rows, blocks.num_queries)

  def step(
    j: Array,
    carry: tuple,
    bias: Array,
    factors: Array | None,
    *,
    is_last: bool,
  ) -> tuple:
    output, highest, total = carry
    columns = tiling.block_at(j, blocks.keys)
    end = blocks.num_keys if is_last else None
    key = tiling.load(refs.key, columns, end)
    logits = plgpu.dot(query, key.T)
    # One number for all pairs is added where the maximum is subtracted.
    shift: Any = 0.0
    if bias.ndim:
      logits += bias
    else:
      shift = bias * tiling.LOG2_E
    if is_last:
      is_key = tiling.positions(columns) < length
      logits = jnp.where(is_key[None], logits, -jnp.inf)
    new = jnp.maximum(highest, jnp.max(logits, axis=1) * tiling.LOG2_E + shift)
    weights = tiling.exp2(logits * tiling.LOG2_E - (new - shift)[:, None])
    shrink = tiling.exp2(highest - new)
    total = total * shrink + jnp.sum(weights, axis=1)
    if factors is not None:
      weights *= factors
    value = tiling.load(refs.value, columns, end)
    output = output * shrink[:, None]
    output += plgpu.dot(weights.astype(value.dtype), value)
    return output, new, total

  start = (
    jnp.zeros(query.shape, jnp.float32),
    jnp.full(blocks.queries, -jnp.inf, jnp.float32),
    jnp.zeros(blocks.queries, jnp.float32),
  )
  output, highest, total = tiling.fold_keys(step, start, rows, refs, blocks)
  tiling.store(output_ref, rows, output / total[:, None], blocks.num_queries)
  tiling.store(sums_ref, rows, highest + jnp.log2(total), blocks.num_queries)


def forward(
  inputs: tiling.Inputs,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q"]]:
  """Returns the output, and the logarithm to base 2 of the softmax's sums.

  Sums of the exponentials themselves: no maximum is subtracted from the logits.
  """
  num_rows, num_queries, *_, num_heads, width = inputs.query.shape
  shape = (num_rows, num_queries, num_heads, width)
  output = jax.ShapeDtypeStruct(shape, inputs.query.dtype)
  return kernel_calls.call(
    _attention,
    inputs,
    (),
    (output, tiling.sums_like(inputs)),
    FORWARD,
    over="queries",
  )


def _attention_query_gradient(
  refs: tiling.Inputs,
  output_ref: Any,
  gradient_ref: Any,
  sums_ref: Any,
  of_query_ref: Any,
  products_ref: Any,
  *,
  blocks: tiling.Blocks,
) -> None:
  rows = tiling.block_at(pl.program_id(0), blocks.queries)
  length = refs.lengths[...]
  query = tiling.load(refs.query, rows, blocks.num_queries)
  gradient = tiling.load(gradient_ref, rows, blocks.num_queries)
  output = tiling.load(output_ref, rows, blocks.num_queries)
  products = jnp.sum(
    output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=1
  )
  tiling.store(products_ref, rows, products, blocks.num_queries)
  sums = tiling.load(sums_ref, rows, blocks.num_queries)

  def step(
    j: Array,
    of_query: Array,
    bias: Array,
    factors: Array | None,
    *,
    is_last: bool,
  ) -> Array:
    columns = tiling.block_at(j, blocks.keys)
    end = blocks.num_keys if is_last else None
    key = tiling.load(refs.key, columns, end)
    value = tiling.load(refs.value, columns, end)
    logits = plgpu.dot(query, key.T)
    weights = tiling.softmax_weights(logits, bias, sums[:, None])
    if is_last:
      is_key = tiling.positions(columns) < length
      weights = jnp.where(is_key[None], weights, 0.0)
    of_weights = plgpu.dot(gradient, value.T)
    if factors is not None:
      of_weights *= factors
    of_logits = weights * (of_weights - products[:, None])
    return of_query + plgpu.dot(of_logits.astype(key.dtype), key)

  start = jnp.zeros(query.shape, jnp.float32)
  of_query = tiling.fold_keys(step, start, rows, refs, blocks)
  tiling.store(of_query_ref, rows, of_query, blocks.num_queries)


def query_gradient(
  inputs: tiling.Inputs,
  output: Float[Array, "B Q H K"],
  gradient: Float[Array, "B Q H K"],
  sums: Float[Array, "B H Q"],
) -> tuple[Array, Float[Array, "B H Q"]]:
  """Returns the gradient of the query, and the products of output and gradient.

  The gradient has the query's shape. Of joined inputs it lies where the query
  does, and no more is there yet; see `key_value_gradient`.

  Args:
    inputs: of `forward`.
    output: of `forward`.
    gradient: of the output.
    sums: of `forward`.
  """
  of_query = jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype)
  return kernel_calls.call(
    _attention_query_gradient,
    inputs,
    (output, gradient, sums),
    (of_query, tiling.sums_like(inputs)),
    QUERY_GRADIENT,
    over="queries",
  )


def _attention_key_value_gradient(
  refs: tiling.Inputs,
  gradient_ref: Any,
  sums_ref: Any,
  products_ref: Any,
  *of_refs: Any,
  blocks: tiling.Blocks,
) -> None:
  columns = tiling.block_at(pl.program_id(0), blocks.keys)
  length = refs.lengths[...]
  key = tiling.load(refs.key, columns, blocks.num_keys)
  value = tiling.load(refs.value, columns, blocks.num_keys)
  is_key = (tiling.positions(columns) < length)[:, None]
  factors = None
  if refs.factors is not None:
    factors = tiling.load(refs.factors, columns, blocks.num_keys)[:, None]
    value *= factors

  def ahead(i: Array) -> tuple[Array, Array]:
    rows = tiling.block_at(i, blocks.queries)
    return (
      # Infinite, or queries that there are not had weights beyond all bounds.
      tiling.load(sums_ref, rows, blocks.num_queries, other=jnp.inf),
      tiling.load(products_ref, rows, blocks.num_queries),
    )

  def step(
    i: Array, carry: tuple, bias: Array, loaded: tuple, *, is_last: bool
  ) -> tuple:
    of_key, of_value = carry
    sums, products = loaded
    rows = tiling.block_at(i, blocks.queries)
    end = blocks.num_queries if is_last else None
    query = tiling.load(refs.query, rows, end)
    gradient = tiling.load(gradient_ref, rows, end)
    weights = tiling.softmax_weights(plgpu.dot(key, query.T), bias, sums[None])
    of_value += plgpu.dot(weights.astype(gradient.dtype), gradient)
    of_weights = plgpu.dot(value, gradient.T)
    of_logits = weights * (of_weights - products[None])
    of_key += plgpu.dot(of_logits.astype(query.dtype), query)
    return of_key, of_value

  zeros = jnp.zeros(key.shape, jnp.float32)
  is_seen = (columns.start < length).astype(jnp.int32)
  of_key, of_value = tiling.fold(
    step,
    (zeros, zeros),
    columns,
    is_seen * blocks.num_queries,
    blocks.queries,
    tiling.bias_of_keys(refs.bias, columns, blocks),
    ahead,
  )
  if factors is not None:
    of_value *= factors
  # Keys that are not seen have no weight of the softmax, but one here.
  of_key, of_value = (jnp.where(is_key, x, 0.0) for x in (of_key, of_value))
  if len(of_refs[-1].shape) == len("N3K"):  # One array, given and returned.
    tiling.store(of_refs[-1], columns, of_key, blocks.num_keys, among=1)
    tiling.store(of_refs[-1], columns, of_value, blocks.num_keys, among=2)
  else:
    tiling.store(of_refs[0], columns, of_key, blocks.num_keys)
    tiling.store(of_refs[1], columns, of_value, blocks.num_keys)


def key_value_gradient(
  inputs: tiling.Inputs,
  gradient: Float[Array, "B Q H K"],
  sums: Float[Array, "B H Q"],
  products: Float[Array, "B H Q"],
  into: Float[Array, "B N 3 H K"] | None = None,
) -> tuple[Float[Array, "B N H K"], ...] | Float[Array, "B N 3 H K"]:
  """Returns the gradients of key and value.

  Args:
    inputs: of `forward`.
    gradient: of the output.
    sums: of `forward`.
    products: of `query_gradient`.
    into: for joined inputs the gradient that `query_gradient` has returned, of
      as many positions as keys. It is completed, and is the result.
  """
  like_key = jax.ShapeDtypeStruct(inputs.key.shape, inputs.key.dtype)
  return kernel_calls.call(
    _attention_key_value_gradient,
    inputs,
    (gradient, sums, products),
    (like_key, like_key) if into is None else like_key,
    KEY_GRADIENT,
    over="keys",
    into=into,
  )


def _attention_bias_gradient(
  refs: tiling.Inputs,
  gradient_ref: Any,
  sums_ref: Any,
  products_ref: Any,
  of_bias_ref: Any,
  *,
  blocks: tiling.Blocks,
) -> None:
  rows = tiling.block_at(pl.program_id(0), blocks.queries)
  columns = tiling.block_at(pl.program_id(1), blocks.keys)
  bias = tiling.tile(refs.bias, rows, columns, blocks)

  def step(b: Array, of_bias: Array) -> Array:
    query = tiling.load(refs.query, rows, blocks.num_queries, b)
    key = tiling.load(refs.key, columns, blocks.num_keys, b)
    value = tiling.load(refs.value, columns, blocks.num_keys, b)
    gradient = tiling.load(gradient_ref, rows, blocks.num_queries, b)
    sums = tiling.load(sums_ref, rows, blocks.num_queries, b, other=jnp.inf)
    products = tiling.load(products_ref, rows, blocks.num_queries, b)
    weights = tiling.softmax_weights(
      plgpu.dot(query, key.T), bias, sums[:, None]
    )
    of_weights = plgpu.dot(gradient, value.T)
    factors = tiling.load_factors(refs, columns, blocks.num_keys, b)
    if factors is not None:
      of_weights *= factors
    is_key = tiling.positions(columns) < refs.lengths[b]
    of_logits = weights * (of_weights - products[:, None])
    return of_bias + jnp.where(is_key[None], of_logits, 0.0)

  start = jnp.zeros((blocks.queries, blocks.keys), jnp.float32)
  of_bias_ref[rows, columns] = lax.fori_loop(
    0, refs.lengths.shape[0], step, start
  )


def bias_gradient(
  inputs: tiling.Inputs,
  gradient: Float[Array, "B Q H K"],
  sums: Float[Array, "B H Q"],
  products: Float[Array, "B H Q"],
) -> Float[Array, "H Q N"]:
  """Returns the gradient of each pair's bias, float32, summed over the rows.

  Args:
    inputs: of `forward`.
    gradient: of the output.
    sums: of `forward`.
    products: of `query_gradient`.
  """
  _, num_queries, *_, num_heads, _ = inputs.query.shape
  num_keys = inputs.key.shape[1]
  blocks = BIAS_GRADIENT.within(num_queries, num_keys)
  num_blocks = blocks.numbers
  shape = (
    num_heads,
    num_blocks[0] * blocks.queries,
    num_blocks[1] * blocks.keys,
  )
  of_bias = kernel_calls.call(
    _attention_bias_gradient,
    inputs,
    (gradient, sums, products),
    jax.ShapeDtypeStruct(shape, jnp.float32),
    blocks,
    over="pairs",
  )
  return of_bias[:, :num_queries, :num_keys]
