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
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
import numpy as np

# By place, and what shape a row has there: 1 for an axis whose features are all
# dropped together.
Factors = dict[str, Float[Array, "B ..."]]
Shapes = Mapping[str, tuple[int, ...]]

Rng = Key[Array, ""] | None  # None: no dropout.


def rngs(
  parent: nn.Module, rate: float, *, deterministic: bool
) -> tuple[Rng, Rng]:
  """Returns the rngs of a stack's dropout: around its layers, and in them."""
  if deterministic or not rate:
    return None, None
  around, inside = jax.random.split(parent.make_rng("dropout"))
  return around, inside


def draw(
  rng: Rng, rate: float, batch: int, shapes: Shapes, dtype: DTypeLike
) -> Factors | None:
  """Draws the factors of several places.

  Args:
    rng: to draw with; None draws nothing.
    rate: share of the factors that are 0; the others are 1 / (1 - rate).
    batch: number of rows, B.
    shapes: of the factors of a row.
    dtype: of the factors.
  """
  if rng is None:
    return None
  ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
  is_kept = jax.random.bernoulli(rng, 1.0 - rate, (batch, int(ends[-1])))
  kept = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
  factors = jnp.where(is_kept, kept, 0.0).astype(dtype)
  factors = lax.optimization_barrier(factors)  # Or each use draws them again.
  parts = [_whole(part) for part in jnp.split(factors, ends[:-1], axis=1)]
  return {
    place: part.reshape(batch, *shape)
    for (place, shape), part in zip(shapes.items(), parts, strict=True)
  }


def _whole(part: Float[Array, "B N"]) -> Float[Array, "B N"]:
  """Lets each device draw all of its rows' factors.

  Those of features that are divided would otherwise be cut out of a whole that
  is divided elsewhere, and have to move.
  """
  if AxisType.Auto not in jax.sharding.get_abstract_mesh().axis_types:
    return part
  spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
  return lax.with_sharding_constraint(part, spec)


def drop(
  x: Float[Array, "B S D"], factors: Factors | None, place: str
) -> Float[Array, "B S D"]:
  """Drops features, if anything was drawn."""
  return x if factors is None else x * factors[place]
