# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from prompt_tuning.interpret import measures, neighbours

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def test_norms():
  prompt = np.array([[3.0, 4.0], [0.0, 2.0]])
  assert measures.norms(prompt).tolist() == [5, 2]


def test_drift_is_measured_in_norms_of_the_initial_value():
  initial = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
  prompt = np.array([[6.0, 8.0], [0.0, 1.0], [0.0, 0.0]])
  found = measures.drift(prompt, initial)
  np.testing.assert_allclose(found.distance, [5, np.sqrt(2), 0])
  np.testing.assert_allclose(found.relative, [1, np.sqrt(2), 0])
  np.testing.assert_allclose(found.cosine, [1, 0, 0], atol=1e-7)


@pytest.mark.parametrize(
  ("cluster", "expected"),
  [
    ([EAST, [2.0, 0.0], [9.0, 0.0]], 1),
    # The cosines of the three pairs are 0, -1 and 0.
    ([EAST, NORTH, WEST], -1 / 3),
    ([EAST, [0.0, 0.5]], 0),
  ],
)
def test_tightness_is_the_mean_cosine_of_pairs(cluster, expected):
  found = measures.tightness(np.array([cluster]))
  np.testing.assert_allclose(found, [expected], atol=1e-7)


def test_random_vectors_are_spread_as_the_table():
  mean, std = np.array([5.0, -1.0, 0.0]), np.array([0.1, 2.0, 0.0])
  statistics = neighbours.Statistics(mean, std, norm_mean=0.0, norm_std=0.0)
  found = measures.random_vectors(statistics, count=20_000, seed=0)
  np.testing.assert_allclose(found.mean(0), mean, atol=0.05)
  np.testing.assert_allclose(found.std(0), std, atol=0.05)
  again = measures.random_vectors(statistics, count=20_000, seed=0)
  np.testing.assert_array_equal(found, again)


def test_duplicates_are_positions_with_the_same_nearest_token():
  found = measures.duplicates(np.array([7, 3, 9, 3, 7, 3, 1]))
  assert found == {3: [1, 3, 5], 7: [0, 4]}
  assert list(found) == [3, 7]


def test_a_label_as_near_as_the_last_neighbour_is_among_the_nearest():
  prompt = np.array([EAST, NORTH, [1.0, 1.0]])
  label = np.array([1.0, 1.0])
  half = np.sqrt(0.5)
  kth = np.array([half + 0.01, half, 0.9])
  found = measures.is_among_nearest(prompt, label, kth)
  assert found.tolist() == [False, True, True]


def test_only_rows_of_the_same_direction_are_the_same():
  prompt = np.array([[8.0, 0.0], [1.0, 0.1], WEST])
  assert measures.is_same(prompt, np.array(EAST)).tolist() == [
    True,
    False,
    False,
  ]


def test_prompts_are_compared_by_mean_and_by_pairs():
  a = np.array([EAST, NORTH])
  b = np.array([EAST, EAST, [-4.0, 0.0]])
  # Their means point to (1, 1) and to (-2, 0); of six pairs two have cosine 1
  # and one has -1.
  found = measures.similarities([a, b])
  half = np.sqrt(0.5)
  np.testing.assert_allclose(
    found["average_token"], [[1, -half], [-half, 1]], atol=1e-6
  )
  np.testing.assert_allclose(
    found["per_token"], [[1 / 2, 1 / 6], [1 / 6, 1 / 9]], atol=1e-6
  )
