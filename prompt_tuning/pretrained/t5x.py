# SPDX-License-Identifier: Apache-2.0
"""T5X checkpoints: an index in MessagePack with zarr arrays, or Orbax's form.

The layout is that of `t5x/checkpoints.py`:
https://github.com/google-research/t5x
"""

from collections.abc import Iterator, Mapping
import math
import pathlib
import re
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained import zarr_arrays
from prompt_tuning.pretrained.leaves import Checkpoint
from prompt_tuning.pretrained.safetensors_files import read_json

INDEX = "checkpoint"
# XXL's index, with the optimizer's small arrays in place, has some 20 MB.
MAX_INDEX_BYTES = 1 << 28
_MAX_DEPTH = 32
_NDARRAY, _SCALAR = 1, 3  # MessagePack extension types of flax.serialization.
# What the paths of parameters begin with: in T5X's state, and in ours.
_PARAMS = ("target/", "trainable/")
_INLINE_DTYPES = {
  dtype.name: dtype
  for dtype in map(
    np.dtype,
    (ml_dtypes.bfloat16, "f2", "f4", "f8", "i4", "i8", "u2", "u4", "u8"),
  )
}


def _unpack_array(code: int, data: bytes) -> np.ndarray:
  """Parses an array that the index holds itself."""
  if code not in (_NDARRAY, _SCALAR):
    raise ValueError(f"extension type {code} is unknown")
  fields = msgpack.unpackb(data, raw=False)
  if not isinstance(fields, list) or len(fields) != 3:
    raise ValueError("an array needs shape, dtype and bytes")
  shape, name, content = fields
  if not isinstance(name, str) or name not in _INLINE_DTYPES:
    raise ValueError(f"dtype {name!r:.40} is unknown")
  if shape:  # A scalar has none.
    shape = leaves_lib.check_shape(shape)
  dtype = _INLINE_DTYPES[name]
  size = math.prod(shape) * dtype.itemsize
  if not isinstance(content, bytes) or len(content) != size:
    raise ValueError(f"an array {name} {tuple(shape)} needs {size} bytes")
  return np.frombuffer(content, dtype).reshape(shape)


def _flatten(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
  """Yields every leaf with its path: an array, or the place of one."""
  if not isinstance(tree, dict) or {"driver", "kvstore"} <= tree.keys():
    yield "/".join(path), tree
    return
  if len(path) > _MAX_DEPTH:
    raise ValueError("the tree is too deep")
  for name, branch in tree.items():
    leaves_lib.check_path(name)
    yield from _flatten(branch, (*path, name))


def _place(path: str, leaf: dict[str, Any]) -> str:
  """Returns the folder of an array, inside the checkpoint's."""
  kvstore = leaf["kvstore"]
  place = kvstore.get("path") if isinstance(kvstore, dict) else None
  if leaf["driver"] != "zarr" or not isinstance(place, str):
    raise ValueError(f"{path} is not a zarr array in this folder")
  place = place.rstrip("/")
  # Names with dots in them are what T5X writes; only ".." would lead out.
  if not re.fullmatch(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*", place):
    raise ValueError(f"{path} lies at {place!r:.200}, outside of this folder")
  return place


def parse_index(
  index: bytes,
) -> tuple[dict[str, str], dict[str, np.ndarray], int]:
  """Parses the file `checkpoint`.

  Returns:
    the folder of each array on disk, the arrays in the index itself, and the
    training step.

  Raises:
    ValueError: if it is damaged or asks for files elsewhere.
  """
  try:
    tree = msgpack.unpackb(index, raw=False, ext_hook=_unpack_array)
  except (msgpack.FormatError, msgpack.StackError):  # They say nothing more.
    raise ValueError("it is no MessagePack, or nested too deeply") from None
  optimizer = tree.get("optimizer") if isinstance(tree, dict) else None
  if not isinstance(optimizer, dict) or "target" not in optimizer:
    raise ValueError("there is no optimizer/target in it")
  places, arrays = {}, {}
  for path, leaf in _flatten(optimizer["target"], ()):
    if isinstance(leaf, dict):
      places[path] = _place(path, leaf)
    elif isinstance(leaf, np.ndarray) and leaf.ndim:
      arrays[path] = leaf
    else:
      raise ValueError(f"{path or 'target'} is no array")
  return places, arrays, _step(optimizer.get("state"))


def _step(state: Any) -> int:
  step = state.get("step", 0) if isinstance(state, dict) else 0
  if (
    isinstance(step, np.ndarray) and step.ndim == 0 and step.dtype.kind in "iu"
  ):
    step = int(step)
  if type(step) is not int or not 0 <= step < 1 << 31:
    raise ValueError(f"state/step is {step!r:.40}")
  return step


def _inside(kvstore: dict[str, Any], place: str) -> dict[str, Any]:
  """Returns the store of a folder in that of `kvstore`."""
  return {**kvstore, "path": f"{kvstore.get('path', '')}{place}/"}


def open_msgpack(kvstore: dict[str, Any], index: bytes) -> Checkpoint:
  """Opens a checkpoint by its index.

  Args:
    kvstore: TensorStore's description of the folder.
    index: the content of its file `checkpoint`.

  Raises:
    ValueError: if a file is damaged or missing.
  """
  try:
    places, arrays, step = parse_index(index)
  except ValueError as error:
    message = f"{kvstore['path']}{INDEX} is no sound T5X index: {error}"
    raise ValueError(message) from error
  specs = {
    path: (place, zarr_arrays.zarr_spec(_inside(kvstore, place)))
    for path, place in places.items()
  }
  leaves = zarr_arrays.open_arrays(specs)
  for path, array in arrays.items():
    leaves[path] = leaves_lib.from_array(f"{INDEX}:{path}", array)
  return Checkpoint(leaves, step)


def _metadata_path(entry: Any) -> tuple[str, str]:
  """Returns path and place of one entry of Orbax's `_METADATA`.

  T5X's tree is nested: its keys are joined by dots. Ours is flat.
  """
  keys = entry.get("key_metadata") if isinstance(entry, dict) else None
  if not isinstance(keys, list):
    raise ValueError("an entry has no key_metadata")
  names = [
    str(key.get("key") if isinstance(key, dict) else None) for key in keys
  ]
  path = "/".join(names)
  leaves_lib.check_path(path)
  return path, ".".join(names)


def _metadata_paths(metadata: dict[str, Any]) -> dict[str, str]:
  """Returns path and place of all arrays that `_METADATA` lists."""
  tree = metadata.get("tree_metadata")
  paths = dict(
    map(_metadata_path, tree.values() if isinstance(tree, dict) else ())
  )
  if not any(path.startswith(_PARAMS) for path in paths):
    raise ValueError("there is no target in it")
  return paths


def open_orbax(folder: pathlib.Path) -> Checkpoint:
  """Opens the folder `state` of a checkpoint through Orbax: T5X's, or ours.

  Raises:
    ValueError: if a file is damaged or missing.
  """
  try:
    metadata = read_json((folder / "_METADATA").read_bytes())
    paths = _metadata_paths(metadata)
  except (ValueError, OSError) as error:
    message = f"{folder / '_METADATA'} is not sound: {error}"
    raise ValueError(message) from error
  kvstore: dict[str, Any] = {"driver": "file", "path": f"{folder}/"}
  if (folder / "manifest.ocdbt").exists():
    kvstore = {"driver": "ocdbt", "base": kvstore}
  is_full = metadata.get("store_array_data_equal_to_fill_value") is True
  driver = "zarr3" if metadata.get("use_zarr3") is True else "zarr"
  specs = {}
  for path, place in paths.items():
    store = _inside(kvstore, place)
    spec = zarr_arrays.zarr_spec(store, driver=driver, is_full=is_full)
    specs[path] = (place, spec)
  step = specs.get("state/step") or specs.get("step")
  leaves = zarr_arrays.open_arrays(
    {
      path.split("/", 1)[1]: spec
      for path, spec in specs.items()
      if path.startswith(_PARAMS)
    }
  )
  return Checkpoint(
    leaves, zarr_arrays.read_scalar(step[1], step[0]) if step else 0
  )


def _pack_array(array: np.ndarray) -> msgpack.ExtType:
  fields = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(_NDARRAY, msgpack.packb(fields))


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


def write(
  folder: pathlib.Path, checkpoint: Checkpoint, *, dtype: np.dtype | None
) -> None:
  """Writes a checkpoint as T5X does, without optimizer state.

  Args:
    folder: empty; not yet at its final place, as nothing is atomic here.
    checkpoint: its leaves are read one by one.
    dtype: of every array; None keeps what each has.
  """
  kvstore = {"driver": "file", "path": f"{folder}/"}
  target = {}
  for path, leaf in checkpoint.leaves.items():
    leaves_lib.check_path(path)
    place = f"target.{path.replace('/', '.')}"
    described = zarr_arrays.write_array(
      _inside(kvstore, place), leaf, dtype or leaf.dtype
    )
    described["kvstore"] = {"driver": "file", "path": f"{place}/"}
    target[path] = described
  state = {
    "step": _pack_array(np.asarray(checkpoint.step, np.int32)),
    # As T5X marks parameters that the optimizer holds nothing for.
    "param_states": _nest(dict.fromkeys(checkpoint.leaves)),
  }
  optimizer = {"target": _nest(target), "state": state}
  index = msgpack.packb({"version": 3, "optimizer": optimizer})
  (folder / INDEX).write_bytes(index)
