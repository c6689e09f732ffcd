# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from prompt_tuning.interpret import neighbours
from prompt_tuning.pretrained import leaves

# Directions 0, 90, 180 and 45 degrees, and one row without direction.
ROWS = np.array([[2, 0], [0, 5], [-1, 0], [1, 1], [0, 0]], np.float32)


def leaf(array):
  return leaves.from_array("embedding", array)


def test_neighbours_are_by_angle_alone():
  found = neighbours.nearest(leaf(ROWS), np.array([[30.0, 1.0]]), count=3)
  assert found.ids.tolist() == [[0, 3, 1]]
  norm = np.sqrt(901)
  expected = [30 / norm, 31 / norm / np.sqrt(2), 1 / norm]
  np.testing.assert_allclose(found.cosines, [expected], rtol=1e-6)


def test_of_equal_rows_the_lower_id_comes_first():
  table = np.concatenate([ROWS, 3 * ROWS, ROWS])
  found = neighbours.nearest(leaf(table), np.array([[1.0, 0.0]]), count=3)
  assert found.ids.tolist() == [[0, 5, 10]]


def test_a_row_of_zeros_has_cosine_zero_with_all():
  found = neighbours.nearest(leaf(ROWS), np.array([[1.0, 0.0]]), count=5)
  assert found.ids.tolist() == [[0, 3, 1, 4, 2]]
  assert found.cosines[0, 3] == 0


@pytest.fixture
def small_blocks(monkeypatch):
  """Makes a block of 7 rows of the tables below."""
  monkeypatch.setattr(leaves, "BLOCK_BYTES", 7 * 4 * 6)


def test_a_table_in_blocks_gives_what_a_whole_one_gives(small_blocks):
  rng = np.random.default_rng(0)
  table = rng.standard_normal((40, 6)).astype(np.float32)
  vectors = rng.standard_normal((9, 6)).astype(np.float32)
  norms = np.linalg.norm(table, axis=1)
  cosines = vectors @ table.T / norms / np.linalg.norm(vectors, axis=1)[:, None]
  order = np.argsort(-cosines, axis=1)[:, :5]
  found = neighbours.nearest(leaf(table), vectors, count=5)
  np.testing.assert_array_equal(found.ids, order)
  np.testing.assert_allclose(
    found.cosines, np.take_along_axis(cosines, order, 1), rtol=1e-5
  )
  np.testing.assert_array_equal(
    neighbours.rows(leaf(table), order), table[order]
  )
  statistics = neighbours.statistics(leaf(table))
  np.testing.assert_allclose(statistics.mean, table.mean(0), atol=1e-6)
  np.testing.assert_allclose(statistics.std, table.std(0), atol=1e-6)
  assert statistics.norm_mean == pytest.approx(norms.mean(), rel=1e-6)
  assert statistics.norm_std == pytest.approx(norms.std(), rel=1e-6)


def test_no_more_of_the_table_is_read_at_once_than_a_block(small_blocks):
  table = np.ones((40, 6), np.float32)
  sizes = []

  def fill(region, out):
    sizes.append(out.shape[0])
    out[...] = table[region]

  counted = leaves.Leaf("embedding", table.shape, table.dtype, fill)
  neighbours.nearest(counted, table[:2], count=5)
  neighbours.statistics(counted)
  assert sizes == 2 * [7, 7, 7, 7, 7, 5]
  sizes.clear()
  neighbours.rows(counted, np.array([[0, 39], [1, 2]]))
  assert sizes == [7, 5]
