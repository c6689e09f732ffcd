# SPDX-License-Identifier: Apache-2.0
"""T5's relative position bias, with T5X's name, shape and logical axes."""

from flax import linen as nn
from flax.linen import partitioning
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
import numpy as np

_NUM_BUCKETS = 32

# The distance from which on the last bucket is used, and the bias constant.
MAX_DISTANCE = 128


def buckets(
  relative_position: Int[np.ndarray, "*N"],
  *,
  bidirectional: bool,
  num_buckets: int = _NUM_BUCKETS,
  max_distance: int = MAX_DISTANCE,
) -> Int[np.ndarray, "*N"]:
  """Sorts distances into T5's buckets: exact when near, logarithmic when far.

  Args:
    relative_position: key position minus query position.
    bidirectional: keep half of the buckets for keys after the query; otherwise
      such keys fall into bucket 0.
    num_buckets: number of buckets.
    max_distance: see MAX_DISTANCE.
  """
  distance = -relative_position
  offset = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distance < 0, num_buckets, 0)
    distance = np.abs(distance)
  distance = np.maximum(distance, 0)
  num_exact = num_buckets // 2
  # float32 with its epsilon, as T5X computes it: float64 would move the
  # distances that lie on the boundary of two buckets.
  ratio = distance.astype(np.float32) / num_exact + np.finfo(np.float32).eps
  logarithmic = np.log(ratio) / np.log(max_distance / num_exact)
  far = num_exact + (logarithmic * (num_buckets - num_exact)).astype(np.int32)
  far = np.minimum(far, num_buckets - 1)
  return (offset + np.where(distance < num_exact, distance, far)).astype(
    np.int32
  )


class RelativePositionBias(nn.Module):
  """One learned bias per head and bucket of relative position.

  Attributes:
    num_heads: number of heads, H.
    bidirectional: True in an encoder, False in a decoder.
    dtype: dtype of the result.
    param_dtype: dtype in which the table is stored.
  """

  num_heads: int
  bidirectional: bool
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, length: int
  ) -> Float[Array, "{self.num_heads} 2*{length}-1"]:
    """Returns the bias of relative positions 1 - length to length - 1."""
    table = partitioning.param_with_axes(
      "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (self.num_heads, _NUM_BUCKETS),
      self.param_dtype,
      axes=("heads", "relpos_buckets"),
    )
    distances = np.arange(1 - length, length)
    bucket_of = buckets(distances, bidirectional=self.bidirectional)
    return jnp.take(table.astype(self.dtype), bucket_of, axis=1)


def causal(
  values: Float[Array, "H _"], *, masked: float
) -> Float[Array, "H _"]:
  """Adds `masked` to the values of keys that come after their queries.

  Args:
    values: of the relative positions 1 - n to n - 1.
    masked: a large negative number.
  """
  is_after = np.arange(values.shape[1]) > values.shape[1] // 2
  return values + jnp.where(is_after, masked, 0.0).astype(values.dtype)[None]


def of_pairs(
  values: Float[Array, "H _"], length: int
) -> Float[Array, "H {length} {length}"]:
  """Puts the value of each relative position where query and key have it.

  The values of -1, 0 and 1, `a b c`, become the rows `b c` and `a b`. Equal to
  a gather, whose gradient would add all pairs of positions to a few dozen
  places, one after the other: half a second a step on a GPU. Here rows that
  are one value longer than those they are reshaped to shift by one each, and
  the gradient is a sum.

  Args:
    values: of the relative positions `1 - length` to `length - 1`.
    length: number of positions.
  """
  num_heads, num_values = values.shape
  rows = jnp.pad(values, ((0, 0), (0, 1)))[:, None]
  rows = jnp.broadcast_to(rows, (num_heads, length, num_values + 1))
  flat = rows.reshape(num_heads, -1)[:, : length * num_values]
  return flat.reshape(num_heads, length, num_values)[:, :, length - 1 :]
