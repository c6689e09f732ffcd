# SPDX-License-Identifier: Apache-2.0
"""Trains on eight virtual devices, for partitioning_test.py.

    python partitioning_cases.py '[{"num_partitions": 2}]' 2 result.json

With so many target tokens, of which 2 see the encoder without keys and values.
First without a mesh, then on a mesh of one device, then as the cases say.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
)

import contextlib
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from prompt_tuning import (
  collectives,
  losses,
  optim,
  partitioning,
  prompts,
  t5,
  trainer,
)

NUM_STEPS = 10
NUM_TARGETS = int(sys.argv[2])
PROMPT = "encoder/prompt/prompt/prompt"
KERNEL = "encoder/layers_0/mlp/wi_0/kernel"
CONFIG = t5.T5Config(
  vocab_size=128,
  emb_dim=32,
  num_heads=8,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=64,
  dropout_rate=0.1,
)
MODEL = t5.Transformer(CONFIG, prompts.PromptConfig(length=5))


def batches():
  rng = np.random.default_rng(0)
  tokens = lambda length: rng.integers(2, 128, (16, length), dtype=np.int32)
  for _ in range(NUM_STEPS):
    yield {
      "encoder_input_tokens": tokens(12),
      "decoder_input_tokens": tokens(NUM_TARGETS),
      "decoder_target_tokens": tokens(NUM_TARGETS),
      "decoder_loss_weights": np.ones((16, NUM_TARGETS), np.int32),
    }


def bytes_per_device(*arrays):
  """Sums the bytes of the pieces that each of the devices holds."""
  result = {}
  for x in arrays:
    for shard in x.addressable_shards:
      own = result.get(shard.device.id, 0) + shard.data.nbytes
      result[shard.device.id] = own
  return list(result.values())


def misplaced(tree, shardings):
  """Names the arrays that are not where they should be."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return [
    jax.tree_util.keystr(path)
    for (path, x), wanted in zip(
      leaves, jax.tree.leaves(shardings), strict=True
    )
    if not x.sharding.is_equivalent_to(wanted, x.ndim)
  ]


def train(params, config, mesh):
  """Takes ten steps; without a mesh as if there were no such thing."""
  partition = optim.Partition([([".*/prompt/.*"], optim.adafactor())])
  optimizer = partition.optimizer(params)
  shardings = {}
  if mesh is not None:
    shardings = partitioning.param_shardings(params, MODEL, config)
    params = partitioning.place(params, shardings)
  trainable, frozen = optim.split(params, partition.labels(params))
  state = trainer.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
  out_shardings = placed = None
  if mesh is not None:
    placed = partitioning.state_shardings(state, MODEL, config)
    state = partitioning.place(state, placed)
    out_shardings = (placed, NamedSharding(mesh, PartitionSpec()))
  step_fn = functools.partial(
    trainer.train_step,
    model=MODEL,
    optimizer=optimizer,
    loss=losses.LossConfig(),
    num_microbatches=2,
  )
  jitted = jax.jit(step_fn, out_shardings=out_shardings)
  rng = jax.random.key(0)
  found = []
  with partitioning.gathered_parameters():
    batch = partitioning.place_batch(next(batches()))
    program = jitted.lower(state, frozen, batch, rng).compile()
    for batch in batches():
      placed_batch = partitioning.place_batch(batch)
      state, metrics = program(state, frozen, placed_batch, rng)
      found.append(float(metrics.sums.loss))
  prompt = state.trainable[PROMPT]
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 2]
  wrong = []
  if mesh is not None:
    kept = {name: shardings[name] for name in frozen}
    wrong = misplaced((state, frozen), (placed, kept))
  return {
    "losses": found,
    "prompt": np.asarray(prompt).tolist(),
    "bytes": {
      "prompt": bytes_per_device(prompt),
      "moment": bytes_per_device(*moments),
      "kernel": bytes_per_device(frozen[KERNEL]),
      "frozen": bytes_per_device(*frozen.values()),
    },
    "misplaced": wrong,
    "collectives": collectives.count(program.as_text()),
  }


def main():
  cases = json.loads(sys.argv[1])
  params = jax.device_get(t5.init_params(MODEL, seed=0))
  result = [
    train(jax.tree.map(jnp.asarray, params), partitioning.MeshConfig(), None)
  ]
  for i, case in enumerate([{}, *cases]):
    config = partitioning.MeshConfig(**case)
    devices = jax.devices()[: 1 if i == 0 else 8]
    mesh = partitioning.make_mesh(config, devices)
    with contextlib.ExitStack() as stack:
      stack.enter_context(jax.set_mesh(mesh))
      result.append({"config": case, **train(params, config, mesh)})
  pathlib.Path(sys.argv[3]).write_text(json.dumps(result))


if __name__ == "__main__":
  main()
