# SPDX-License-Identifier: Apache-2.0
"""Times a training step on a GPU, and tells how near to the metal it is.

    python benchmarks/gpu_step.py --sizes=base,large,xl,xxl

T5 1.1 with random bfloat16 weights, prompt 100, 512 input and 16 target tokens,
batch 32, dropout 0.1: `trainer.train_step` with the switches that a run has
(ATTENTION, REMAT, QUANTIZATION, loop.LoopConfig.stack_layers). As in the loop,
one step is in flight while the next is called; the time of a step is the median
of `--steps`. The share is of the rate of an 8192-cubed bfloat16 product,
measured behind it; `first_s` is from the start of the process to the end of
its first step. `--trained=all` is a step of pretraining, with float32
weights and no prompt. `--peer` also runs `peer_step.py`, which needs torch, and
tells how many times longer a step of transformers with PEFT takes, of the kind
`blocks` unless another is given (`--peer=compiled`).
Each size is a process of its own, so that the peak of memory is its own.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_step
import sizes
import steps

from prompt_tuning import (
  layer_stacking,
  optim,
  prompts,
  quantization,
  t5,
  t5_config,
  trainer,
)


def matmul_rate(repeats: int = 20) -> float:
  """Returns the FLOP/s of a product of two square bfloat16 matrices.

  They are 8192 wide but, so that this can be tried anywhere, not on a CPU.
  """
  size = 512 if jax.default_backend() == "cpu" else 8192
  a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
  dot = jax.jit(jnp.dot)
  dot(a, b).block_until_ready()
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    for _ in range(10):
      product = dot(a, b)
    product.block_until_ready()
    seconds.append((time.perf_counter() - started) / 10)
  return 2 * size**3 / statistics.median(seconds)


def network(args: argparse.Namespace, size: str) -> t5.Transformer:
  """Returns the model that is measured."""
  is_frozen = args.trained == "prompt"
  config = dataclasses.replace(
    sizes.SIZES[size],
    dtype=jnp.dtype(args.dtype),
    param_dtype=jnp.dtype(args.param_dtype) if is_frozen else jnp.float32,
    dropout_rate=args.dropout,
    attention=args.attention,
    remat=args.remat,
    quantization=args.quantization,
  )
  prompt = prompts.PromptConfig(length=args.prompt) if is_frozen else None
  return t5.Transformer(config, prompt)


def start(
  model: t5.Transformer, args: argparse.Namespace
) -> tuple[trainer.TrainState, trainer.Params, jax.stages.Wrapped]:
  """Returns the state, the frozen parameters and the step."""
  params = sizes.random_params(model)
  rule, rate = (".*", 1e-4) if model.prompt is None else (".*/prompt/.*", 0.3)
  partition = optim.Partition([([rule], optim.adafactor(rate))])
  optimizer = partition.optimizer(params)
  trainable, frozen = params, {}
  if model.prompt is not None:
    trainable, frozen = sizes.split_prompt(params)
  del params
  frozen = quantization.quantize(frozen, args.quantization)
  if args.stack_layers:
    frozen = layer_stacking.stack(frozen)
  state = trainer.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
  return state, frozen, steps.jit(steps.step(model, optimizer), model)


def measure(size: str, args: argparse.Namespace) -> dict[str, float]:
  """Measures a size in this process; BENCHMARK_START says when it began."""
  model = network(args, size)
  state, frozen, step_fn = start(model, args)
  batch = steps.random_batch(
    np.random.default_rng(0),
    model.config.vocab_size,
    num_rows=args.batch_size,
    num_inputs=args.inputs,
    num_targets=args.targets,
  )
  key = jax.random.key(0)
  started = time.perf_counter()
  compiled = step_fn.lower(state, frozen, batch, key).compile()
  compile_s = time.perf_counter() - started
  seconds, waiting = [], []
  started = time.perf_counter()
  for _ in range(args.steps + 3):
    state, metrics = compiled(state, frozen, batch, key)
    waiting.append(metrics)
    jax.block_until_ready(waiting[-2:][0])
    now = time.perf_counter()
    seconds.append(now - started)
    started = now
    if len(seconds) == 1:
      first_s = time.time() - float(os.environ["BENCHMARK_START"])
  assert all(np.isfinite(float(x.sums.loss)) for x in waiting)
  step_s = statistics.median(seconds[3:])
  is_frozen = model.prompt is not None
  flops = sizes.step_flops(
    model.config,
    batch_size=args.batch_size,
    num_inputs=args.inputs,
    num_targets=args.targets,
    prompt_length=args.prompt if is_frozen else 0,
    is_frozen=is_frozen,
  )
  stats = jax.local_devices()[0].memory_stats() or {}
  num_tokens = args.batch_size * (args.inputs + args.targets)
  return {
    "step_ms": 1e3 * step_s,
    "examples_per_s": args.batch_size / step_s,
    "tokens_per_s": num_tokens / step_s,
    "model_tflops": flops / step_s / 1e12,
    "share": flops / step_s / matmul_rate(),
    "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
    "compile_s": compile_s,
    "first_s": first_s,
  }


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the network, its batches, and how often it is timed."""
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--param_dtype", default="bfloat16")
  parser.add_argument("--attention", default="auto")
  parser.add_argument("--remat", choices=t5_config.REMAT, default="none")
  parser.add_argument(
    "--quantization", choices=quantization.KINDS, default="none"
  )
  parser.add_argument("--stack_layers", action="store_true")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--inputs", type=int, default=512)
  parser.add_argument("--targets", type=int, default=16)
  parser.add_argument("--prompt", type=int, default=100)
  parser.add_argument("--dropout", type=float, default=0.1)
  parser.add_argument("--steps", type=int, default=12)


def measure_apart(script: str, *flags: str) -> dict[str, Any]:
  """Measures in another process, whose last line is JSON."""
  path = pathlib.Path(__file__).with_name(script)
  output = subprocess.run(
    [sys.executable, path, *flags],
    env=os.environ
    | {"TF_CPP_MIN_LOG_LEVEL": "3", "BENCHMARK_START": str(time.time())},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  return json.loads(output.splitlines()[-1])


def measure_peer(size: str, args: argparse.Namespace) -> dict[str, Any]:
  """Measures PyTorch on the same network and batches."""
  same = ("batch_size", "inputs", "targets", "prompt", "dropout", "steps")
  flags = [f"--{name}={getattr(args, name)}" for name in same]
  flags.append(f"--kind={args.peer}")
  return measure_apart("peer_step.py", f"--size={size}", *flags)


def main() -> None:
  """Prints a table, a row as soon as it is measured."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sizes", default="base,large,xl,xxl")
  parser.add_argument("--trained", choices=("prompt", "all"), default="prompt")
  add_options(parser)
  parser.add_argument(
    "--peer", nargs="?", const="blocks", choices=peer_step.KINDS
  )
  parser.add_argument("--child", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(measure(args.child, args)))
    return
  if args.peer and (args.trained, args.dtype) != ("prompt", "bfloat16"):
    parser.error("the peer trains a prompt, in bfloat16")
  title = True
  for size in args.sizes.split(","):
    found = measure_apart("gpu_step.py", *sys.argv[1:], f"--child={size}")
    if title:
      print(" ".join(["size      ", *(f"{name:>14}" for name in found)]))
      title = False
    cells = (f"{value:14.3f}" for value in found.values())
    print(" ".join([f"{size:<10}", *cells]), flush=True)
    if args.peer:
      peer = measure_peer(size, args)
      ratio = peer["step_ms"] / found["step_ms"]
      print(f"{size:<10} peer {ratio:.2f} times as long: {peer}", flush=True)


if __name__ == "__main__":
  main()
