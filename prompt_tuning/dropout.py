# SPDX-License-Identifier: Apache-2.0
"""Dropout as factors of features, drawn for all layers of a stack at once.

Drawn place by place, the random bits were most of what XLA had to compile, and
drawn layer by layer still a quarter. And a product with factors is one pass
over the features, where a division and a choice, as in Flax's `Dropout`, become
two.
"""

from collections.abc import Mapping
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt32
import numpy as np

# By place, and what shape a row has there: 1 for an axis whose features are all
# dropped together. Those of several layers have an axis of these in front.
Factors = dict[str, Float[Array, "..."]]
Shapes = Mapping[str, tuple[int, ...]]

# T5X has rngs of the old kind.
Rng = Key[Array, ""] | UInt32[Array, "2"]


def draw_for_layers(
  rng: Rng,
  shapes: Shapes,
  *,
  num_layers: int,
  num_rows: int,
  rate: float,
  dtype: DTypeLike,
) -> Factors:
  """Draws the factors of several layers, each with an rng of its own.

  Args:
    rng: split into one for each layer.
    shapes: of the factors of a row in a layer.
    num_layers: L.
    num_rows: B.
    rate: share of the factors that are 0.
    dtype: of the factors.

  Returns:
    `dtype[L, B, *shape]` by place.
  """
  draw_fn = functools.partial(
    draw, shapes=shapes, num_rows=num_rows, rate=rate, dtype=dtype
  )
  return jax.vmap(draw_fn)(jax.random.split(rng, num_layers))


def draw(
  rng: Rng, shapes: Shapes, *, num_rows: int, rate: float, dtype: DTypeLike
) -> Factors:
  """Draws the factors of several places.

  Args:
    rng: to draw with.
    shapes: of the factors of a row.
    num_rows: B.
    rate: share of the factors that are 0; the others are 1 / (1 - rate).
    dtype: of the factors.

  Returns:
    `dtype[B, *shape]` by place.
  """
  offsets = np.cumsum([math.prod(shape) for shape in shapes.values()])
  is_kept = jax.random.bernoulli(rng, 1.0 - rate, (num_rows, int(offsets[-1])))
  kept = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
  factors = jnp.where(is_kept, kept, 0.0).astype(dtype)
  parts = [_whole(part) for part in jnp.split(factors, offsets[:-1], axis=1)]
  parts = lax.optimization_barrier(parts)  # Or each use draws them again.
  return {
    place: part.reshape(num_rows, *shape)
    for (place, shape), part in zip(shapes.items(), parts, strict=True)
  }


def _whole(part: Float[Array, "B N"]) -> Float[Array, "B N"]:
  """Lets each device draw all of its rows' factors.

  Those of features that are divided would otherwise be cut out of a whole that
  is divided elsewhere, and have to move. T5X's mesh is not seen here: there
  they do.
  """
  if AxisType.Auto not in jax.sharding.get_abstract_mesh().axis_types:
    return part
  spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
  return lax.with_sharding_constraint(part, spec)


def at(factors: Factors | None, place: str) -> Float[Array, "B ..."] | None:
  """Returns the factors of a place, if anything was drawn."""
  return None if factors is None else factors[place]


def drop(
  x: Float[Array, "B S D"], factors: Factors | None, place: str
) -> Float[Array, "B S D"]:
  """Drops features by `[B, 1, D]` or `[B, S, D]`, if anything was drawn."""
  return x if factors is None else x * factors[place]
