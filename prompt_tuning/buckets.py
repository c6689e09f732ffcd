# SPDX-License-Identifier: Apache-2.0
"""Lengths that batches are cut to, so that less of them is padding.

Every length is compiled once, so there are few. They are chosen from the data.
"""

from collections.abc import Sequence

from jaxtyping import Int
import numpy as np

# Matrix units of GPUs and TPUs work on multiples of 8 rows.
_MULTIPLE = 8


def choose(
  lengths: Int[np.ndarray, " N"], *, num_buckets: int, longest: int
) -> tuple[int, ...]:
  """Chooses the bucket lengths that leave the least padding.

  Each row is counted in the smallest bucket that holds it.

      lengths [3, 5, 7, 30], num_buckets 2   (8, 32)

  Args:
    lengths: number of tokens of each row.
    num_buckets: how many to choose; fewer if fewer do as well.
    longest: no bucket is longer.

  Returns:
    Multiples of 8, or `longest`, in rising order; the last holds every row.
  """
  rounded = np.maximum(-(-lengths // _MULTIPLE), 1) * _MULTIPLE
  sizes, counts = np.unique(np.minimum(rounded, longest), return_counts=True)
  below = np.concatenate([[0], np.cumsum(counts)])
  # costs[j]: fewest positions for the rows of the j smallest sizes.
  costs = np.where(below > 0, np.inf, 0.0)
  choices = []
  for _ in range(min(num_buckets, len(sizes))):
    # Row j, column i: the last bucket holds the sizes i to j-1.
    last = np.concatenate([[0], sizes])[:, None] * (below[:, None] - below)
    total = np.where(np.tri(len(below), k=-1), costs + last, np.inf)
    total[0, 0] = 0.0
    choices.append(np.argmin(total, axis=1))
    costs = np.min(total, axis=1)
  buckets, end = [], len(sizes)
  for choice in reversed(choices):
    if end:
      buckets.append(int(sizes[end - 1]))
      end = int(choice[end])
  return tuple(reversed(buckets))


def fit(buckets: Sequence[int], longest_row: int) -> int:
  """Returns the smallest bucket that holds a row, or the largest."""
  return next((x for x in buckets if x >= longest_row), buckets[-1])
