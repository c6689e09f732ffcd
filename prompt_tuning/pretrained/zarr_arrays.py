# SPDX-License-Identifier: Apache-2.0
"""Arrays that T5X and Orbax keep as zarr, through TensorStore."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np
import tensorstore as ts

from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained.leaves import Leaf, Region

_CHUNK_BYTES = 1 << 26  # T5X's default.
# What TensorStore raises, beside ValueError, for files that it cannot use.
ERRORS = (ValueError, OSError, IndexError, RuntimeError)


def _open_spec(spec: dict[str, Any]) -> Any:
  return ts.open(spec, open=True, read=True, create=False)


def _bfloat16_of(dtype: np.dtype) -> np.dtype:
  """Undoes what T5X did before version 3: bfloat16 stored as uint16.

  No parameter is an integer, so that uint16 can mean nothing else.
  """
  is_disguised = dtype == np.uint16
  return np.dtype(ts.bfloat16.numpy_dtype) if is_disguised else dtype


def _check_chunks(store: Any) -> None:
  """Refuses chunks larger than the array: they would fill the memory."""
  chunks = store.chunk_layout.read_chunk.shape
  if any(
    chunk > max(size, 1)
    for chunk, size in zip(chunks, store.shape, strict=True)
  ):
    raise ValueError(f"chunks {tuple(chunks)} of an array {store.shape}")


def _leaf(name: str, store: Any) -> Leaf:
  shape = leaves_lib.check_shape(tuple(store.shape))
  _check_chunks(store)
  stored = np.dtype(store.dtype.numpy_dtype)
  dtype = _bfloat16_of(stored)
  chunk_rows = store.chunk_layout.read_chunk.shape[0]

  def fill(region: Region, out: np.ndarray) -> None:
    for rows in leaves_lib.row_blocks(region, dtype.itemsize, chunk_rows):
      source = store[(rows, *region[1:])]
      part = out[rows.start - region[0].start : rows.stop - region[0].start]
      if part.dtype == stored:
        ts.array(part).write(source).result()
      else:
        part[...] = source.read().result().view(dtype)

  return Leaf(name, shape, dtype, fill)


def open_arrays(
  specs: Mapping[str, tuple[str, dict[str, Any]]],
) -> dict[str, Leaf]:
  """Opens arrays, all at once; none is read yet.

  Args:
    specs: for each path, the name to report and what `zarr_spec` returns.

  Raises:
    ValueError: if one is not there or its description is broken.
  """
  stores = {path: _open_spec(spec) for path, (_, spec) in specs.items()}
  result = {}
  for path, (name, _) in specs.items():
    try:
      result[path] = _leaf(name, stores[path].result())
    except ERRORS as error:
      raise ValueError(f"{name} is no sound array: {error}") from error
  return result


def zarr_spec(
  kvstore: dict[str, Any], *, driver: str = "zarr", is_full: bool = True
) -> dict[str, Any]:
  """Describes an array to TensorStore.

  Args:
    kvstore: where it is.
    driver: "zarr", or "zarr3" for version 3.
    is_full: all chunks were written: one that is missing is an error, not
      zeros.
  """
  return {
    "driver": driver,
    "kvstore": kvstore,
    "fill_missing_data_reads": not is_full,
  }


def read_scalar(spec: dict[str, Any], name: str) -> int:
  """Reads an array that holds one integer.

  In whatever dtype: T5X saves its step as a float with its other floats.

  Raises:
    ValueError: if it holds something else.
  """
  try:
    store = _open_spec(spec).result()
    if store.shape != () or store.dtype.numpy_dtype.kind not in "iuf":
      raise ValueError(f"{store.dtype.name} {store.shape}")
    value = store.read().result()
    if not float(value).is_integer():
      raise ValueError(f"{value}")
    return int(value)
  except ERRORS as error:
    raise ValueError(f"{name} is no integer: {error}") from error


def write_array(
  kvstore: dict[str, Any], leaf: Leaf, dtype: np.dtype
) -> dict[str, Any]:
  """Writes a leaf as T5X does: zarr version 2, gzip, chunks of 64 MiB.

  Returns:
    what T5X's index keeps of it, but for its place.
  """
  row_bytes = math.prod(leaf.shape[1:]) * dtype.itemsize
  rows = _chunk_rows(leaf.shape[0], row_bytes)
  metadata = {
    "shape": list(leaf.shape),
    "chunks": [rows, *leaf.shape[1:]],
    "compressor": {"id": "gzip", "level": 1},
  }
  spec = {
    "driver": "zarr",
    "dtype": dtype.name,
    "kvstore": kvstore,
    "metadata": metadata,
  }
  store = ts.open(spec, create=True).result()
  for part in leaves_lib.row_blocks(
    leaves_lib.whole(leaf.shape), dtype.itemsize, rows
  ):
    region = (part, *leaves_lib.whole(leaf.shape)[1:])
    store[region].write(leaves_lib.read(leaf, region, dtype)).result()
  return {"driver": "zarr", "dtype": dtype.name, "metadata": metadata}


def _chunk_rows(num_rows: int, row_bytes: int) -> int:
  """Returns the largest divisor of `num_rows` that keeps a chunk in 64 MiB."""
  limit = max(1, min(num_rows, _CHUNK_BYTES // row_bytes))
  return next(n for n in range(limit, 0, -1) if num_rows % n == 0)
