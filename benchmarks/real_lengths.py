# SPDX-License-Identifier: Apache-2.0
"""Examples per second on rows of real lengths: buckets against padding.

    python -m prompt_tuning.cache_task ... --gin.CACHE_DIR="'/tmp/rte'"
    python benchmarks/real_lengths.py --cache=/tmp/rte --size=base

Trains a prompt on the rows of a tokenised cache, T5 1.1 with random weights,
batch by batch as `batching.train_batches` makes them: all of the length that
the cache was written for, and cut to one of `--buckets` lengths chosen from the
data (`loop.LoopConfig.num_buckets`). Batches are made while they are trained
on, as in a run, and programs are compiled before, all at once. Buckets sort the
rows of 64 batches together, so that is how many are taken, twice: what is timed
is the second pass. In the first XLA records each program as a graph for a GPU.
"""

import argparse
from collections.abc import Iterator
import pathlib
import time

import gpu_step
import jax

from prompt_tuning import (
  batching,
  cache,
  cache_manifest,
  partitioning,
  step_program,
  task_data,
  trainer,
)

WINDOW = 64


def read_cache(folder: str) -> task_data.TaskData:
  """Reads a tokenised cache as it was written."""
  manifest = cache_manifest.read(pathlib.Path(folder))
  return cache.from_cache(
    cache_dir=folder,
    mixture_or_task_name=manifest.task,
    feature_lengths=manifest.feature_lengths,
    scoring_fn=task_data.unscored,
  )


def examples_per_s(
  step_fn: jax.stages.Wrapped,
  state: trainer.TrainState,
  frozen: trainer.Params,
  batches: Iterator[batching.Batch],
  num_steps: int,
) -> tuple[float, trainer.TrainState]:
  """Trains on some batches, with one step in flight as in the loop."""
  rng, num_rows, waiting = jax.random.key(0), 0, []
  started = time.perf_counter()
  for _ in range(num_steps):
    batch = next(batches)
    num_rows += len(batch["encoder_input_tokens"])
    state, metrics = step_fn(state, frozen, batch, rng)
    waiting.append(metrics)
    jax.block_until_ready(waiting[-2:][0])
  jax.block_until_ready(state)
  return num_rows / (time.perf_counter() - started), state


def compare(args: argparse.Namespace) -> None:
  """Prints a line for padded batches, one for buckets, and their ratio."""
  data = read_cache(args.cache)
  state, frozen, step_fn = gpu_step.start(
    gpu_step.network(args, args.size), args
  )
  speeds = []
  for own, num_steps in (
    (data, args.padded_steps),
    (task_data.with_buckets(data, args.buckets), WINDOW),
  ):
    stream = lambda own=own: task_data.train_batches(
      own, batch_size=args.batch_size, seed=0, start_step=0
    )
    seen = {
      batch["encoder_input_tokens"].shape[1]: batch
      for batch, _ in zip(stream(), range(num_steps), strict=False)
    }
    started = time.perf_counter()
    with step_program.compiling(
      step_fn, state, frozen, list(seen.values()), jax.random.key(0)
    ) as wait:
      wait()
    seconds = time.perf_counter() - started
    for _ in ("warm-up", "timed"):
      speed, state = examples_per_s(step_fn, state, frozen, stream(), num_steps)
    speeds.append(speed)
    padding = batching.padding_share(
      own.train_sources,
      batch_size=args.batch_size,
      feature_lengths=own.feature_lengths,
      seed=0,
      buckets=own.buckets,
    )
    print(
      f"{speed:8.2f} examples/s, {padding:.1%} of inputs padding, lengths"
      f" {sorted(seen)}, compiled in {seconds:.1f} s",
      flush=True,
    )
  print(f"buckets / padded {speeds[1] / speeds[0]:.2f}")


def main() -> None:
  """Compares, on one device and within what a run computes in."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--cache", required=True)
  parser.add_argument("--size", default="base")
  parser.add_argument("--buckets", type=int, default=8)
  parser.add_argument("--padded_steps", type=int, default=16)
  gpu_step.add_options(parser)
  args = argparse.Namespace(**vars(parser.parse_args()), trained="prompt")
  mesh = partitioning.make_mesh(partitioning.MeshConfig(), jax.devices()[:1])
  with jax.set_mesh(mesh), partitioning.gathered_parameters():
    compare(args)


if __name__ == "__main__":
  main()
