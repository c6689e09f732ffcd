# SPDX-License-Identifier: Apache-2.0
"""The safetensors format, read and written one block at a time.

The package of that name maps whole files into memory and writes only what is
all in memory; a base may be larger than that. The format:
https://huggingface.co/docs/safetensors
"""

from collections.abc import Iterator, Mapping
import json
import math
from typing import IO, Any, NamedTuple

from etils import epath
import ml_dtypes
import numpy as np

from prompt_tuning import atomic_files
from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained.leaves import Leaf, Region

# As the original implementation, which refuses larger headers.
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Header(NamedTuple):
  """The leaves of a file by their names in it, and its metadata."""

  leaves: dict[str, Leaf]
  metadata: dict[str, str]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) != len(pairs):
    raise ValueError("a name occurs twice")
  return result


def read_json(text: bytes) -> dict[str, Any]:
  """Parses an untrusted JSON object.

  Raises:
    ValueError: if it is none, or has a name twice.
  """
  try:
    value = json.loads(text, object_pairs_hook=_unique)
  except RecursionError:
    raise ValueError("JSON nested too deeply") from None
  if not isinstance(value, dict):
    raise ValueError(f"JSON holds a {type(value).__name__}, not an object")
  return value


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
  """Returns the parsed header and where the data begin."""
  num_bytes = int.from_bytes(file.read(8), "little")
  if size < 8 or num_bytes > min(size - 8, _MAX_HEADER_BYTES):
    raise ValueError("the header is longer than the file")
  return read_json(file.read(num_bytes)), 8 + num_bytes


def _file_leaf(
  path: epath.Path,
  name: str,
  shape: tuple[int, ...],
  dtype: np.dtype,
  offset: int,
) -> Leaf:
  """Makes a leaf of the bytes of a file from `offset` on."""
  row_bytes = dtype.itemsize * math.prod(shape[1:])

  def fill(region: Region, out: np.ndarray) -> None:
    rows = (region[0], *leaves_lib.whole(shape)[1:])
    with path.open("rb") as file:
      file.seek(offset + region[0].start * row_bytes)
      for part in leaves_lib.row_blocks(rows, dtype.itemsize, 1):
        num_rows = part.stop - part.start
        data = file.read(num_rows * row_bytes)
        if len(data) != num_rows * row_bytes:
          raise ValueError(f"{path} has become shorter")
        block = np.frombuffer(data, dtype).reshape(num_rows, *shape[1:])
        block = block[(slice(None), *region[1:])]
        out[part.start - region[0].start : part.stop - region[0].start] = block

  return Leaf(name, shape, dtype, fill)


def _parse_entry(entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """Returns dtype, shape, begin and end of one entry of the header."""
  if not isinstance(entry, dict) or set(entry) != {
    "dtype",
    "shape",
    "data_offsets",
  }:
    raise ValueError("needs dtype, shape and data_offsets")
  if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
    raise ValueError(f"dtype {entry['dtype']!r:.40} is unknown")
  dtype, shape = _DTYPES[entry["dtype"]], leaves_lib.check_shape(entry["shape"])
  offsets = entry["data_offsets"]
  if not isinstance(offsets, list) or [type(x) for x in offsets] != [int, int]:
    raise ValueError("data_offsets must be two integers")
  begin, end = offsets
  if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
    raise ValueError(f"data_offsets {offsets} do not fit {dtype} {shape}")
  return dtype, shape, begin, end


def _parse(path: epath.Path) -> Header:
  size = path.stat().length
  with path.open("rb") as file:
    entries, start = _read_header(file, size)
  metadata = entries.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ValueError("__metadata__ must map names to texts")
  leaves, spans = {}, []
  for name, entry in entries.items():
    try:
      dtype, shape, begin, end = _parse_entry(entry)
    except ValueError as error:
      raise ValueError(f"tensor {name!r:.200}: {error}") from None
    leaves[name] = _file_leaf(path, name, shape, dtype, start + begin)
    spans.append((begin, end))
  position = 0
  for begin, end in sorted(spans):
    if begin != position:
      raise ValueError("tensors overlap or leave a gap")
    position = end
  if start + position != size:
    raise ValueError(
      f"the tensors need {start + position} bytes, the file has {size}"
    )
  return Header(leaves, metadata)


def open_file(path: epath.PathLike) -> Header:
  """Reads the header of a file, on a disk or in a bucket; no tensor yet.

  Raises:
    ValueError: if the file is damaged.
  """
  try:
    return _parse(epath.Path(path))
  except (ValueError, OSError) as error:
    message = f"{path} is not a sound safetensors file: {error}"
    raise ValueError(message) from error


def _layout(
  leaves: Mapping[str, Leaf], dtypes: Mapping[str, np.dtype]
) -> Iterator[tuple[str, dict[str, Any]]]:
  begin = 0
  for name, leaf in leaves.items():
    end = begin + math.prod(leaf.shape) * dtypes[name].itemsize
    entry = {
      "dtype": _CODES[dtypes[name]],
      "shape": leaf.shape,
      "data_offsets": [begin, end],
    }
    yield name, entry
    begin = end


def write_file(
  path: epath.PathLike,
  leaves: Mapping[str, Leaf],
  metadata: Mapping[str, str],
  *,
  dtype: np.dtype | None,
) -> None:
  """Writes a file atomically: it is there in full, or not at all.

  Args:
    path: replaced if it exists.
    leaves: read one by one.
    metadata: texts for the header.
    dtype: of every tensor in the file; None keeps what each has.
  """
  dtypes = {name: dtype or leaf.dtype for name, leaf in leaves.items()}
  # Wider elements first, so that each tensor is aligned to its elements.
  ordered = dict(sorted(leaves.items(), key=lambda x: -dtypes[x[0]].itemsize))
  header = {"__metadata__": dict(metadata), **dict(_layout(ordered, dtypes))}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with atomic_files.replacing(path) as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, leaf in ordered.items():
      array = leaves_lib.read(leaf, leaves_lib.whole(leaf.shape), dtypes[name])
      file.write(array.reshape(-1).view(np.uint8).data)
