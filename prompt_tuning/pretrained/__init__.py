# SPDX-License-Identifier: Apache-2.0
"""A frozen base from T5X's, Hugging Face's or our own checkpoints.

Our own format is one safetensors file whose tensors have T5X's paths as names
and T5X's shapes, with the training step in the metadata.
"""

from collections.abc import Iterator, Mapping
from concurrent import futures
import ctypes
import gc
import pathlib
from typing import NamedTuple

import jax
from jaxtyping import Array, Shaped
import numpy as np

from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained import safetensors_files
from prompt_tuning.pretrained.formats import open_checkpoint
from prompt_tuning.pretrained.leaves import Leaf, Region

__all__ = [
  "Base",
  "Description",
  "Mapped",
  "describe",
  "load",
  "open_checkpoint",
  "save",
]

_NUM_WORKERS = 2  # Each keeps some of the memory that it has used.
# A region as a value that can be compared and looked up: start and stop.
_Span = tuple[tuple[int, int], ...]


class Base(NamedTuple):
  """Parameters by T5X's paths, and the step at which their training ended.

  Hugging Face's files know no step: it is 0.
  """

  params: dict[str, jax.Array]
  step: int


class Mapped(NamedTuple):
  """Where a leaf comes from, for a table of what would be loaded."""

  name: str
  path: str
  shape: tuple[int, ...]
  dtype: str


class Description(NamedTuple):
  """What would be loaded: each leaf, by its path, and the step."""

  leaves: list[Mapped]
  step: int


def _spans(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Span:
  return tuple(
    s.indices(size)[:2] for s, size in zip(index, shape, strict=True)
  )


def _pieces(wanted: jax.ShapeDtypeStruct) -> set[_Span]:
  """Returns the regions that the devices of this process hold."""
  if wanted.sharding is None:
    return {_spans(leaves_lib.whole(wanted.shape), wanted.shape)}
  indices = wanted.sharding.addressable_devices_indices_map(wanted.shape)
  return {
    _spans(index, wanted.shape)
    for index in indices.values()
    if index is not None
  }


def _read(leaf: Leaf, wanted: jax.ShapeDtypeStruct) -> dict[_Span, np.ndarray]:
  """Reads each region once, however many devices hold it."""
  result = {}
  for spans in _pieces(wanted):
    region: Region = tuple(slice(*span) for span in spans)
    result[spans] = leaves_lib.read(leaf, region, np.dtype(wanted.dtype))
  return result


def _place(
  pieces: dict[_Span, np.ndarray], wanted: jax.ShapeDtypeStruct
) -> jax.Array:
  """Moves a leaf to its devices, and waits, so that memory is free again."""
  if wanted.sharding is None:
    (array,) = pieces.values()
    return jax.block_until_ready(jax.device_put(array))
  return jax.block_until_ready(
    jax.make_array_from_callback(
      wanted.shape,
      wanted.sharding,
      lambda index: pieces[_spans(index or (), wanted.shape)],
    )
  )


def _batches(leaves: Mapping[str, Leaf]) -> Iterator[list[str]]:
  """Groups leaves, largest first, into batches of a quarter of its bytes.

  The largest come while memory is still empty; the others are read several
  at a time. Until a batch is decompressed, it is in memory three times.
  """
  ordered = sorted(leaves, key=lambda path: -leaves[path].nbytes)
  limit = max((leaf.nbytes for leaf in leaves.values()), default=0) // 4
  batch: list[str] = []
  size = 0
  for path in ordered:
    if batch and size + leaves[path].nbytes > limit:
      yield batch
      batch, size = [], 0
    batch.append(path)
    size += leaves[path].nbytes
  if batch:
    yield batch


def _open_checked(
  path: str, target: Mapping[str, jax.ShapeDtypeStruct]
) -> leaves_lib.Checkpoint:
  """Opens a checkpoint and keeps of it what `target` wants."""
  leaves, step = open_checkpoint(path)
  try:
    leaves_lib.check(leaves, target)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  return leaves_lib.Checkpoint({name: leaves[name] for name in target}, step)


def _trim_memory() -> None:
  """Gives freed memory back to the system, where the C library is glibc.

  Its heap for each thread would otherwise keep some 100 MB until we exit.
  """
  trim_fn = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim_fn is not None:
    trim_fn(0)


def load(path: str, target: Mapping[str, jax.ShapeDtypeStruct]) -> Base:
  """Loads a base, leaf by leaf, straight into dtype and sharding of `target`.

  Args:
    path: see `open_checkpoint`.
    target: the wanted leaves by T5X's paths. A prompt that the checkpoint has
      beyond them is left out, and so is the optimizer's state.

  Raises:
    ValueError: if the checkpoint is damaged, or its leaves are not those of
      `target`; every leaf at fault is named.
  """
  leaves, step = _open_checked(path, target)
  params = {}
  with futures.ThreadPoolExecutor(_NUM_WORKERS) as pool:
    for batch in _batches(leaves):
      read = [pool.submit(_read, leaves[name], target[name]) for name in batch]
      while batch:
        name = batch.pop(0)
        params[name] = _place(read.pop(0).result(), target[name])
        # JAX gives up the host's copy at the next garbage collection only.
        gc.collect(0)
      _trim_memory()
  return Base({name: params[name] for name in target}, step)


def describe(
  path: str, target: Mapping[str, jax.ShapeDtypeStruct]
) -> Description:
  """Tells what `load` would load from where, and reads no parameter.

  Raises:
    ValueError: where `load` would raise before it reads.
  """
  leaves, step = _open_checked(path, target)
  mapped = [
    Mapped(leaf.name, name, leaf.shape, leaf.dtype.name)
    for name, leaf in sorted(leaves.items())
  ]
  return Description(mapped, step)


def save(
  path: str,
  params: Mapping[str, Shaped[Array, "..."]],
  step: int,
  metadata: Mapping[str, str],
) -> None:
  """Writes a base in our own format, atomically.

  Args:
    path: ends in `.safetensors`; a file that is there is replaced.
    params: by T5X's paths.
    step: the training step.
    metadata: further texts to keep in the file.

  Raises:
    ValueError: if `path` ends otherwise or `metadata` has a step of its own.
  """
  if not path.endswith(".safetensors"):
    raise ValueError(f"path={path!r} must end in .safetensors")
  if "step" in metadata:
    raise ValueError("metadata must not have a step beside step=")
  leaves = {k: leaves_lib.from_device(k, x) for k, x in params.items()}
  texts = {"step": str(step), **metadata}
  safetensors_files.write_file(pathlib.Path(path), leaves, texts, dtype=None)
