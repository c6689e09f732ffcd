# SPDX-License-Identifier: Apache-2.0
"""The rows of an embedding table nearest to some vectors.

The table is read block by block, again for every question, so that one of
250,000 rows of width 4,096 needs no more memory than a small one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from jaxtyping import Float, Int
import numpy as np

from prompt_tuning.pretrained import leaves


class Neighbours(NamedTuple):
  """For each of N vectors some ids, most similar first, and their cosines."""

  ids: Int[np.ndarray, "N _"]
  cosines: Float[np.ndarray, "N _"]


class Statistics(NamedTuple):
  """Mean and standard deviation of a table's columns, and of its row norms."""

  mean: Float[np.ndarray, " D"]
  std: Float[np.ndarray, " D"]
  norm_mean: float
  norm_std: float


def unit(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  """Divides rows by their norms; a row of zeros stays, with cosine 0 to all."""
  norms = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.maximum(norms, np.finfo(np.float32).tiny)


def _spans(table: leaves.Leaf) -> Iterator[slice]:
  """Yields the rows of each block."""
  yield from leaves.row_blocks(leaves.whole(table.shape), 4, 1)


def _read(table: leaves.Leaf, span: slice) -> Float[np.ndarray, "N D"]:
  region = (span, slice(0, table.shape[1]))
  return leaves.read(table, region, np.dtype(np.float32))


def statistics(table: leaves.Leaf) -> Statistics:
  """Summarises a table `[V, D]`."""
  total = np.zeros(table.shape[1])
  squares = np.zeros(table.shape[1])
  norms = []
  for span in _spans(table):
    block = _read(table, span)
    total += block.sum(0, dtype=np.float64)
    squares += np.square(block, dtype=np.float64).sum(0)
    norms.append(np.linalg.norm(block, axis=1))
  mean = total / table.shape[0]
  variance = np.maximum(squares / table.shape[0] - mean**2, 0)
  norm = np.concatenate(norms)
  return Statistics(
    mean, np.sqrt(variance), float(norm.mean()), float(norm.std())
  )


def nearest(
  table: leaves.Leaf, vectors: Float[np.ndarray, "N D"], *, count: int
) -> Neighbours:
  """Finds the `count` rows of highest cosine for each vector.

  Of rows that are equally near the one with the lower id comes first.
  """
  queries = unit(vectors)
  ids = np.empty((len(queries), 0), np.int64)
  cosines = np.empty((len(queries), 0), np.float32)
  for span in _spans(table):
    found = queries @ unit(_read(table, span)).T
    new = np.broadcast_to(np.arange(span.start, span.stop), found.shape)
    # The best so far go first: their ids are lower, and `top_k` is stable.
    ids = np.concatenate([ids, new], axis=1)
    cosines = np.concatenate([cosines, found], axis=1)
    best = jax.lax.top_k(cosines, min(count, cosines.shape[1]))
    cosines, order = map(np.asarray, best)
    ids = np.take_along_axis(ids, order, axis=1)
  return Neighbours(ids, cosines)


def rows(
  table: leaves.Leaf, ids: Int[np.ndarray, "*N"]
) -> Float[np.ndarray, "*N D"]:
  """Reads some rows of a table, and only the blocks that have them."""
  result = np.empty((*ids.shape, table.shape[1]), np.float32)
  for span in _spans(table):
    is_here = (ids >= span.start) & (ids < span.stop)
    if is_here.any():
      result[is_here] = _read(table, span)[ids[is_here] - span.start]
  return result
