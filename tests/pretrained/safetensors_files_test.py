# SPDX-License-Identifier: Apache-2.0
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from prompt_tuning.pretrained import leaves, safetensors_files

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data=bytes(8)):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


def arrays():
  rng = np.random.default_rng(0)
  return {
    "a/f32": rng.standard_normal((3, 4)).astype(np.float32),
    "a/bf16": rng.standard_normal(5).astype(jnp.bfloat16),
    "a/f16": rng.standard_normal((2, 1, 3)).astype(np.float16),
    "a/i32": np.arange(3, dtype=np.int32),
    "a/bool": np.array([True, False, True]),
  }


def read_all(path):
  found = safetensors_files.open_file(path).leaves
  return {
    k: leaves.read(x, leaves.whole(x.shape), x.dtype) for k, x in found.items()
  }


def assert_equal(actual, expected):
  assert actual.keys() == expected.keys()
  for name, x in expected.items():
    assert actual[name].dtype == x.dtype
    np.testing.assert_array_equal(actual[name], x)


def test_files_of_the_safetensors_package_are_read(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(arrays(), path, {"key": "value"})
  assert safetensors_files.open_file(path).metadata == {"key": "value"}
  assert_equal(read_all(path), arrays())


def test_the_safetensors_package_reads_our_files(tmp_path):
  path = tmp_path / "x.safetensors"
  stored = {k: leaves.from_array(k, x) for k, x in arrays().items()}
  safetensors_files.write_file(path, stored, {"key": "value"}, dtype=None)
  with safetensors.safe_open(path, "numpy") as file:
    assert file.metadata() == {"key": "value"}
    assert_equal({k: file.get_tensor(k) for k in file.keys()}, arrays())  # noqa: SIM118


def test_a_dtype_is_cast_to_while_writing(tmp_path):
  path = tmp_path / "x.safetensors"
  array = np.array([1.00390625, 2.0], np.float32)
  stored = {"a": leaves.from_array("a", array)}
  bfloat16 = np.dtype(jnp.bfloat16)
  safetensors_files.write_file(path, stored, {}, dtype=bfloat16)
  assert_equal(read_all(path), {"a": array.astype(jnp.bfloat16)})


@pytest.mark.parametrize(
  ("header", "message"),
  [
    ({"a": ENTRY | {"dtype": "F4"}}, "tensor 'a': dtype 'F4' is unknown"),
    ({"a": ENTRY | {"dtype": [1]}}, r"dtype \[1\] is unknown"),
    ({"a": ENTRY | {"shape": [3]}}, r"\[0, 8\] do not fit float32 \(3,\)"),
    ({"a": ENTRY | {"shape": [-2]}}, "not the shape of a parameter"),
    ({"a": ENTRY | {"data_offsets": [-8, 0]}}, "do not fit"),
    ({"a": ENTRY | {"data_offsets": [0, 8.0]}}, "must be two integers"),
    ({"a": ENTRY | {"data_offsets": [8, 16]}}, "overlap or leave a gap"),
    ({"a": ENTRY, "b": ENTRY}, "overlap or leave a gap"),
    ({"a": ENTRY | {"more": 1}}, "needs dtype, shape and data_offsets"),
    ({"a": 1}, "needs dtype, shape and data_offsets"),
    ({}, "need 10 bytes, the file has 18"),
    ({"__metadata__": {"a": 1}, "a": ENTRY}, "must map names to texts"),
    (b'{"a":1,"a":2}', "a name occurs twice"),
    (b"[" * 100_000, "JSON nested too deeply"),
    (b"[]", "JSON holds a list, not an object"),
    (b"\xff", "invalid start byte|can't decode"),
    (b"{", "Expecting property name"),
  ],
  ids=str,
)
def test_damaged_headers_are_refused(tmp_path, header, message):
  path = write(tmp_path / "x.safetensors", header)
  with pytest.raises(ValueError, match=message) as error:
    safetensors_files.open_file(path)
  assert str(error.value).startswith(f"{path} is not a sound safetensors file")


@pytest.mark.parametrize("size", [0, 7, 8, 30, -1])
def test_cut_files_are_refused(tmp_path, size):
  path = write(tmp_path / "x.safetensors", {"a": ENTRY})
  os.truncate(path, size % path.stat().st_size)
  with pytest.raises(ValueError, match="longer than the file|the file has"):
    safetensors_files.open_file(path)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path):
  path = write(tmp_path / "x.safetensors", {"a": ENTRY})
  leaf = safetensors_files.open_file(path).leaves["a"]
  os.truncate(path, path.stat().st_size - 4)
  with pytest.raises(
    ValueError, match="a cannot be read: .*safetensors has become shorter"
  ):
    leaves.read(leaf, leaves.whole(leaf.shape), leaf.dtype)
