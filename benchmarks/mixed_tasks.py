# SPDX-License-Identifier: Apache-2.0
"""Examples per second of mixed-task batches against single-prompt ones.

    python benchmarks/mixed_tasks.py
    python benchmarks/mixed_tasks.py --size=xl --dtype=bfloat16 --batch_size=32

T5 1.1 with random weights, greedy. The same texts are answered in batches where
all rows have one prompt of 100 positions, where each has one of several tasks'
prompts of that length, and where these differ in length. The three take turns;
each figure is a median over the turns, the ratios too.
"""

import argparse
from collections.abc import Sequence
import statistics
import tempfile
import time

import numpy as np
import sizes

from prompt_tuning import inference, prompt_files, t5
from prompt_tuning import prompts as prompt_lib
from prompt_tuning import vocabulary as vocabulary_lib

NUM_TASKS = 8
LENGTH = 100


def load(folder: str, config: t5.T5Config) -> inference.Model:
  """Writes a random base and its prompts, and loads them as a user would."""
  base = f"{folder}/base.safetensors"
  sizes.write_base(base, config)
  rng = np.random.default_rng(0)
  prompts = {}
  for i in range(NUM_TASKS):
    # equal_0, ... of 100 positions; unequal_0, ... of 30, 40, ..., 100.
    lengths = {"equal": LENGTH, "unequal": LENGTH - 10 * (NUM_TASKS - 1 - i)}
    for kind, length in lengths.items():
      prompts[f"{kind}_{i}"] = f"{folder}/{kind}_{i}.safetensors"
      prompt = rng.normal(size=(length, config.emb_dim)).astype(np.float32)
      prompt_files.save(prompts[f"{kind}_{i}"], prompt, {})
  vocabulary = vocabulary_lib.from_bytes(config.vocab_size)
  return inference.load(
    base,
    vocabulary=vocabulary,
    prompts=prompts,
    network=t5.Transformer(config, prompt_lib.PromptConfig()),
  )


def seconds(
  model: inference.Model,
  texts: Sequence[str],
  names: Sequence[str],
  config: inference.InferenceConfig,
) -> float:
  """Times the answers to all texts, from text to text."""
  started = time.perf_counter()
  inference.predict(model, texts, prompts=names, config=config)
  return time.perf_counter() - started


def main() -> None:
  """Measures the three kinds of batch in turn and prints their medians."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--size", choices=sizes.SIZES, default="small")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--repetitions", type=int, default=9)
  parser.add_argument("--batches", type=int, default=2)
  parser.add_argument("--batch_size", type=int, default=16)
  args = parser.parse_args()
  config = inference.InferenceConfig(
    feature_lengths={"inputs": 64, "targets": 8}, batch_size=args.batch_size
  )
  num_texts = args.batches * args.batch_size
  texts = [f"{i:04d} " + "word " * 11 for i in range(num_texts)]
  names = {
    "single": [f"equal_{NUM_TASKS - 1}"] * num_texts,
    "mixed": [f"equal_{i % NUM_TASKS}" for i in range(num_texts)],
    "mixed lengths": [f"unequal_{i % NUM_TASKS}" for i in range(num_texts)],
  }
  with tempfile.TemporaryDirectory() as folder:
    model = load(folder, sizes.of_dtype(args.size, args.dtype))
  for chosen in names.values():  # Compiles.
    seconds(model, texts, chosen, config)
  times: dict[str, list[float]] = {kind: [] for kind in names}
  for _ in range(args.repetitions):
    for kind, chosen in names.items():
      times[kind].append(seconds(model, texts, chosen, config))
  for kind, own in times.items():
    rate = num_texts / statistics.median(own)
    ratios = [a / b for a, b in zip(times["single"], own, strict=True)]
    ratio = statistics.median(ratios)
    print(f"{kind:<14}{rate:8.2f} examples/s  {ratio:.3f} of single")


if __name__ == "__main__":
  main()
