# SPDX-License-Identifier: Apache-2.0
"""Trains a prompt on more and more GPUs of one host, and compares with one.

    python benchmarks/several_gpus.py --sizes=base,xl --devices=1,2,4
    python benchmarks/several_gpus.py --sizes=tiny --devices=1,2,4 --simulate

T5 1.1 with random weights, prompt 100, 512 input and 16 target tokens, dropout
0.1, by the step and the placement that a run has. The layouts:

    data     all weights on every GPU; 32 rows each
    fsdp     weights divided among the GPUs (PARAMETER_SHARDING); 32 rows each
    model    every product divided (NUM_PARTITIONS); 32 rows together
    prompts  all weights and a prompt on every GPU (SEEDS); 32 rows each

First 20 steps of 32 rows together (of 32 rows each for `prompts`), whose loss
and first prompt are compared with those of one GPU: the largest relative
difference of a loss, and the largest difference of an element. Then the median
time of a step. Efficiency is examples/s against that many times one GPU's.
Bytes are those of the collectives' results on one device, by the compiled
program; the bound is the time that a ring over `--link_rate` takes for them.
Each row is a process of its own, so that the peak of memory is its own.
"""

import argparse
from collections.abc import Iterator
import contextlib
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import gpu_step
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import sizes
import steps

from prompt_tuning import (
  collectives,
  divided_trials,
  layer_stacking,
  optim,
  partitioning,
  prompt_files,
  quantization,
  t5,
  trainer,
  trials,
)

LAYOUTS = ("data", "fsdp", "model", "prompts")
WEAK = ("data", "fsdp")  # The more devices, the more rows.
CHECKED_STEPS = 20


class Run(NamedTuple):
  """A training on the current mesh, of one trial or of `num_trials`."""

  model: t5.Transformer
  state: trials.State
  frozen: trainer.Params
  rng: jax.Array
  step_fn: jax.stages.Wrapped
  num_trials: int


def _begin(
  optimizer: optax.GradientTransformation,
  num_trials: int,
  trainable: trainer.Params,
) -> tuple[trials.State, jax.Array]:
  """Returns the state before the first step, of all trials, and their rngs."""
  opt_state = optimizer.init(trainable)
  state = trainer.TrainState(jnp.int32(0), trainable, opt_state)
  rngs = jnp.stack([jax.random.key(i) for i in range(num_trials)])
  if num_trials == 1:
    return state, rngs[0]
  return trials.stack([state] * num_trials), rngs


def start(
  args: argparse.Namespace,
  size: str,
  config: partitioning.MeshConfig,
  num_trials: int,
  *,
  drawn: bool = True,
) -> Run:
  """Draws and places everything, or only describes it."""
  model = gpu_step.network(args, size)
  names = t5.param_shapes(model)
  if drawn:
    places = partitioning.param_shardings(names, model, config)
    params = sizes.random_params(model, places)
  else:
    params = partitioning.placed(names, model, config)
  trainable, frozen = sizes.split_prompt(params)
  rules = optim.Partition([([".*/prompt/.*"], optim.adafactor(0.3))])
  optimizer = rules.optimizer(names)
  frozen = quantization.quantize(frozen, args.quantization)
  if args.stack_layers:
    frozen = layer_stacking.stack(frozen)

  begin = functools.partial(_begin, optimizer, num_trials)
  state, rng = begin(trainable) if drawn else jax.eval_shape(begin, trainable)
  step_fn = steps.step(model, optimizer)
  if num_trials == 1:
    placed = partitioning.state_shardings(state, model, config)
  else:
    placed = divided_trials.state_shardings(state)
    step_fn = functools.partial(divided_trials.train_step, step_fn=step_fn)
  spec = PartitionSpec("data") if num_trials > 1 else PartitionSpec()
  of_metrics = NamedSharding(jax.sharding.get_mesh(), spec)
  return Run(
    model,
    (partitioning.place if drawn else partitioning.at)(state, placed),
    frozen,
    rng,
    steps.jit(step_fn, model, out_shardings=(placed, of_metrics)),
    num_trials,
  )


def random_batch(
  run: Run, args: argparse.Namespace, num_rows: int, *, step: int
) -> dict[str, np.ndarray]:
  """Draws the rows of a step, for all trials the same."""
  batch = steps.random_batch(
    np.random.default_rng([step, num_rows]),
    run.model.config.vocab_size,
    num_rows=num_rows,
    num_inputs=args.inputs,
    num_targets=args.targets,
  )
  if run.num_trials == 1:
    return batch
  return {k: np.stack([x] * run.num_trials) for k, x in batch.items()}


def batches(
  run: Run, args: argparse.Namespace, num_rows: int
) -> Iterator[partitioning.Batch]:
  """Yields batches without end."""
  for step in itertools.count():
    rows = random_batch(run, args, num_rows, step=step)
    yield partitioning.place_batch(rows)


def take_steps(
  run: Run, stream: Iterator[partitioning.Batch], num_steps: int
) -> tuple[Run, jax.stages.Compiled, list[float], list[float]]:
  """Compiles the step and takes some, with one in flight as in the loop.

  Returns:
    What the run has become, the program, and of each step the loss of the first
    trial and the seconds.
  """
  made = list(itertools.islice(stream, num_steps))
  program = run.step_fn.lower(run.state, run.frozen, made[0], run.rng).compile()
  metrics, seconds = [], []
  started = time.perf_counter()
  for batch in made:
    state, latest = program(run.state, run.frozen, batch, run.rng)
    run = run._replace(state=state)
    metrics.append(latest)
    jax.block_until_ready(metrics[-2:][0])
    seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
  found = [float(np.ravel(x.sums.loss)[0]) for x in metrics]
  return run, program, found, seconds


def divided(
  layout: str, num_devices: int, args: argparse.Namespace
) -> tuple[partitioning.MeshConfig, int, int]:
  """Returns the mesh, the number of trials, and the rows of each."""
  config = partitioning.MeshConfig(
    num_partitions=num_devices if layout == "model" else 1,
    parameter_sharding=layout == "fsdp",
  )
  num_trials = num_devices if layout == "prompts" else 1
  num_rows = args.batch_size * (num_devices if layout in WEAK else 1)
  return config, num_trials, num_rows


def measure(
  size: str, layout: str, num_devices: int, args: argparse.Namespace
) -> dict[str, Any]:
  """Measures a row in this process."""
  config, num_trials, num_rows = divided(layout, num_devices, args)
  mesh = partitioning.make_mesh(config, jax.devices()[:num_devices])
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(partitioning.gathered_parameters())
    run = start(args, size, config, num_trials)
    stream = batches(run, args, args.batch_size)
    run, _, found, _ = take_steps(run, stream, CHECKED_STEPS)
    prompt = np.asarray(run.state.trainable[prompt_files.NAME])
    stream = batches(run, args, num_rows)
    _, program, _, seconds = take_steps(run, stream, args.steps + 3)
  step_s = statistics.median(seconds[3:])
  sent = collectives.count(program.as_text())
  num_bytes = sum(x.num_bytes for x in sent.values())
  # A ring sends twice what it reduces, all else once, but for its own part.
  reduced = sent.get("all-reduce", collectives.Collective(0, 0)).num_bytes
  ring = (num_bytes + reduced) * (1 - 1 / num_devices)
  stats = [x.memory_stats() or {} for x in mesh.devices.flat]
  return {
    "losses": found,
    "prompt": (prompt if num_trials == 1 else prompt[0]).tolist(),
    "step_ms": 1e3 * step_s,
    "examples_per_s": num_rows * num_trials / step_s,
    "peak_gib": max(x.get("peak_bytes_in_use", 0) for x in stats) / 2**30,
    "collectives": sum(x.number for x in sent.values()),
    "mib_sent": num_bytes / 2**20,
    "bound_ms": 1e3 * ring / args.link_rate,
  }


def compared(
  row: dict[str, Any], one: dict[str, Any] | None, num_devices: int
) -> dict[str, float]:
  """Puts what a row has in relation to one device's in place of its values."""
  values = {k: x for k, x in row.items() if k not in ("losses", "prompt")}
  efficiency = loss = prompt = float("nan")
  if one is not None:
    efficiency = row["examples_per_s"] / one["examples_per_s"] / num_devices
    losses_of_one = np.array(one["losses"])
    loss = np.max(np.abs(np.array(row["losses"]) / losses_of_one - 1))
    prompt = np.max(np.abs(np.array(row["prompt"]) - np.array(one["prompt"])))
  return values | {
    "efficiency": efficiency,
    "loss_diff": float(loss),
    "prompt_diff": float(prompt),
  }


def measure_apart(
  size: str, layout: str, num_devices: int
) -> dict[str, Any] | None:
  """Measures a row in another process; None if that fails."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "row.json")
    row = f"--row={size},{layout},{num_devices},{path}"
    subprocess.run(
      [sys.executable, __file__, *sys.argv[1:], row],
      env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
      check=False,
    )
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
  """Prints a table, a row as soon as it is measured."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sizes", default="base,large,xl,xxl")
  parser.add_argument("--layouts", default=",".join(LAYOUTS))
  parser.add_argument("--devices", default="1,2,4")
  parser.add_argument("--simulate", action="store_true", help="on a CPU")
  parser.add_argument("--link_rate", type=float, default=450e9, help="bytes/s")
  gpu_step.add_options(parser)
  parser.set_defaults(trained="prompt")
  parser.add_argument("--row", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.row:
    size, layout, num_devices, path = args.row.split(",")
    if args.simulate:
      jax.config.update("jax_platforms", "cpu")
      jax.config.update("jax_num_cpu_devices", int(num_devices))
    row = measure(size, layout, int(num_devices), args)
    pathlib.Path(path).write_text(json.dumps(row))
    return
  counts = [int(x) for x in args.devices.split(",")]
  title = True
  for size in args.sizes.split(","):
    one = None
    for num_devices, layout in itertools.product(
      counts, args.layouts.split(",")
    ):
      if num_devices == 1 and one is not None:  # All layouts are one there.
        continue
      row = measure_apart(size, layout, num_devices)
      if row is None:
        print(f"{size:<12} {layout:<8} {num_devices:>2} failed", flush=True)
        continue
      if num_devices == 1:
        one, layout = row, "-"
      values = compared(row, one, num_devices)
      if title:
        names = "".join(f"{name:>15}" for name in values)
        print(f"{'size':<12} {'layout':<8} {'n':>2}{names}")
        title = False
      cells = "".join(f"{value:15.4g}" for value in values.values())
      print(f"{size:<12} {layout:<8} {num_devices:>2}{cells}", flush=True)


if __name__ == "__main__":
  main()
