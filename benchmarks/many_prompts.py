# SPDX-License-Identifier: Apache-2.0
r"""Times a training command of K prompts against K commands of one prompt.

    python benchmarks/many_prompts.py
    python benchmarks/many_prompts.py --size=xl --dtype=bfloat16 \
      --batch_size=32 --prompt=100 --cache_dir=rte

T5 1.1 with random weights, dropout 0.1. Unless told otherwise small in float32,
prompt 20, batch 4, 64 input and 8 target tokens, as in train_step.py. Both
sides train 200 steps and then evaluate 32 rows, or the validation rows of a
tokenised cache, whose lengths are then those of the batches. Peak memory is
that of a process, on the host; the time of a step is that of the last half of
the steps.
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

from prompt_tuning import cache_manifest

ROOT = pathlib.Path(__file__).parents[1]


def write_rows(path: pathlib.Path, num_rows: int, num_words: int) -> None:
  """Writes rows of so many words, of a token or more each."""
  rng = random.Random(num_rows)
  words = ["river", "stone", "light", "music", "paper", "garden", "window"]
  with open(path, "w", encoding="utf-8") as file:
    for _ in range(num_rows):
      text = " ".join(rng.choices(words, k=num_words))
      row = {"text": text, "label": rng.choice(["yes", "no"])}
      file.write(f"{json.dumps(row)}\n")


def source(folder: pathlib.Path, args: argparse.Namespace) -> list[str]:
  """Returns the flags of the data, whose rows are written here if need be."""
  if args.cache_dir:
    manifest = cache_manifest.read(pathlib.Path(args.cache_dir))
    return [
      "--gin_file=gin/runs/prompt_finetune_from_cache.gin",
      f"--gin.CACHE_DIR={args.cache_dir!r}",
      f"--gin.MIXTURE_OR_TASK_NAME={manifest.task!r}",
      f"--gin.TASK_FEATURE_LENGTHS={manifest.feature_lengths!r}",
    ]
  train, validation = folder / "train.jsonl", folder / "validation.jsonl"
  write_rows(train, 1000, args.inputs + 16)
  write_rows(validation, 32, args.inputs + 16)
  return [
    "--gin_file=gin/runs/prompt_finetune.gin",
    "--gin_file=gin/runs/own_data.gin",
    "--gin.VOCABULARY=@vocabularies.english_8k()",
    "--gin.INPUT_TEMPLATE='{text}'",
    "--gin.LABELS=['yes', 'no']",
    f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {args.inputs}, 'targets': 8}}",
    f"--gin.TRAIN_FILE='{train}'",
    f"--gin.VALIDATION_FILE='{validation}'",
  ]


def measure(
  folder: pathlib.Path, seeds: str, data: list[str], args: argparse.Namespace
) -> list[float]:
  """Runs a training command: wall, processor and step seconds, peak MiB."""
  num_steps = args.steps
  flags = (
    f"--gin_file=gin/models/t5_1_1_{args.size}.gin",
    "--gin_file=gin/prompts/random_uniform.gin",
    *data,
    "--gin.INITIAL_CHECKPOINT_PATH=None",
    f"--gin.ACTIVATION_DTYPE='{args.dtype}'",
    f"--gin.t5.T5Config.param_dtype='{args.dtype}'",
    f"--gin.PROMPT_LENGTH={args.prompt}",
    f"--gin.BATCH_SIZE={args.batch_size}",
    f"--gin.MODEL_DIR='{folder}/{seeds}'",
    f"--gin.SEEDS=({seeds},)",
    f"--gin.TRAIN_STEPS={num_steps}",
    f"--gin.EVAL_PERIOD={num_steps}",
    f"--gin.loop.LoopConfig.log_period={num_steps // 2}",
  )
  command = [sys.executable, "-m", "prompt_tuning.train", *flags]
  started = time.monotonic()
  with open(folder / "output", "w+", encoding="utf-8") as output:
    process = subprocess.Popen(
      command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    output.seek(0)
    text = output.read()
  if status:
    sys.exit(text)
  speed = float(re.findall(r"([\d.]+) steps/s", text)[-1])
  processor = usage.ru_utime + usage.ru_stime
  return [seconds, processor, 1 / speed, usage.ru_maxrss / 1024]


def main() -> None:
  """Prints a line a command, and the ratios of their sums."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--size", default="small")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--inputs", type=int, default=64)
  parser.add_argument("--prompt", type=int, default=20)
  parser.add_argument("--batch_size", type=int, default=4)
  parser.add_argument("--trials", type=int, default=3)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--cache_dir", help="train on these rows instead")
  args = parser.parse_args()
  title = (
    "{:<10} wall {:7.1f} s  processor {:7.1f} s  step {:6.3f} s  {:6.0f} MiB"
  )
  alone = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    data = source(folder, args)
    seeds = [str(seed) for seed in range(args.trials)]
    together = measure(folder, ", ".join(seeds), data, args)
    print(title.format("together", *together), flush=True)
    for seed in seeds:
      alone.append(measure(folder, seed, data, args))
      print(title.format(f"seed {seed}", *alone[-1]), flush=True)
  sums = [sum(x) for x in zip(*alone, strict=True)]
  names = ("wall", "processor", "step")
  for name, one, many in zip(names, together, sums, strict=False):
    print(f"{name}: together {one / many:.2f} of {args.trials} commands")


if __name__ == "__main__":
  main()
