# SPDX-License-Identifier: Apache-2.0
"""Blocks of positions in a kernel of Pallas: loaded, folded, biased.

Reading a bias for each pair of positions would take as long as all else. But
T5's depends on their distance alone, and does not change beyond
`relative_position.MAX_DISTANCE`: blocks that are further apart need one number,
and all others share a few tiles.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from prompt_tuning import relative_position

# exp2 is what the hardware has.
LOG2_E = math.log2(math.e)

# Tensor cores take no smaller blocks.
MIN_BLOCK = 16

_REACH = relative_position.MAX_DISTANCE


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How a kernel divides its work.

  Attributes:
    queries: positions of queries in a block, a power of two.
    keys: positions of keys in a block, a power of two.
    num_warps: of a program.
    num_stages: of the pipeline that loads the blocks ahead.
    num_queries: how many positions of queries there are; see `within`.
    num_keys: the same of keys.
  """

  queries: int
  keys: int
  num_warps: int
  num_stages: int
  num_queries: int = 0
  num_keys: int = 0

  def within(self, num_queries: int, num_keys: int) -> "Blocks":
    """Returns the blocks of so many positions, no longer than they need."""
    fit = lambda block, length: max(
      MIN_BLOCK, min(block, pl.next_power_of_2(length))
    )
    queries, keys = fit(self.queries, num_queries), fit(self.keys, num_keys)
    return Blocks(
      *(queries, keys, self.num_warps, self.num_stages), num_queries, num_keys
    )

  @property
  def numbers(self) -> tuple[int, int]:
    """How many blocks of queries and of keys there are; see `within`."""
    return (
      pl.cdiv(self.num_queries, self.queries),
      pl.cdiv(self.num_keys, self.keys),
    )


class Inputs(NamedTuple):
  """What attention is computed from.

  Attributes:
    query: in 16 bits, as are key and value; or all three are one array, in
      which they lie along its third axis.
    key: of each position.
    value: of each key.
    bias: added to the logits: by relative position, from 1 - Q to N - 1, a key
      minus a query; it does not change beyond MAX_DISTANCE.
    factors: of the attention weights, after the softmax.
    lengths: how many keys of a row there are, at least one; the others are
      not seen.
  """

  query: Float[Array, "B Q H K"] | Float[Array, "B Q 3 H K"]
  key: Float[Array, "B N H K"] | Float[Array, "B N 3 H K"]
  value: Float[Array, "B N H K"] | Float[Array, "B N 3 H K"]
  bias: Float[Array, "H Q+N-1"] | None
  factors: Float[Array, "B H N"] | None
  lengths: Int[Array, " B"]

  @property
  def are_joined(self) -> bool:
    """Whether query, key and value are one array."""
    return self.query.ndim == len("BQ3HK")


def exp2(x: Array) -> Array:
  """Returns 2 ** x by the one instruction; tiny results are 0."""
  if interpreted():
    return jnp.exp2(x)
  (result,) = plgpu.elementwise_inline_asm(
    "ex2.approx.ftz.f32 $0, $1;",
    args=[x],
    constraints="=f,f",
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
  )
  return result


def softmax_weights(logits: Array, bias: Array, sums: Array) -> Array:
  """Returns attention weights from the logits before the bias."""
  if bias.ndim:
    return exp2((logits + bias) * LOG2_E - sums)
  return exp2(logits * LOG2_E - (sums - bias * LOG2_E))


def load_factors(
  refs: Inputs, columns: pl.Slice, num_keys: int, row: Array | None = None
) -> Float[Array, "1 N"] | None:
  """Loads the factors of a block of keys, if there are any."""
  if refs.factors is None:
    return None
  factors = load(refs.factors, columns, num_keys, row)
  return factors.astype(jnp.float32)[None]


class Bias(NamedTuple):
  """The bias of a block and others, which are before, near or after it.

  Attributes:
    before: of all pairs with a block far before.
    near: loads that of a block near by, from its number.
    after: of all pairs with a block far after.
  """

  before: Float[Array, ""]
  near: Callable[[Array], Float[Array, "M N"]]
  after: Float[Array, ""]


def bias_of_queries(tiles: Any, rows: pl.Slice, blocks: Blocks) -> Bias | None:
  """Returns the bias of a block of queries and all blocks of keys."""
  if tiles is None:
    return None
  near = lambda j: tile(tiles, rows, block_at(j, blocks.keys), blocks)
  return Bias(_number(tiles, 0), near, _number(tiles, tiles.shape[0] - 1))


def bias_of_keys(tiles: Any, columns: pl.Slice, blocks: Blocks) -> Bias | None:
  """Returns the bias of a block of keys and all blocks of queries."""
  if tiles is None:
    return None
  near = lambda i: tile(tiles, block_at(i, blocks.queries), columns, blocks)
  return Bias(_number(tiles, tiles.shape[0] - 1), near, _number(tiles, 0))


def _number(tiles: Any, i: int) -> Float[Array, ""]:
  return tiles[i, 0, 0].astype(jnp.float32)


def fold(
  step: Callable[..., Any],
  carry: Any,
  own: pl.Slice,
  num_positions: Array,
  size: int,
  bias: Bias | None,
  ahead: Callable[[Array], Any],
) -> Any:
  """Folds `step` over blocks: those far before, near, far after, and the last.

  Args:
    step: takes the number of a block, the carry, the bias, what was loaded
      ahead, and whether the block may be the last one and not a whole one.
    carry: what is folded first.
    own: the block that the others are near to, or far from.
    num_positions: how many positions the others have.
    size: how many one of them has.
    bias: of the own block and the others; 0 without.
    ahead: loads what else a block needs, while the one before is computed.
  """
  num_whole = lax.div(num_positions, size)
  num_blocks = lax.div(num_positions + size - 1, size)

  def body(
    bias_of: Callable[[Array], Array], *, is_last: bool = False
  ) -> Callable[[Array, tuple], tuple]:
    def run(i: Array, carry: tuple) -> tuple:
      carry, loaded = carry
      after = ahead(i + 1)
      return step(i, carry, bias_of(i), loaded, is_last=is_last), after

    return run

  carry = carry, ahead(jnp.int32(0))
  if bias is None:
    near = lambda _: jnp.float32(0.0)
    carry = lax.fori_loop(0, num_whole, body(near), carry)
  else:
    near = bias.near
    near_from = lax.div(jnp.maximum(own.start - _REACH + 1, 0), size)
    near_to = lax.div(own.start + own.size - 1 + _REACH + size - 1, size)
    near_from = jnp.minimum(near_from, num_whole)
    near_to = jnp.minimum(near_to, num_whole)
    carry = lax.fori_loop(0, near_from, body(lambda _: bias.before), carry)
    carry = lax.fori_loop(near_from, near_to, body(near), carry)
    carry = lax.fori_loop(near_to, num_whole, body(lambda _: bias.after), carry)
  last = body(near, is_last=True)
  return lax.fori_loop(num_whole, num_blocks, last, carry)[0]


def fold_keys(
  step: Callable[..., Any],
  carry: Any,
  rows: pl.Slice,
  refs: Inputs,
  blocks: Blocks,
) -> Any:
  """Folds `step` over the keys that a block of queries sees.

  Their factors are loaded ahead; see `fold`.
  """
  return fold(
    step,
    carry,
    rows,
    refs.lengths[...],
    blocks.keys,
    bias_of_queries(refs.bias, rows, blocks),
    lambda j: load_factors(refs, block_at(j, blocks.keys), blocks.num_keys),
  )


def _tile_starts(blocks: Blocks) -> Int[np.ndarray, " T"]:
  """Returns the relative positions of the first pairs of all tiles.

  The tiles at both ends stand for all blocks that are as far apart or more.
  """
  step = min(blocks.queries, blocks.keys)
  first = pl.cdiv(_REACH + blocks.keys - 1, step)
  last = pl.cdiv(_REACH + blocks.queries - 1, step)
  return np.arange(-first, last + 1) * step


def tiles(
  bias: Float[Array, "H _"], num_queries: int, blocks: Blocks
) -> Float[Array, "H T M N"]:
  """Lays out the bias of a block of queries and one of keys, by distance."""
  distance = (
    jnp.asarray(_tile_starts(blocks))[:, None, None]
    + jnp.arange(blocks.keys)[None, None, :]
    - jnp.arange(blocks.queries)[None, :, None]
  )
  distance = jnp.clip(distance, -_REACH, _REACH)
  index = jnp.clip(distance + num_queries - 1, 0, bias.shape[1] - 1)
  return jnp.take(bias, index, axis=1)


def tile(
  tiles: Any, rows: pl.Slice, columns: pl.Slice, blocks: Blocks
) -> Float[Array, "M N"]:
  """Loads the bias of a block of queries and one of keys."""
  starts = _tile_starts(blocks)
  distance = jnp.clip(
    columns.start - rows.start, int(starts[0]), int(starts[-1])
  )
  step = int(starts[1] - starts[0])
  number = lax.div(distance - int(starts[0]), step)
  return tiles[number, :, :].astype(jnp.float32)


def block_at(i: Array, size: int) -> pl.Slice:
  """Returns the positions of a block."""
  return pl.Slice(i * size, size)


def positions(block: pl.Slice) -> Int[Array, " S"]:
  """Returns their numbers."""
  return block.start + jnp.arange(block.size)


def load(
  ref: Any,
  block: pl.Slice,
  end: int | None,
  row: Array | None = None,
  *,
  other: float = 0.0,
) -> Array:
  """Loads a block of a row's positions; those from `end` on are `other`."""
  if end is None:
    return plgpu.load(_at(ref, block, 0, row)[0])
  at, mask = _at(ref, block, end, row)
  return plgpu.load(at, mask=mask, other=other)


def store(
  ref: Any, block: pl.Slice, x: Array, end: int, *, among: int | None = None
) -> None:
  """Stores a block of positions but those from `end` on.

  `among` tells which of several arrays along the axis behind positions it is.
  """
  at, mask = _at(ref, block, end, None, among)
  plgpu.store(at, x.astype(ref.dtype), mask=mask)


def _at(
  ref: Any,
  block: pl.Slice,
  end: int,
  row: Array | None,
  among: int | None = None,
) -> tuple[Any, Array]:
  """Returns a reference to a block, and which of its positions there are."""
  index: tuple = (block,) if row is None else (row, block)
  if among is not None:
    index = (*index, jnp.int32(among))
  is_inside = positions(block) < end
  if len(ref.shape) > len(index):  # Features follow.
    return ref.at[(*index, slice(None))], is_inside[:, None]
  return ref.at[index], is_inside


def sums_like(inputs: Inputs) -> jax.ShapeDtypeStruct:
  """Returns the shape of a number for each query, in float32."""
  num_rows, num_queries, *_, num_heads, _ = inputs.query.shape
  shape = (num_rows, num_heads, num_queries)
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def interpreted() -> bool:
  """Tells whether kernels are run as plain operations: for tests, on a CPU."""
  return jax.default_backend() != "gpu"
