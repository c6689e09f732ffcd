# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from prompt_tuning import buckets


def positions(lengths, chosen):
  return sum(buckets.fit(chosen, int(n)) for n in lengths)


@pytest.mark.parametrize(
  ("lengths", "num_buckets", "expected"),
  [
    ([3, 5, 7, 30], 2, (8, 32)),
    ([3, 5, 7, 30], 1, (32,)),
    ([3, 5, 7, 30], 9, (8, 32)),
    ([0], 3, (8,)),
    ([60, 3], 2, (8, 50)),
  ],
)
def test_buckets_are_multiples_of_8_that_hold_all(
  lengths, num_buckets, expected
):
  chosen = buckets.choose(
    np.array(lengths), num_buckets=num_buckets, longest=50
  )
  assert chosen == expected


@pytest.mark.parametrize("num_buckets", [1, 2, 3])
def test_no_other_buckets_leave_less_padding(num_buckets):
  lengths = np.random.default_rng(0).integers(1, 64, 50) // 2 + 1
  chosen = buckets.choose(lengths, num_buckets=num_buckets, longest=64)
  others = itertools.combinations(range(8, 65, 8), num_buckets)
  best = min(positions(lengths, x) for x in others if x[-1] >= lengths.max())
  assert positions(lengths, chosen) == best


def test_a_row_that_no_bucket_holds_has_the_largest():
  assert [buckets.fit((8, 16), n) for n in (0, 8, 9, 17)] == [8, 8, 16, 16]
