# SPDX-License-Identifier: Apache-2.0
"""Times our training loop against T5X's, which runs our network.

    python benchmarks/against_t5x.py

T5 1.1 small with random weights, float32, dropout 0.1, prompt 20, batch 4, 64
input and 8 target tokens, our own small task, one base in T5X's format for all:
`python -m prompt_tuning.train`, and `python -m t5x.train` with gin/t5x, once
with our gather of embeddings and once with the one-hot product that T5X's own
network has. Processes take turns, and none evaluates in between. What is
reported is what the programs themselves tell TensorBoard after every step: its
speed, and when the first one was done. T5X must be installed: see docs/t5x.md.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["JAX_PLATFORMS"] = "cpu"

import tensorflow as tf

from prompt_tuning import pretrained, t5
from prompt_tuning.pretrained import conversion

ROOT = pathlib.Path(__file__).parents[1]
BASE_STEP = 1000
WARM_UP = 3  # Steps.
MACROS = {
  "MIXTURE_OR_TASK_NAME": "'demo_sentiment'",
  "MIXTURE_OR_TASK_MODULE": "'prompt_tuning.tasks.demo'",
  "TASK_FEATURE_LENGTHS": "{'inputs': 64, 'targets': 8}",
  "VOCABULARY": "@vocabularies.english_8k()",
  "CLASS_LABELS": "['positive', 'negative']",
  "ACTIVATION_DTYPE": "'float32'",
  "DROPOUT_RATE": "0.1",
  "PROMPT_LENGTH": "20",
  "BATCH_SIZE": "4",
  "EVAL_PERIOD": "100_000",
  "EVAL_STEPS": "1",
}


class Program(NamedTuple):
  """A command line, and where it writes its events."""

  module: str
  gin_files: tuple[str, ...]
  bindings: tuple[str, ...]
  events: str


T5X = Program(
  "t5x.train",
  ("gin/t5x/prompt_finetune.gin", "gin/t5x/vocabulary.gin"),
  ("train.stats_period=1",),
  "train",
)
PROGRAMS = {
  "ours": Program(
    "prompt_tuning.train",
    ("gin/prompts/from_class_labels.gin", "gin/runs/prompt_finetune.gin"),
    ("loop.LoopConfig.log_period=1",),
    "tensorboard",
  ),
  "T5X": T5X,
  "T5X, one-hot": T5X._replace(
    bindings=(*T5X.bindings, "t5.T5Config.one_hot_embedding=True")
  ),
}


class Event(NamedTuple):
  """One scalar of TensorBoard."""

  tag: str
  step: int
  wall_time: float  # Seconds of the clock.
  value: float


def write_base(folder: str) -> str:
  """Writes random weights in T5X's format; returns their path."""
  params = t5.init_params(t5.Transformer(t5.T5Config()), seed=0)
  source, path = (
    f"{folder}/base.safetensors",
    f"{folder}/checkpoint_{BASE_STEP}",
  )
  pretrained.save(source, params, BASE_STEP, {})
  conversion.convert(source, path, output="t5x", dtype=None, dry_run=False)
  return path


def read_events(folder: pathlib.Path) -> Iterator[Event]:
  """Yields all scalars of the event files in a folder."""
  for path in sorted(folder.glob("*tfevents*")):
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        number = value.simple_value
        if value.HasField("tensor"):
          number = tf.make_ndarray(value.tensor)
        if not value.HasField("tensor") or number.dtype.kind == "f":
          yield Event(value.tag, event.step, event.wall_time, float(number))


def command(program: Program, macros: Mapping[str, str]) -> list[str]:
  """Returns the command line of a program that trains T5 1.1 small."""
  files = ("gin/models/t5_1_1_small.gin", *program.gin_files)
  bindings = (*(f"{name}={x}" for name, x in macros.items()), *program.bindings)
  return [
    *(sys.executable, "-m", program.module),
    *(f"--gin_file={name}" for name in files),
    *(f"--gin.{binding}" for binding in bindings),
  ]


def speeds_behind(events: Sequence[Event], step: int) -> list[float]:
  """Returns the steps per second of each step behind one."""
  name = "timing/steps_per_second"
  return [x.value for x in events if x.tag.endswith(name) and x.step > step]


def measure(program: Program, base: str, num_steps: int) -> dict[str, float]:
  """Trains in a process of its own.

  Returns:
    The seconds of a step, and to the end of the first one.
  """
  with tempfile.TemporaryDirectory() as folder:
    macros = MACROS | {
      "MODEL_DIR": repr(folder),
      "INITIAL_CHECKPOINT_PATH": repr(base),
      "TRAIN_STEPS": str(BASE_STEP + num_steps),
    }
    started = time.time()
    subprocess.run(
      command(program, macros), cwd=ROOT, check=True, capture_output=True
    )
    events = list(read_events(pathlib.Path(folder, program.events)))
  first = min(x.wall_time for x in events if x.step == BASE_STEP + 1)
  speeds = speeds_behind(events, BASE_STEP + WARM_UP)
  return {
    "step, median [s]": 1 / statistics.median(speeds),
    "step, fastest [s]": 1 / max(speeds),
    "start to end of first step [s]": first - started,
  }


def main() -> None:
  """Prints median and range of each figure, and the ratios to ours."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repetitions", type=int, default=3)
  parser.add_argument("--steps", type=int, default=30)
  args = parser.parse_args()
  results: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
  with tempfile.TemporaryDirectory() as folder:
    base = write_base(folder)
    for _ in range(args.repetitions):
      for name, program in PROGRAMS.items():
        results[name].append(measure(program, base, args.steps))
        load = os.getloadavg()[0]
        print(f"{name}: {results[name][-1]}, load {load:.1f}", flush=True)
  for figure in results["ours"][0]:
    ours = statistics.median(x[figure] for x in results["ours"])
    for name, found in results.items():
      values = sorted(x[figure] for x in found)
      middle = statistics.median(values)
      print(
        f"{figure:<32}{name:<14} median {middle:7.3f}, {values[0]:7.3f} to"
        f" {values[-1]:7.3f}; ours / this {ours / middle:5.2f}"
      )


if __name__ == "__main__":
  main()
