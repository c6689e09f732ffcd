# SPDX-License-Identifier: Apache-2.0
"""Measures training checkpoints of a prompt of 100: bytes, and time to save.

    python benchmarks/checkpoint.py

The time is that for which a training step has to wait: writing goes on in the
background. The base is not needed, as it is never saved.
"""

import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from prompt_tuning import checkpoints, optim, trainer

WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
NUM_SAVES = 10


def main() -> None:
  """Prints a line per size."""
  for name, width in WIDTHS.items():
    prompt = jax.random.normal(jax.random.key(0), (100, width))
    trainable = {"encoder/prompt/prompt/prompt": prompt}
    opt_state = optim.adafactor().init(trainable)
    # No zeros, which would be compressed away.
    opt_state = jax.tree.map(
      lambda x: (
        x + jax.random.uniform(jax.random.key(1), x.shape).astype(x.dtype)
      ),
      opt_state,
    )
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
      with checkpoints.open_manager(folder, keep=1) as manager:
        for step in range(1, NUM_SAVES + 1):
          state = trainer.TrainState(jnp.int32(step), trainable, opt_state)
          started = time.perf_counter()
          checkpoints.save(manager, state, {"base_fingerprint": "", "run": {}})
          seconds.append(time.perf_counter() - started)
          time.sleep(1.0)  # The steps between two checkpoints.
      files = pathlib.Path(folder).rglob("*")
      size = sum(path.stat().st_size for path in files if path.is_file())
    stall = 1000 * statistics.median(seconds[1:])
    print(
      f"{name:<6} {size:>10,} bytes, stall {stall:.0f} ms (the first"
      f" {1000 * seconds[0]:.0f} ms)",
      flush=True,
    )


if __name__ == "__main__":
  main()
