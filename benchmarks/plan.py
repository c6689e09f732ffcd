# SPDX-License-Identifier: Apache-2.0
"""Plans prompt tuning of T5 XXL on pods, and compiles the plan without them.

    python benchmarks/plan.py                        the plan, on paper
    python benchmarks/plan.py --compile v5e-16       and what XLA makes of it

Frozen weights and activations in bfloat16, batch 32, 512 input and 8 target
tokens, a prompt of 100. With --tpu and libtpu (`pip install "jax[tpu]"`; no
TPU is needed) TPUs are compiled for as they are; otherwise, and for GPUs,
virtual CPU devices stand in, which partition alike but keep buffers of their
own. --stack_layers and --remat are LoopConfig.stack_layers and REMAT.
"""

import argparse
import os
import time
from typing import NamedTuple

ROWS, INPUTS, TARGETS, PROMPT = 32, 512, 8, 100
GIB, GIGA = 2**30, 1e9
UTILISATION = 0.5  # Of a device's peak, in products of this size.


class Pod(NamedTuple):
  """Some devices, and how they share the model.

  Rates are the vendors', for one device: peak bfloat16 FLOP/s, bytes/s of
  memory, and bytes/s that it sends along one axis of the mesh.
  """

  num_devices: int
  memory_gib: float
  flops: float
  memory_rate: float
  link_rate: float
  topology: str | None
  num_partitions: int = 1
  parameter_sharding: bool = False
  num_microbatches: int = 1


_V3 = (16, 61e12, 450 * GIGA, 100 * GIGA)  # A core, half a chip.
_V4 = (32, 275e12, 1228 * GIGA, 45 * GIGA)  # A chip: its cores are one device.
_V5E = (16, 197e12, 819 * GIGA, 45 * GIGA)
_H200 = (131, 989e12, 4800 * GIGA, 450 * GIGA)
PODS = {
  "v3-32": Pod(32, *_V3, "v3:4x4", num_partitions=8),
  "v4-8": Pod(4, *_V4, "v4:2x2x1", 4, num_microbatches=4),
  "v5e-16": Pod(16, *_V5E, "v5e:4x4", num_partitions=4),
  "v5e-16 fsdp": Pod(16, *_V5E, "v5e:4x4", 1, True),
  "8 x H200": Pod(8, *_H200, None),
  "8 x H200 fsdp": Pod(8, *_H200, None, 1, True),
  "1 x H200": Pod(1, *_H200, None, num_microbatches=4),
}


class Sizes(NamedTuple):
  """T5 1.1; XXL by default."""

  emb_dim: int = 4096
  mlp_dim: int = 10240
  num_heads: int = 64
  head_dim: int = 64
  num_layers: int = 24  # Of the encoder, and as many of the decoder.
  vocab_size: int = 32128

  @property
  def encoder(self) -> int:
    """Parameters of the encoder's layers."""
    attention = 4 * self.emb_dim * self.num_heads * self.head_dim
    return self.num_layers * (attention + 3 * self.emb_dim * self.mlp_dim)

  @property
  def decoder(self) -> int:
    """Parameters of the decoder's layers."""
    attention = 4 * self.emb_dim * self.num_heads * self.head_dim
    return self.encoder + self.num_layers * attention

  @property
  def tables(self) -> int:
    """Parameters of the embedding and of the logits."""
    return 2 * self.vocab_size * self.emb_dim


class Plan(NamedTuple):
  """Of one device, for one step."""

  weights: float  # Bytes.
  activations: float  # Bytes kept for the backward pass.
  sent: float  # Bytes of the results of collectives.
  num_collectives: int
  compute_s: float
  memory_s: float
  link_s: float


def plan(pod: Pod, sizes: Sizes) -> Plan:
  """Counts what a device keeps, computes, reads and sends in a step."""
  params = sizes.encoder + sizes.decoder + sizes.tables
  data = pod.num_devices // pod.num_partitions
  parts = pod.num_devices if pod.parameter_sharding else pod.num_partitions
  rows = ROWS / data
  length = PROMPT + INPUTS
  # bfloat16 [rows, length, ...] of an encoder layer: the stream twice, two
  # norms, queries, keys, values and their sum, three of the MLP, and float32
  # or bfloat16 attention weights, before and after dropout.
  inner = 4 * sizes.num_heads * sizes.head_dim + 3 * sizes.mlp_dim
  stream = 4 * sizes.emb_dim
  weights = 2 * sizes.num_heads * length
  per_token = 2 * (stream + (inner + weights) / pod.num_partitions)
  activations = rows * length * sizes.num_layers * per_token
  activations /= pod.num_microbatches
  # A product costs 2 FLOP a parameter and token forward and, as nothing but
  # the prompt learns, 2 backward. Attention: two products of length x length.
  tokens = rows * length
  attention = 2 * 2 * length * sizes.num_heads * sizes.head_dim
  flops = 2 * tokens * (2 * sizes.encoder + sizes.num_layers * attention)
  # The decoder's few targets see the encoder without keys and values: two
  # products forward and four backward, of all heads' queries and features.
  queries = TARGETS * sizes.num_heads
  flops += 6 * 2 * tokens * queries * sizes.emb_dim * sizes.num_layers
  flops += 4 * rows * TARGETS * sizes.decoder
  sent, count = 4.0 * PROMPT * sizes.emb_dim if data > 1 else 0.0, int(data > 1)
  if pod.num_partitions > 1:
    # Two sums a layer and direction in the encoder. The decoder's are short,
    # but for the gradient of what each layer sees of the encoder.
    once = 2 * rows * length * sizes.emb_dim
    count += pod.num_microbatches * 11 * sizes.num_layers
    sent += once * 5 * sizes.num_layers
    sent += 2 * rows * TARGETS * sizes.emb_dim * 6 * sizes.num_layers
  link = 2 * sent * (1 - 1 / max(pod.num_partitions, 2))
  if pod.parameter_sharding:
    # Every kernel and every norm, forward and again backward.
    gathered = 2 * 2 * params / pod.num_partitions
    sent += gathered
    link += gathered * (1 - 1 / data)
    count += 2 * (6 + sizes.num_layers * (9 + 14))
  return Plan(
    2 * params / parts,
    activations,
    sent,
    count,
    flops / pod.num_partitions / pod.flops,
    2
    * 2
    * params
    * pod.num_microbatches
    / pod.num_partitions
    / pod.memory_rate,
    link / pod.link_rate,
  )


def show(name: str, pod: Pod, sizes: Sizes) -> None:
  """Prints a line of the table."""
  found = plan(pod, sizes)
  seconds = {
    "compute": found.compute_s / UTILISATION,
    "memory": found.memory_s,
    "links": found.link_s,
  }
  bound = max(seconds, key=lambda key: seconds[key])
  memory = (found.weights + found.activations) / GIB
  print(
    f"{name:<14} {pod.num_devices // pod.num_partitions:>4} x"
    f" {pod.num_partitions:<3} {found.weights / GIB:>8.2f}"
    f" {found.activations / GIB:>8.2f} {memory:>8.2f} of {pod.memory_gib:<4g}"
    f" {found.num_collectives:>6} {found.sent / GIB:>7.2f}"
    f" {seconds['compute']:>8.3f} {seconds['links']:>7.3f}"
    f" {max(seconds['compute'], seconds['memory']) + seconds['links']:>7.3f}"
    f"  {bound}",
    flush=True,
  )


def compile_plan(pod: Pod, sizes: Sizes, args: argparse.Namespace) -> None:
  """Compiles the step for the pod; prints its memory and collectives."""
  import jax
  from jax.experimental import topologies
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec
  import numpy as np
  import steps

  from prompt_tuning import (
    collectives,
    layer_stacking,
    optim,
    partitioning,
    prompts,
    t5,
    trainer,
  )

  config = partitioning.MeshConfig(
    pod.num_partitions, parameter_sharding=pod.parameter_sharding
  )
  devices, kind = jax.devices("cpu")[: pod.num_devices], "virtual CPUs"
  if pod.topology is not None and args.tpu:
    cores = "megacore" if pod.topology.startswith("v4") else "default"
    devices = topologies.get_topology_desc(
      topology_name=pod.topology, platform="tpu", chip_config_name=cores
    ).devices
    kind = devices[0].device_kind
  model = t5.Transformer(
    t5.T5Config(
      vocab_size=sizes.vocab_size,
      emb_dim=sizes.emb_dim,
      num_heads=sizes.num_heads,
      num_encoder_layers=sizes.num_layers,
      num_decoder_layers=sizes.num_layers,
      head_dim=sizes.head_dim,
      mlp_dim=sizes.mlp_dim,
      remat=args.remat,
      dtype=jnp.bfloat16,
      param_dtype=jnp.bfloat16,
    ),
    prompts.PromptConfig(length=PROMPT),
  )
  shapes = t5.param_shapes(model)
  partition = optim.Partition([([".*/prompt/.*"], optim.adafactor())])
  optimizer = partition.optimizer(shapes)
  trainable, frozen = optim.split(shapes, partition.labels(shapes))
  state = jax.eval_shape(
    lambda x: trainer.TrainState(jnp.int32(0), x, optimizer.init(x)), trainable
  )
  with jax.set_mesh(partitioning.make_mesh(config, devices)):
    mesh = jax.sharding.get_mesh()
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    placed = partitioning.state_shardings(state, model, config)
    state = partitioning.at(state, placed)
    frozen = partitioning.placed(frozen, model, config)
    if args.stack_layers:
      frozen = layer_stacking.stack(frozen)
    rows = steps.random_batch(
      np.random.default_rng(0),
      sizes.vocab_size,
      num_rows=ROWS,
      num_inputs=INPUTS,
      num_targets=TARGETS,
    )
    batch = partitioning.at(rows, dict.fromkeys(rows, by_row))
    step_fn = steps.step(
      model, optimizer, num_microbatches=pod.num_microbatches
    )
    rng = jax.eval_shape(lambda: jax.random.key(0))
    started = time.monotonic()
    with partitioning.gathered_parameters():
      jitted = steps.jit(step_fn, model, out_shardings=(placed, everywhere))
      program = jitted.lower(state, frozen, batch, rng).compile()
  memory = program.memory_analysis()
  found = collectives.count(program.as_text())
  print(
    f"  {kind}: arguments {memory.argument_size_in_bytes / GIB:.2f} GiB,"
    f" temporary {memory.temp_size_in_bytes / GIB:.2f} GiB; compiled in"
    f" {time.monotonic() - started:.0f} s"
  )
  for name, (number, num_bytes) in found.items():
    print(f"  {name}: {number}, {num_bytes / GIB:.3f} GiB", flush=True)


def main() -> None:
  """Prints the table, and compiles what is named."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--compile", nargs="*", default=[], choices=list(PODS))
  parser.add_argument("--layers", type=int, default=24)
  parser.add_argument("--tpu", action="store_true")
  parser.add_argument("--stack_layers", action="store_true")
  parser.add_argument("--remat", default="none")
  args = parser.parse_args()
  sizes = Sizes(num_layers=args.layers)
  largest = max([PODS[name].num_devices for name in args.compile] or [1])
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={largest}"
  print(
    f"{'':14} {'mesh':>8}   {'weights':>8} {'activ.':>8} {'GiB':>8}"
    f" {'':7} {'colls':>6} {'GiB':>7} {'compute':>8} {'links':>7} {'step s':>7}"
    "  bound"
  )
  for name, pod in PODS.items():
    show(name, pod, sizes)
    if name in args.compile:
      compile_plan(pod, sizes, args)


if __name__ == "__main__":
  main()
