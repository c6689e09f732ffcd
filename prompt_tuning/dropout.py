# SPDX-License-Identifier: Apache-2.0
"""Dropout as factors of features, drawn for a whole layer at once.

Drawn place by place, the random bits were most of what XLA had to compile. And
a product with factors is one pass over the features, where a division and a
choice, as in Flax's `Dropout`, become two.
"""

from collections.abc import Mapping
import math

from flax import linen as nn
import jax
from jax import ad_checkpoint, lax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt32
import numpy as np

# By place, and what shape a row has there: 1 for an axis whose features are all
# dropped together.
Factors = dict[str, Float[Array, "B ..."]]
Shapes = Mapping[str, tuple[int, ...]]

# None: no dropout. T5X has rngs of the old kind.
Rng = Key[Array, ""] | UInt32[Array, "2"] | None

# Of the factors, for `jax.checkpoint`: drawing them twice takes longer than to
# keep them.
NAME = "dropout"


def rngs(
  parent: nn.Module, rate: float, *, deterministic: bool
) -> tuple[Rng, Rng]:
  """Returns the rngs of a stack's dropout: around its layers, and in them."""
  if deterministic or not rate:
    return None, None
  around, inside = jax.random.split(parent.make_rng("dropout"))
  return around, inside


def draw(
  rng: Rng, shapes: Shapes, *, num_rows: int, rate: float, dtype: DTypeLike
) -> Factors | None:
  """Draws the factors of several places.

  Args:
    rng: to draw with; None draws nothing.
    shapes: of the factors of a row.
    num_rows: B.
    rate: share of the factors that are 0; the others are 1 / (1 - rate).
    dtype: of the factors.

  Returns:
    `dtype[B, *shape]` by place.
  """
  if rng is None:
    return None
  offsets = np.cumsum([math.prod(shape) for shape in shapes.values()])
  is_kept = jax.random.bernoulli(rng, 1.0 - rate, (num_rows, int(offsets[-1])))
  kept = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
  factors = jnp.where(is_kept, kept, 0.0).astype(dtype)
  parts = [_whole(part) for part in jnp.split(factors, offsets[:-1], axis=1)]
  parts = lax.optimization_barrier(parts)  # Or each use draws them again.
  return {
    place: ad_checkpoint.checkpoint_name(part, NAME).reshape(num_rows, *shape)
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
