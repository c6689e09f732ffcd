# SPDX-License-Identifier: Apache-2.0
"""Conversion of a base between the formats, one array at a time."""

import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np

from prompt_tuning import atomic_files
from prompt_tuning.pretrained import hugging_face, safetensors_files, t5x
from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained.formats import open_checkpoint
from prompt_tuning.pretrained.leaves import Checkpoint

FORMATS = ("t5x", "hugging_face", "safetensors")


def _check_destination(path: pathlib.Path, output: str, step: int) -> None:
  """Checks, before anything is read, that the result may be put there."""
  if output == "t5x" and path.name != f"checkpoint_{step}":
    raise ValueError(
      f"T5X needs the step in the name: --to={path.parent}/checkpoint_{step}, "
      f"not --to={path}"
    )
  if output == "safetensors" and path.suffix != ".safetensors":
    raise ValueError(f"--to={path} must end in .safetensors")
  if path.exists():
    raise ValueError(f"--to={path} exists: remove it or name another")


def _open_base(path: str) -> Checkpoint:
  """Opens a checkpoint and keeps what is the base's."""
  leaves, step = open_checkpoint(path)
  base = {k: x for k, x in leaves.items() if not leaves_lib.is_prompt(k)}
  for name, leaf in base.items():
    leaves_lib.check_path(name)
    if not leaves_lib.is_float(leaf.dtype):
      raise ValueError(f"{path}: {leaf.name} is {leaf.dtype}, not of floats")
  return Checkpoint(dict(sorted(base.items())), step)


def _table(base: Checkpoint, output: str, dtype: np.dtype | None) -> str:
  """Returns one line for each array: from, to, shape, dtype; then the sum."""
  names = {path: path for path in base.leaves}
  if output == "hugging_face":
    names = {path: hugging_face.name_of(path) for path in names}
  lines = [
    f"{leaf.name} -> {names[path]} {leaf.shape} {dtype or leaf.dtype}"
    for path, leaf in base.leaves.items()
  ]
  num_params = sum(np.prod(leaf.shape) for leaf in base.leaves.values())
  total = f"{len(lines)} arrays, {num_params:,} parameters, step {base.step}"
  return "\n".join([*lines, total])


def _write_folder(
  path: pathlib.Path, base: Checkpoint, output: str, dtype: np.dtype | None
) -> None:
  """Writes into a folder of another name, which is renamed at the end."""
  temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
  temporary.mkdir(parents=True)
  try:
    if output == "t5x":
      t5x.write(temporary, base, dtype=dtype)
    else:
      hugging_face.write(temporary, base.leaves, dtype=dtype)
    atomic_files.sync_tree(temporary)
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  atomic_files.sync_folder(path.parent)


def convert(
  source: str,
  destination: str,
  *,
  output: str,
  dtype: str | None,
  dry_run: bool,
) -> str:
  """Converts a base; nothing is at `destination` until all is written.

  Args:
    source: see `pretrained.open_checkpoint`.
    destination: `.../checkpoint_<step>` for T5X, a folder for Hugging Face, a
      file `.safetensors` for our own format.
    output: one of `FORMATS`.
    dtype: of every array written; None keeps what each has.
    dry_run: read and write no array.

  Returns:
    a table of what was (or would be) written.

  Raises:
    ValueError: if `source` cannot be read or `destination` not be written.
  """
  base, path = _open_base(source), pathlib.Path(destination).absolute()
  _check_destination(path, output, base.step)
  stored = None if dtype is None else np.dtype(jnp.dtype(dtype))
  table = _table(base, output, stored)
  if dry_run:
    return table
  path.parent.mkdir(parents=True, exist_ok=True)
  if output == "safetensors":
    metadata = {"step": str(base.step)}
    safetensors_files.write_file(path, base.leaves, metadata, dtype=stored)
  else:
    _write_folder(path, base, output, stored)
  return table


def write_t5x(destination: str, checkpoint: Checkpoint) -> None:
  """Writes a checkpoint in T5X's format, whole or not at all.

  Args:
    destination: `.../checkpoint_<step>`, which must not exist.
    checkpoint: its prompts are written too.

  Raises:
    ValueError: if `destination` cannot be written.
  """
  path = pathlib.Path(destination).absolute()
  _check_destination(path, "t5x", checkpoint.step)
  path.parent.mkdir(parents=True, exist_ok=True)
  _write_folder(path, checkpoint, "t5x", None)
