# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from prompt_tuning import pretrained
from prompt_tuning.pretrained import leaves, safetensors_files


def test_blocks_are_runs_of_whole_groups(monkeypatch):
  monkeypatch.setattr(leaves, "BLOCK_BYTES", 100)
  region = (slice(3, 20), slice(0, 5))
  # 20 bytes a row, so 5 rows a block, or 4 where rows come in pairs.
  runs = [(r.start, r.stop) for r in leaves.row_blocks(region, 4, 1)]
  assert runs == [(3, 5), (5, 10), (10, 15), (15, 20)]
  runs = [(r.start, r.stop) for r in leaves.row_blocks(region, 4, 2)]
  assert runs == [(3, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
  # Rows stored together are never split, however large they are.
  runs = [(r.start, r.stop) for r in leaves.row_blocks(region, 4, 10)]
  assert runs == [(3, 10), (10, 20)]


@pytest.mark.parametrize("is_turned", [False, True])
def test_any_region_is_read_in_any_blocks(tmp_path, monkeypatch, is_turned):
  array = np.arange(7 * 5, dtype=np.float32).reshape(7, 5)
  pretrained.save(
    str(tmp_path / "x.safetensors"), {"a/b": jnp.asarray(array)}, 0, {}
  )
  leaf = safetensors_files.open_file(tmp_path / "x.safetensors").leaves["a/b"]
  if is_turned:
    leaf, array = leaves.transpose(leaf), array.T
  monkeypatch.setattr(leaves, "BLOCK_BYTES", 48)
  for region in [leaves.whole(array.shape), (slice(2, 5), slice(1, 4))]:
    actual = leaves.read(leaf, region, np.dtype(np.float32))
    np.testing.assert_array_equal(actual, array[region])


@pytest.mark.parametrize(
  "shape",
  [(), (0,), (2, -1), (True,), (1.0,), "ab", None, (1,) * 9, (1 << 41,)],
  ids=repr,
)
def test_absurd_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="is not the shape of a parameter"):
    leaves.check_shape(shape)


@pytest.mark.parametrize(
  "path", ["", "/a", "a/", "a//b", "../a", "a/..", "a.b", "a b", "ä", "a" * 251]
)
def test_names_that_are_no_paths_are_refused(path):
  with pytest.raises(ValueError, match="is no path of a parameter"):
    leaves.check_path(path)


def test_equal_is_bit_for_bit():
  def leaf(*values, dtype=np.float32):
    return leaves.from_array("x", np.array(values, dtype))

  assert leaves.is_equal(leaf(np.nan, 0.0), leaf(np.nan, 0.0))
  assert not leaves.is_equal(leaf(0.0), leaf(-0.0))
  assert not leaves.is_equal(leaf(0.0), leaf(0.0, 0.0))
  assert not leaves.is_equal(leaf(0.0), leaf(0.0, dtype=np.float16))


def test_what_several_devices_hold_is_read_once(tmp_path, monkeypatch):
  path = str(tmp_path / "x.safetensors")
  pretrained.save(path, {"a/b": jnp.ones((4, 2))}, 0, {})
  mesh = jax.make_mesh((2,), ("data",))
  regions = []
  read = leaves.read

  def count(leaf, region, dtype):
    regions.append(region)
    return read(leaf, region, dtype)

  monkeypatch.setattr(leaves, "read", count)
  for spec in (PartitionSpec(), PartitionSpec("data")):
    sharding = NamedSharding(mesh, spec)
    target = jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=sharding)
    pretrained.load(path, {"a/b": target})
  rows = [(region[0].start, region[0].stop) for region in regions]
  assert (rows[0], sorted(rows[1:])) == ((0, 4), [(0, 2), (2, 4)])
