# SPDX-License-Identifier: Apache-2.0
"""Runs a kernel of attention for each block of each head and row."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from prompt_tuning import tiling


def call(
  kernel: Callable[..., None],
  inputs: tiling.Inputs,
  others: tuple[Array, ...],
  outputs: Any,
  blocks: tiling.Blocks,
  *,
  over: str,
  into: Array | None = None,
) -> Any:
  """Runs a kernel for each block of each head.

  Args:
    kernel: takes references to inputs, others and outputs: to those of one row
      and head, so that positions come first; and its blocks. Profilers show its
      name.
    inputs: of `attention_kernels.forward`.
    others: more arrays with axes for rows and heads.
    outputs: shapes and dtypes of the results. One with a third axis, as joined
      inputs have it, stands for what lies there first.
    blocks: how the work is divided, at most.
    over: "queries" or "keys", whose blocks, in each row, are the programs of a
      head; or "pairs" of both, which refer to all rows. Over keys the tiles of
      the bias have keys before queries.
    into: becomes the output, where the kernel does not overwrite it; the
      kernel takes references to both, with the third axis.
  """
  num_rows, num_queries, *_, num_heads, _ = inputs.query.shape
  blocks = blocks.within(num_queries, inputs.key.shape[1])
  whole_batch = over == "pairs"
  spec = functools.partial(_of_row_and_head, whole_batch=whole_batch)
  in_specs = jax.tree.map(spec, (inputs, *others))
  of_key, of_value = spec(inputs.key, place=1), spec(inputs.value, place=2)
  in_specs = (in_specs[0]._replace(key=of_key, value=of_value), *in_specs[1:])
  if inputs.bias is not None:
    tiles = tiling.tiles(inputs.bias, num_queries, blocks)
    tiles = tiles.swapaxes(2, 3) if over == "keys" else tiles
    inputs = inputs._replace(bias=tiles)
    in_specs = (in_specs[0]._replace(bias=_of_head(tiles)), *in_specs[1:])
  out_specs = jax.tree.map(_of_head if whole_batch else spec, outputs)
  aliases = {}
  if into is not None:
    aliases[len(jax.tree.leaves((inputs, others)))] = 0
    out_specs = _of_all_places(into)
    in_specs, others = (*in_specs, out_specs), (*others, into)
  return pl.pallas_call(
    functools.partial(kernel, blocks=blocks),
    out_shape=outputs,
    grid=(*_programs(blocks, num_rows, over), num_heads),
    in_specs=in_specs,
    out_specs=out_specs,
    input_output_aliases=aliases,
    compiler_params=plgpu.CompilerParams(
      num_warps=blocks.num_warps, num_stages=blocks.num_stages
    ),
    interpret=tiling.interpreted(),
    name=kernel.__name__.lstrip("_"),
  )(inputs, *others)


def _programs(
  blocks: tiling.Blocks, num_rows: int, over: str
) -> tuple[int, int]:
  """Returns the first two axes of the grid; the third are heads."""
  of_queries, of_keys = blocks.numbers
  return {
    "queries": (of_queries, num_rows),
    "keys": (of_keys, num_rows),
    "pairs": (of_queries, of_keys),
  }[over]


def _of_row_and_head(
  x: Any, *, place: int = 0, whole_batch: bool
) -> pl.BlockSpec:
  """Refers to a program's row and head, or to its head in all rows.

  Args:
    x: `[B, N, H, K]`, `[B, N, 3, H, K]`, `[B, H, N]` or `[B]`.
    place: along a third axis as in joined inputs.
    whole_batch: whether to refer to all rows.
  """
  rows = x.shape[0] if whole_batch else None
  row = lambda b: 0 if whole_batch else b
  match x.shape:
    case (_, positions, _, _, width):
      return pl.BlockSpec(
        (rows, positions, None, None, width),
        lambda _, b, h: (row(b), 0, place, h, 0),
      )
    case (_, positions, _, width):
      return pl.BlockSpec(
        (rows, positions, None, width), lambda _, b, h: (row(b), 0, h, 0)
      )
    case (_, _, positions):
      return pl.BlockSpec(
        (rows, None, positions), lambda _, b, h: (row(b), h, 0)
      )
    case _:
      return pl.BlockSpec((rows,), lambda _, b, h: (row(b),))


def _of_all_places(x: Any) -> pl.BlockSpec:
  """Refers to all along the third axis, of a program's row and head."""
  _, positions, number, _, width = x.shape
  return pl.BlockSpec(
    (None, positions, number, None, width), lambda _, b, h: (b, 0, 0, h, 0)
  )


def _of_head(x: Any) -> pl.BlockSpec:
  """Refers to all that belongs to a program's head, the first axis."""
  zeros = (0,) * (len(x.shape) - 1)
  return pl.BlockSpec((None, *x.shape[1:]), lambda _, b, h: (h, *zeros))
