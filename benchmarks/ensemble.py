# SPDX-License-Identifier: Apache-2.0
"""Times an ensemble of prompts in one pass against as many evaluations.

    python benchmarks/ensemble.py --tfds_data_dir=tfds

RTE's validation split, T5 1.1 small with random weights, float32, prompts of
100, the labels ranked: the times are those of whole commands, from the start of
a process to its end, the two sides in turn, and those of the processor, which
depend less on what else the machine does. On a CPU small batches are fastest.
"""

from collections.abc import Sequence
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import numpy as np

from prompt_tuning import pretrained, prompt_files, t5

TASK = "taskless_super_glue_rte_v102_examples"

_DATA_DIR = flags.DEFINE_string(
  "tfds_data_dir", None, "Where RTE is.", required=True
)
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 5, "Of the ensemble.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Of each side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 5, "Inputs times prompts.")
_NUM_BUCKETS = flags.DEFINE_integer("num_buckets", 4, "Lengths of inputs.")


def write_files(folder: pathlib.Path) -> list[str]:
  """Writes a base and prompts of random embeddings; returns these."""
  params = t5.init_params(t5.Transformer(t5.T5Config()), seed=0)
  pretrained.save(f"{folder}/base.safetensors", params, 0, {})
  table = np.asarray(params["token_embedder/embedding"])
  rng = np.random.default_rng(0)
  paths = [f"{folder}/{i}.safetensors" for i in range(_NUM_PROMPTS.value)]
  for path in paths:
    prompt_files.save(path, table[rng.choice(5000, 100, replace=False)], {})
  return paths


def seconds(folder: pathlib.Path, prompts: Sequence[str]) -> np.ndarray:
  """Runs one command; returns the seconds that passed, and the processor's."""
  macros = {
    "CHECKPOINT_PATH": f"{folder}/base.safetensors",
    "PROMPT_FILE": list(prompts),
    "EVAL_OUTPUT_DIR": f"{folder}/out",
    "EVAL_MODE": "rank",
    "MIXTURE_OR_TASK_NAME": TASK,
    "MIXTURE_OR_TASK_MODULE": "prompt_tuning.tasks.super_glue",
    "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 8},
    "ACTIVATION_DTYPE": "float32",
    "BATCH_SIZE": _BATCH_SIZE.value,
    "NUM_BUCKETS": _NUM_BUCKETS.value,
  }
  files = ("models/t5_1_1_small", "runs/seqio", "runs/eval")
  command = [
    *(sys.executable, "-m", "prompt_tuning.eval"),
    *(f"--gin_file=gin/{name}.gin" for name in files),
    *(f"--gin.{name}={value!r}" for name, value in macros.items()),
    "--gin.VOCABULARY=@vocabularies.english_8k()",  # T5's is a download.
    f"--tfds_data_dir={_DATA_DIR.value}",
  ]
  start = clock()
  subprocess.run(command, check=True, capture_output=True)
  return clock() - start


def clock() -> np.ndarray:
  """Reads the time, and the processor's time of the commands so far."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def report(title: str, separate: np.ndarray, ensemble: np.ndarray) -> None:
  """Prints the median of both sides, with minimum and maximum."""
  sides = {"evaluations": separate, "ensemble": ensemble}
  for side, values in sides.items():
    low, high = np.min(values), np.max(values)
    print(
      f"{title:<10} {side:<12} {np.median(values):7.1f} s"
      f"  ({low:.1f} to {high:.1f})"
    )
  ratio = np.median(ensemble) / np.median(separate)
  print(f"{title:<10} ratio {ratio:.3f}", flush=True)


def main(argv: Sequence[str]) -> None:
  """Prints the times of both sides after each repetition."""
  del argv
  separate, ensemble = [], []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    prompts = write_files(folder)
    for _ in range(_REPETITIONS.value):
      separate.append(sum(seconds(folder, [prompt]) for prompt in prompts))
      ensemble.append(seconds(folder, prompts))
      for i, title in enumerate(("wall", "processor")):
        report(title, np.array(separate)[:, i], np.array(ensemble)[:, i])


if __name__ == "__main__":
  app.run(main)
