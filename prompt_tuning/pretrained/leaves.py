# SPDX-License-Identifier: Apache-2.0
"""Arrays of a checkpoint that are read piece by piece, when they are wanted."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

# For each axis a slice with start and stop, without step.
Region = tuple[slice, ...]

BLOCK_BYTES = 1 << 24  # What one read takes into memory, about.
_ALIGNMENT = 64  # Where an array begins that XLA uses in place on a CPU.
_MAX_RANK = 8  # No model has more axes; the bound is against broken files.
_MAX_DIM = 1 << 40


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array of a checkpoint, not yet read.

  Attributes:
    name: what the checkpoint calls it.
    shape: as T5X lays it out.
    dtype: as it is stored.
    fill: reads a region into an array of its shape, casting to its dtype, and
      needs little memory of its own.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  fill: Callable[[Region, np.ndarray], None]

  @property
  def nbytes(self) -> int:
    """Bytes as it is stored, but for compression."""
    return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint(NamedTuple):
  """What a checkpoint holds, by T5X's paths; leaves out the optimizer state.

  A leaf for which T5X has no path keeps the name that it has there.
  """

  leaves: dict[str, Leaf]
  step: int


def check_shape(shape: Any) -> tuple[int, ...]:
  """Returns a shape from an untrusted file.

  Raises:
    ValueError: if it is no shape that a parameter may have.
  """
  is_shape = (
    isinstance(shape, list | tuple)
    and 1 <= len(shape) <= _MAX_RANK
    and all(type(size) is int and 1 <= size <= _MAX_DIM for size in shape)
  )
  if not is_shape:
    raise ValueError(f"{shape!r:.80} is not the shape of a parameter")
  return tuple(shape)


def is_float(dtype: np.dtype) -> bool:
  """Tells if values of `dtype` may be parameters; bfloat16 may."""
  return dtype == ml_dtypes.bfloat16 or np.issubdtype(dtype, np.floating)


def whole(shape: tuple[int, ...]) -> Region:
  """Returns the region of the whole array."""
  return tuple(slice(0, size) for size in shape)


def row_blocks(region: Region, itemsize: int, multiple: int) -> Iterator[slice]:
  """Splits the first axis of a region into runs of about `BLOCK_BYTES`.

  Args:
    region: what is wanted.
    itemsize: bytes of an element.
    multiple: rows that are stored together: no run ends between two of them.
  """
  row_bytes = itemsize * math.prod(s.stop - s.start for s in region[1:])
  rows = max(multiple, BLOCK_BYTES // max(row_bytes, 1) // multiple * multiple)
  start = region[0].start
  while start < region[0].stop:
    stop = min((start // rows + 1) * rows, region[0].stop)
    yield slice(start, stop)
    start = stop


def from_array(name: str, array: np.ndarray) -> Leaf:
  """Makes a leaf of an array that is in memory already."""

  def fill(region: Region, out: np.ndarray) -> None:
    out[...] = array[region]

  return Leaf(name, array.shape, array.dtype, fill)


def from_device(name: str, array: jax.Array) -> Leaf:
  """Makes a leaf of a device's array, which is fetched when it is read."""

  def fill(region: Region, out: np.ndarray) -> None:
    # Of a copy, as JAX keeps what it has fetched as long as its array lives.
    out[...] = np.asarray(jnp.copy(array[region]))

  return Leaf(name, array.shape, np.dtype(array.dtype), fill)


def transpose(leaf: Leaf) -> Leaf:
  """Reverses the axes of a leaf."""

  def fill(region: Region, out: np.ndarray) -> None:
    leaf.fill(region[::-1], out.T)

  return dataclasses.replace(leaf, shape=leaf.shape[::-1], fill=fill)


def _empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """Allocates an array that JAX need not copy to put it on a CPU device."""
  num_bytes = math.prod(shape) * dtype.itemsize
  memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + num_bytes].view(dtype).reshape(shape)


def read(leaf: Leaf, region: Region, dtype: np.dtype) -> np.ndarray:
  """Reads a region, casting it on the way.

  Raises:
    ValueError: if the file does not hold what it says.
  """
  out = _empty([s.stop - s.start for s in region], dtype)
  try:
    leaf.fill(region, out)
  except (ValueError, OSError, IndexError, RuntimeError) as error:
    raise ValueError(f"{leaf.name} cannot be read: {error}") from error
  return out


def is_equal(a: Leaf, b: Leaf) -> bool:
  """Compares two leaves bit for bit, block by block."""
  if (a.shape, a.dtype) != (b.shape, b.dtype):
    return False
  region = whole(a.shape)
  for rows in row_blocks(region, a.dtype.itemsize, 1):
    part = (rows, *region[1:])
    if read(a, part, a.dtype).tobytes() != read(b, part, b.dtype).tobytes():
      return False
  return True


def check_path(path: str) -> None:
  """Checks that an untrusted name is one of T5X's paths.

  It then may become the name of a file: it has no dots.

  Raises:
    ValueError: if it is not.
  """
  if len(path) > 250 or not re.fullmatch(r"[\w\-]+(/[\w\-]+)*", path, re.ASCII):
    raise ValueError(f"{path!r:.200} is no path of a parameter")


def is_prompt(path: str) -> bool:
  """Tells if T5X's `path` is that of a prompt."""
  return "/prompt/" in path


def check(
  leaves: Mapping[str, Leaf], target: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  """Checks that a checkpoint has the leaves of `target` and no others.

  Prompts that are not in `target` are no offence.

  Raises:
    ValueError: that names every leaf at fault.
  """
  extra = [k for k in leaves if k not in target and not is_prompt(k)]
  both = [path for path in target if path in leaves]
  faults = {
    "missing": sorted(path for path in target if path not in leaves),
    "unexpected": sorted(extra),
    "of another shape": [
      f"{path} is {leaves[path].shape}, wanted {tuple(target[path].shape)}"
      for path in both
      if leaves[path].shape != tuple(target[path].shape)
    ],
    "not of floats": [
      f"{path} is {leaves[path].dtype}"
      for path in both
      if not is_float(leaves[path].dtype)
    ],
  }
  texts = [
    f"{len(found)} {kind}: {', '.join(found)}"
    for kind, found in faults.items()
    if found
  ]
  if texts:
    raise ValueError(f"parameters differ from the model's: {'; '.join(texts)}")
