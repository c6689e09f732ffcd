# SPDX-License-Identifier: Apache-2.0
"""Compiles a step for H200s that are not there, and reads the program.

    pip install "jax[cuda12]"
    python benchmarks/gpu_program.py --size=base
    python benchmarks/gpu_program.py --size=xl --layout=data --devices=4

It is the step of `several_gpus.py`, whose layouts and flags these are. XLA is
told what the GPU is like, and can try nothing on it: its choice among kernels
for a product is not the one that it would measure. Printed are the memory of a
GPU, the collectives, and the kernels: what they belong to (layers taken
together), how many they are, the bytes that they read and write, and how long
that takes at `--memory_rate`, which for products is not what bounds them.
"""

import argparse
from collections.abc import Iterator
import contextlib
import re
import time
from typing import NamedTuple

import gpu_step
import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
import several_gpus

from prompt_tuning import collectives, partitioning

# As XLA writes down what it finds out about a GPU.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 150000000000
  l2_cache_size: 52428800
  fpus_per_core: 128
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H200"
"""

_INSTRUCTION = re.compile(
  r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\("
)
_OPERANDS = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COMPUTATIONS = re.compile(
  r"(?:to_apply|body|computations?)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)"
)
_CONTROL = ("call", "while", "conditional")
_NO_KERNEL = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("after-all", "opt-barrier"),
)


class Kernel(NamedTuple):
  """A kernel of a program.

  Attributes:
    place: what it belongs to, as JAX names it.
    number: how often it runs.
    num_bytes: that it reads and writes, in all its runs.
  """

  place: str
  number: int
  num_bytes: int


def kernels(program: str) -> Iterator[Kernel]:
  """Yields the kernels of a program for a GPU; of a loop once, for all turns.

  Args:
    program: its HLO, from `jax.stages.Compiled.as_text`.
  """
  runs = collectives.num_runs(program)
  lines = list(collectives.lines(program))
  reached = {name for name, line in lines if line.startswith("ENTRY")}
  for computation, line in reversed(lines):  # Callers stand behind the called.
    found = _INSTRUCTION.match(line)
    if found and computation in reached and found[3] in _CONTROL:
      for called in _COMPUTATIONS.findall(line):
        reached.update(_OPERANDS.findall(called))
  sizes: dict[str, int] = {}
  for computation, line in lines:
    found = _INSTRUCTION.match(line)
    if not found or computation not in reached:
      continue
    name, result, operation = found.groups()
    sizes[name] = collectives.result_bytes(operation, result)
    if operation in (*_CONTROL, *_NO_KERNEL) or operation.endswith("-done"):
      continue
    operands = _OPERANDS.findall(line[found.end() :].split(")")[0])
    num_bytes = sizes[name] + sum(sizes.get(x, 0) for x in set(operands))
    times = runs.get(computation, 1)
    place = _OP_NAME.search(line)
    yield Kernel(place[1] if place else operation, times, times * num_bytes)


def compile_step(args: argparse.Namespace) -> jax.stages.Compiled:
  """Compiles the step that `several_gpus.py` measures."""
  config, num_trials, num_rows = several_gpus.divided(
    args.layout, args.devices, args
  )
  gpus = topologies.get_topology_desc(
    platform="cuda", topology=f"1x1x{args.devices}", target_config=_H200
  ).devices
  with contextlib.ExitStack() as stack:
    mesh = partitioning.make_mesh(config, gpus)
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(partitioning.gathered_parameters())
    run = several_gpus.start(args, args.size, config, num_trials, drawn=False)
    rows = several_gpus.random_batch(run, args, num_rows, step=0)
    place = NamedSharding(mesh, PartitionSpec("data"))
    batch = partitioning.at(rows, dict.fromkeys(rows, place))
    traced = run.step_fn.trace(run.state, run.frozen, batch, run.rng)
    return traced.lower(lowering_platforms=("cuda",)).compile()


def main() -> None:
  """Compiles and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--size", default="base")
  parser.add_argument("--layout", default="data", choices=several_gpus.LAYOUTS)
  parser.add_argument("--devices", type=int, default=1)
  parser.add_argument("--lines", type=int, default=30, help="of the table")
  parser.add_argument("--memory_rate", type=float, default=4.3e12, help="B/s")
  gpu_step.add_options(parser)
  parser.set_defaults(trained="prompt")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.default_backend = lambda: "gpu"  # For what asks which kernels to use.
  started = time.perf_counter()
  compiled = compile_step(args)
  seconds = time.perf_counter() - started
  memory, program = compiled.memory_analysis(), compiled.as_text()
  gib = lambda x: f"{x / 2**30:.2f} GiB"
  print(
    f"{args.size}, {args.devices} x H200, {args.layout}: compiled in"
    f" {seconds:.0f} s; arguments {gib(memory.argument_size_in_bytes)},"
    f" temporary {gib(memory.temp_size_in_bytes)}"
  )
  for kind, found in collectives.count(program).items():
    print(f"{kind}: {found.number}, {found.num_bytes / 2**20:.2f} MiB")
  show(kernels(program), args)


def show(found: Iterator[Kernel], args: argparse.Namespace) -> None:
  """Prints the kernels, those of all layers together."""
  groups: dict[str, tuple[int, int]] = {}
  for kernel in found:
    direction = "backward" if "transpose(" in kernel.place else "forward"
    inside = kernel.place.rpartition("(Transformer)")[2]
    place = f"{direction} {re.sub(r'_[0-9]+', '_*', inside.strip('/()'))}"
    number, num_bytes = groups.get(place, (0, 0))
    groups[place] = number + kernel.number, num_bytes + kernel.num_bytes
  rows = sorted(groups.items(), key=lambda x: -x[1][1])
  total = tuple(map(sum, zip(*groups.values(), strict=True)))
  print(f"{'kernels':>8} {'MB':>10} {'ms':>8}")
  for place, (number, num_bytes) in [("all", total), *rows[: args.lines]]:
    ms = 1e3 * num_bytes / args.memory_rate
    print(f"{number:>8} {num_bytes / 1e6:>10.1f} {ms:>8.3f}  {place}")


if __name__ == "__main__":
  main()
