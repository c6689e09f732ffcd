# SPDX-License-Identifier: Apache-2.0
"""Measures seconds and peak memory of loading a base from each format.

    python benchmarks/load_base.py --size=large --folder=/tmp/bases

Weights are random. Each format is written, loaded in a fresh process, and
deleted, so that the disk holds one at a time. The files are read from the
operating system's cache where that is large enough.
"""

from collections.abc import Sequence
import math
import pathlib
import shutil
import subprocess
import sys
import time

from absl import app, flags
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import pretrained, t5
from prompt_tuning.pretrained import conversion, safetensors_files
from prompt_tuning.pretrained import leaves as leaves_lib

# emb_dim, num_heads, layers of each stack, mlp_dim: T5 1.1.
SIZES = {
  "small": (512, 6, 8, 1024),
  "base": (768, 12, 12, 2048),
  "large": (1024, 16, 24, 2816),
  "xl": (2048, 32, 24, 5120),
}
NAMES = {
  "safetensors": "base.safetensors",
  "hugging_face": "hugging_face",
  "t5x": "checkpoint_1100000",
  "orbax": "orbax/checkpoint_1100000",
}

_SIZE = flags.DEFINE_enum("size", "large", list(SIZES), "Of the T5 1.1.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "In the files."
)
_TARGET = flags.DEFINE_enum(
  "target_dtype", "float32", ["float32", "bfloat16"], "In memory."
)
_FORMATS = flags.DEFINE_list("formats", list(NAMES), "Which to measure.")
_FOLDER = flags.DEFINE_string("folder", None, "For the files.", required=True)
_MEASURE = flags.DEFINE_string("measure", "", "Internal: the file to load.")


def make_target(size: str, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes of a T5 1.1."""
  emb_dim, num_heads, num_layers, mlp_dim = SIZES[size]
  model = t5.Transformer(
    t5.T5Config(
      emb_dim=emb_dim,
      num_heads=num_heads,
      num_encoder_layers=num_layers,
      num_decoder_layers=num_layers,
      mlp_dim=mlp_dim,
      param_dtype=jnp.dtype(dtype),
    )
  )
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  init = lambda *tokens: model.init(
    jax.random.key(0), *tokens, enable_dropout=False
  )
  params = jax.eval_shape(init, tokens, tokens, tokens)["params"]
  return traverse_util.flatten_dict(params, sep="/")


def write_ours(path: pathlib.Path, size: str, dtype: str) -> None:
  """Writes random weights, which are made leaf by leaf too."""
  target = make_target(size, dtype)
  largest = max(math.prod(x.shape) for x in target.values())
  rng = np.random.default_rng(0)
  values = rng.standard_normal(largest, np.float32).astype(jnp.dtype(dtype))
  stored = {
    name: leaves_lib.from_array(
      name, values[: math.prod(x.shape)].reshape(x.shape)
    )
    for name, x in target.items()
  }
  metadata = {"step": "1100000"}
  safetensors_files.write_file(path, stored, metadata, dtype=None)


def write_orbax(ours: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes what T5X writes through Orbax."""
  import orbax.checkpoint as ocp  # Slow, and not needed where we measure.

  opened = pretrained.open_checkpoint(str(ours))
  target = {
    tuple(path.split("/")): leaves_lib.read(
      leaf, leaves_lib.whole(leaf.shape), leaf.dtype
    )
    for path, leaf in opened.leaves.items()
  }
  state = {
    "target": traverse_util.unflatten_dict(target),
    "state": {"step": np.asarray(opened.step, np.int32)},
  }
  ocp.PyTreeCheckpointer(use_zarr3=False).save(folder / "state", state)


def resident_bytes(field: str) -> int:
  """Returns a field of Linux's status of this process: VmRSS, VmHWM (peak).

  Not `ru_maxrss`: a process inherits that from the one that started it.
  """
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(f"{field}:")[1].split()[0]) << 10


def measure(path: str, target: dict[str, jax.ShapeDtypeStruct]) -> None:
  """Loads and prints seconds, and the peak beyond what was there before."""
  jax.block_until_ready(jnp.zeros(3))  # Starts the backend.
  before, start = resident_bytes("VmRSS"), time.perf_counter()
  pretrained.load(path, target)
  print(time.perf_counter() - start, resident_bytes("VmHWM") - before)


def measure_apart(path: pathlib.Path) -> tuple[float, int]:
  """Runs `measure` in a fresh process."""
  done = subprocess.run(
    [
      sys.executable,
      __file__,
      f"--measure={path}",
      f"--size={_SIZE.value}",
      f"--target_dtype={_TARGET.value}",
      f"--folder={_FOLDER.value}",
    ],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  seconds, peak = done.stdout.split()
  return float(seconds), int(peak)


def size_on_disk(path: pathlib.Path) -> int:
  """Returns the bytes of a file, or of all files in a folder."""
  files = [path] if path.is_file() else path.rglob("*")
  return sum(file.stat().st_size for file in files if file.is_file())


def write(ours: pathlib.Path, kind: str, path: pathlib.Path) -> None:
  """Writes the base in one of the formats."""
  if kind == "orbax":
    write_orbax(ours, path)
  elif kind != "safetensors":
    conversion.convert(
      str(ours), str(path), output=kind, dtype=None, dry_run=False
    )


def main(argv: Sequence[str]) -> None:
  """Prints a line for each format."""
  del argv
  target = make_target(_SIZE.value, _TARGET.value)
  if _MEASURE.value:
    measure(_MEASURE.value, target)
    return
  folder = pathlib.Path(_FOLDER.value).absolute()
  folder.mkdir(parents=True)
  ours = folder / NAMES["safetensors"]
  try:
    write_ours(ours, _SIZE.value, _DTYPE.value)
    sizes = [math.prod(x.shape) for x in target.values()]
    target_bytes = sum(sizes) * jnp.dtype(_TARGET.value).itemsize
    leaf_bytes = max(sizes) * jnp.dtype(_DTYPE.value).itemsize
    limit = target_bytes + 1.3 * leaf_bytes
    print(f"{_SIZE.value}, {_DTYPE.value} -> {_TARGET.value}")
    print(f"target {target_bytes / 1e9:.3f} GB, limit {limit / 1e9:.3f} GB")
    for kind in _FORMATS.value:
      path = folder / NAMES[kind]
      write(ours, kind, path)
      seconds, peak = measure_apart(path)
      print(
        f"{kind}: {size_on_disk(path) / 1e9:.3f} GB on disk, {seconds:.1f} s, "
        f"peak {peak / 1e9:.3f} GB",
        flush=True,
      )
      if kind != "safetensors":
        shutil.rmtree(path)
  finally:
    shutil.rmtree(folder)


if __name__ == "__main__":
  app.run(main)
