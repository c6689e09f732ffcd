# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import shutil

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tensorstore as ts

from prompt_tuning import checkpoints, pretrained, trainer
from prompt_tuning.pretrained import leaves, t5x, zarr_arrays

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SCALE = "encoder/encoder_norm/scale"


@pytest.fixture
def checkpoint(tmp_path):
  path = tmp_path / "checkpoint_3"
  shutil.copytree(GOLDENS / "t5x_checkpoint/checkpoint_3", path)
  return path


@pytest.fixture
def orbax(tmp_path):
  path = tmp_path / "checkpoint_2"
  shutil.copytree(GOLDENS / "t5x_checkpoint_orbax/checkpoint_2", path)
  return path


def read(leaf):
  return leaves.read(leaf, leaves.whole(leaf.shape), leaf.dtype)


def pack(*fields, code=1):
  return msgpack.ExtType(code, msgpack.packb(fields))


def index(target, state=None):
  optimizer = {"target": target} | ({} if state is None else {"state": state})
  return msgpack.packb({"version": 3, "optimizer": optimizer})


def place(path, **kvstore):
  return {"driver": "zarr", "kvstore": {"path": path, **kvstore}}


def assert_refused(path, message):
  read_scale = lambda: read(pretrained.open_checkpoint(str(path)).leaves[SCALE])
  with pytest.raises(ValueError, match=message):
    read_scale()


def test_the_index_tells_places_arrays_and_step():
  array = np.array([1, 2], np.float32)
  target = {
    "a": {"b": place("target.a.b/", driver="gcs", bucket="placeholder")},
    "c": pack([2], "float32", array.tobytes()),
  }
  state = {"step": pack([], "int32", b"\x05\0\0\0", code=3)}
  places, arrays, step = t5x.parse_index(index(target, state))
  assert places == {"a/b": "target.a.b"}
  np.testing.assert_array_equal(arrays["c"], array)
  assert (list(arrays), step) == (["c"], 5)
  assert t5x.parse_index(index(target, {"step": 7}))[2] == 7
  assert t5x.parse_index(index(target))[2] == 0


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (msgpack.packb([1]), "no optimizer/target"),
    (msgpack.packb({"optimizer": {}}), "no optimizer/target"),
    (index(3), "target is no array"),
    (index({"a": None}), "a is no array"),
    (index({"a": pack([], "float32", bytes(4))}), "a is no array"),
    (index({"a": pack([2], "float32", bytes(4))}), "needs 8 bytes"),
    (index({"a": pack([-1], "float32", b"")}), "not the shape of a param"),
    (index({"a": pack([1], "object", bytes(8))}), "dtype 'object' is unknown"),
    (index({"a": pack([1], "float32")}), "needs shape, dtype and bytes"),
    (index({"a": pack([1], "float32", b"", code=2)}), "extension type 2"),
    (index({"../a": {}}), "is no path"),
    (index({"a": {"b.c": None}}), "is no path"),
    (index({"a": place("../x/")}), "'../x', outside of this folder"),
    (index({"a": place("/etc/x/")}), "'/etc/x', outside of this folder"),
    (index({"a": place("x/y/")}), "outside of this folder"),
    (index({"a": place("..")}), "outside of this folder"),
    (index({"a": place("")}), "outside of this folder"),
    (index({"a": place(3)}), "is not a zarr array in this folder"),
    (index({"a": place("x") | {"driver": "n5"}}), "is not a zarr array"),
    (index({}, {"step": -1}), "state/step is -1"),
    (index({}, {"step": 1.0}), "state/step is 1.0"),
    (b"\x81" * 5000, "nested too deeply"),
    (b"\xdd\xff\xff\xff\xff", "exceeds|incomplete"),
    (b"", "incomplete input|Unpack failed"),
  ],
)
def test_a_damaged_index_is_refused(checkpoint, content, message):
  (checkpoint / "checkpoint").write_bytes(content)
  with pytest.raises(ValueError, match=f"no sound T5X index: .*(?:{message})"):
    pretrained.open_checkpoint(str(checkpoint))


def test_a_tree_that_is_too_deep_is_refused():
  tree = {}
  for _ in range(40):
    tree = {"a": tree}
  with pytest.raises(ValueError, match="the tree is too deep"):
    t5x.parse_index(index(tree))


def test_arrays_in_the_index_are_leaves(checkpoint):
  array = np.array([1, 2], np.float32)
  target = {"a": pack([2], "float32", array.tobytes())}
  (checkpoint / "checkpoint").write_bytes(index(target))
  leaf = pretrained.open_checkpoint(str(checkpoint)).leaves["a"]
  np.testing.assert_array_equal(read(leaf), array)


def test_bfloat16_stored_as_uint16_is_read_as_bfloat16(checkpoint):
  # As T5X wrote it before version 3.
  folder = checkpoint / "target.encoder.encoder_norm.scale"
  shutil.rmtree(folder)
  shutil.copytree(
    GOLDENS
    / "t5x_checkpoint_bf16/checkpoint_3/target.encoder.encoder_norm.scale",
    folder,
  )
  expected = read(pretrained.open_checkpoint(str(checkpoint)).leaves[SCALE])
  assert expected.dtype == jnp.bfloat16
  set_zarray(checkpoint, dtype="<u2")
  leaf = pretrained.open_checkpoint(str(checkpoint)).leaves[SCALE]
  assert leaf.dtype == jnp.bfloat16
  assert read(leaf).tobytes() == expected.tobytes()


def set_zarray(checkpoint, **entries):
  path = checkpoint / "target.encoder.encoder_norm.scale/.zarray"
  path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_missing_chunk_is_an_error_and_not_zeros(checkpoint):
  (checkpoint / "target.encoder.encoder_norm.scale/0").unlink()
  assert_refused(checkpoint, "scale cannot be read: .*is missing")


def test_a_cut_chunk_is_an_error(checkpoint):
  chunk = checkpoint / "target.encoder.encoder_norm.scale/0"
  chunk.write_bytes(chunk.read_bytes()[:-9])
  assert_refused(checkpoint, "scale cannot be read: ")


def test_a_missing_array_is_named(checkpoint):
  shutil.rmtree(checkpoint / "target.encoder.encoder_norm.scale")
  assert_refused(checkpoint, "target.encoder.encoder_norm.scale is no sound")


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"chunks": [1 << 40]}, "chunks .* of an array"),
    ({"shape": []}, "is no sound array"),
    ({"shape": [-1]}, "is no sound array"),
    ({"dtype": "|O"}, "is no sound array"),
    ({"dtype": "<f8"}, "cannot be read"),
    ({"shape": [64]}, "is missing"),
    ({"compressor": {"id": "pickle"}}, "is no sound array"),
  ],
  ids=str,
)
def test_a_damaged_description_of_an_array_is_refused(
  checkpoint, entries, message
):
  set_zarray(checkpoint, **entries)
  assert_refused(checkpoint, message)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "Expecting property name"),
    ("{}", "there is no target"),
    ('{"tree_metadata": {"a": 1}}', "an entry has no key_metadata"),
    ('{"tree_metadata": {"a": {"key_metadata": [1, 2]}}}', "no target"),
    (
      '{"tree_metadata": {"a": {"key_metadata": [{"key": "target"}, '
      '{"key": "../x"}]}}}',
      "'target/../x' is no path",
    ),
  ],
)
def test_damaged_metadata_of_orbax_is_refused(orbax, content, message):
  (orbax / "state/_METADATA").write_text(content)
  with pytest.raises(ValueError, match=f"_METADATA is not sound: .*{message}"):
    pretrained.open_checkpoint(str(orbax))


def test_a_damaged_store_of_orbax_is_refused(orbax):
  (orbax / "state/manifest.ocdbt").write_bytes(b"garbage")
  assert_refused(orbax, "is no sound array: ")


def test_the_step_of_orbax_must_be_an_integer(orbax):
  store = {"driver": "file", "path": f"{orbax}/"}
  with pytest.raises(ValueError, match="step is no integer: "):
    zarr_arrays.read_scalar(zarr_arrays.zarr_spec(store), "step")
  leaf = leaves.from_array("x", np.ones(2, np.float32))
  zarr_arrays.write_array(store, leaf, leaf.dtype)
  with pytest.raises(ValueError, match=r"step is no integer: float32 \(2,\)"):
    zarr_arrays.read_scalar(zarr_arrays.zarr_spec(store), "step")


def write_scalar(folder, value):
  spec = zarr_arrays.zarr_spec({"driver": "file", "path": f"{folder}/"})
  value = np.asarray(value)
  opened = {"dtype": value.dtype.name, "create": True, "delete_existing": True}
  ts.open(spec | opened, shape=()).result().write(value).result()
  return spec


def test_the_step_of_orbax_may_be_a_float(tmp_path):
  # As T5X's Orbax form has it, unless it saves with dtype=None.
  spec = write_scalar(tmp_path, np.float32(1_100_000))
  step = zarr_arrays.read_scalar(spec, "step")
  assert (step, type(step)) == (1_100_000, int)
  for value in (1.5, np.inf, np.nan):
    write_scalar(tmp_path, np.float32(value))
    with pytest.raises(ValueError, match=f"step is no integer: {value}"):
      zarr_arrays.read_scalar(spec, "step")


@pytest.mark.parametrize(
  "name", ["t5x_checkpoint/checkpoint_3", "t5x_checkpoint_bf16/checkpoint_3"]
)
def test_what_is_written_is_what_t5x_writes(tmp_path, name):
  opened = pretrained.open_checkpoint(str(GOLDENS / name))
  t5x.write(tmp_path, opened, dtype=None)
  hook = lambda code, data: (code, data)
  load = lambda path: msgpack.unpackb(path.read_bytes(), ext_hook=hook)
  ours, theirs = (
    load(folder / "checkpoint") for folder in (tmp_path, GOLDENS / name)
  )
  assert ours["optimizer"]["target"] == theirs["optimizer"]["target"]
  assert ours["version"] == theirs["version"] == 3
  states = [x["optimizer"]["state"] for x in (ours, theirs)]
  assert states[0]["step"] == states[1]["step"]
  for state in states:  # The golden has optimizer state for the prompt alone.
    del state["param_states"]["encoder"]["prompt"]
  assert states[0] == states[1]
  arrays = [x.name for x in (GOLDENS / name).glob("target.*")]
  assert sorted(x.name for x in tmp_path.iterdir()) == sorted(
    [*arrays, "checkpoint"]
  )
  for array in arrays:
    zarrays = [
      json.loads((folder / array / ".zarray").read_text())
      for folder in (tmp_path, GOLDENS / name)
    ]
    assert zarrays[0] == zarrays[1]


def test_large_arrays_are_cut_into_equal_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(zarr_arrays, "_CHUNK_BYTES", 100)
  array = np.arange(12 * 5, dtype=np.float32).reshape(12, 5)
  checkpoint = leaves.Checkpoint({"a/b": leaves.from_array("x", array)}, 4)
  t5x.write(tmp_path, checkpoint, dtype=None)
  chunks = json.loads((tmp_path / "target.a.b/.zarray").read_text())["chunks"]
  assert chunks == [4, 5]  # 5 rows would fit, but 5 does not divide 12.
  reopened = pretrained.open_checkpoint(str(tmp_path))
  assert reopened.step == 4
  np.testing.assert_array_equal(read(reopened.leaves["a/b"]), array)


def test_chunks_of_zeros_are_written_too(tmp_path):
  zeros = leaves.from_array("x", np.zeros(3, np.float32))
  t5x.write(tmp_path, leaves.Checkpoint({"a": zeros}, 0), dtype=None)
  opened = pretrained.open_checkpoint(str(tmp_path))
  np.testing.assert_array_equal(read(opened.leaves["a"]), np.zeros(3))


def test_names_that_would_leave_the_folder_are_not_written(tmp_path):
  leaf = leaves.from_array("x", np.zeros(3, np.float32))
  checkpoint = leaves.Checkpoint({"../a": leaf}, 0)
  with pytest.raises(ValueError, match="'../a' is no path of a parameter"):
    t5x.write(tmp_path, checkpoint, dtype=None)
  assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_our_own_training_is_a_base(tmp_path):
  trained = {SCALE: jnp.arange(3.0), "token_embedder/embedding": jnp.eye(2, 3)}
  state = trainer.TrainState(jnp.int32(7), trained, {"m": jnp.zeros(3)})
  with checkpoints.open_manager(str(tmp_path), keep=1) as manager:
    checkpoints.save(manager, state, {"base_fingerprint": "", "run": {}})
  found, step = pretrained.open_checkpoint(str(tmp_path / "checkpoint_7"))
  assert step == 7
  assert found.keys() == trained.keys()
  for name, leaf in found.items():
    np.testing.assert_array_equal(read(leaf), trained[name])
