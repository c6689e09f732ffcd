# SPDX-License-Identifier: Apache-2.0
r"""Times an ensemble of prompts in one pass against as many evaluations.

    python benchmarks/ensemble.py --tfds_data_dir=tfds
    python benchmarks/ensemble.py --cache_dir=rte --size=xl --dtype=bfloat16 \
      --batch_size=160

RTE's validation split, T5 1.1 with random weights, prompts of 100, the labels
ranked: the times are those of whole commands, from the start of a process to
its end, the two sides in turn, and those of the processor, which depend less on
what else the machine does. On a CPU small batches are fastest.
"""

from collections.abc import Sequence
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import numpy as np
import sizes

from prompt_tuning import cache_manifest, prompt_files

TASK = "taskless_super_glue_rte_v102_examples"

_DATA_DIR = flags.DEFINE_string("tfds_data_dir", None, "Where RTE is.")
_CACHE_DIR = flags.DEFINE_string(
  "cache_dir", None, "Or a tokenised cache of RTE."
)
flags.mark_flags_as_mutual_exclusive(
  ["tfds_data_dir", "cache_dir"], required=True
)
_SIZE = flags.DEFINE_enum("size", "small", list(sizes.SIZES), "Of T5 1.1.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of activations and weights.")
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 5, "Of the ensemble.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Of each side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 5, "Inputs times prompts.")
_NUM_BUCKETS = flags.DEFINE_integer("num_buckets", 4, "Lengths of inputs.")
# Of the commands; `main` changes that of this process.
_ENVIRONMENT = dict(os.environ)


def write_files(folder: pathlib.Path) -> list[str]:
  """Writes a base and random prompts; returns these."""
  config = sizes.of_dtype(_SIZE.value, _DTYPE.value)
  sizes.write_base(f"{folder}/base.safetensors", config)
  rng = np.random.default_rng(0)
  paths = [f"{folder}/{i}.safetensors" for i in range(_NUM_PROMPTS.value)]
  for path in paths:
    prompt = rng.normal(size=(100, config.emb_dim)).astype(np.float32)
    prompt_files.save(path, prompt, {})
  return paths


def seconds(folder: pathlib.Path, prompts: Sequence[str]) -> np.ndarray:
  """Runs one command; returns the seconds that passed, and the processor's."""
  macros = {
    "CHECKPOINT_PATH": f"{folder}/base.safetensors",
    "PROMPT_FILE": list(prompts),
    "EVAL_OUTPUT_DIR": f"{folder}/out",
    "EVAL_MODE": "rank",
    "ACTIVATION_DTYPE": _DTYPE.value,
    "BATCH_SIZE": _BATCH_SIZE.value,
    "NUM_BUCKETS": _NUM_BUCKETS.value,
  }
  if _CACHE_DIR.value:
    source = ["--gin_file=gin/runs/from_cache.gin"]
    manifest = cache_manifest.read(pathlib.Path(_CACHE_DIR.value))
    macros |= {
      "CACHE_DIR": _CACHE_DIR.value,
      "MIXTURE_OR_TASK_NAME": manifest.task,
      "TASK_FEATURE_LENGTHS": manifest.feature_lengths,
    }
  else:
    source = [
      "--gin_file=gin/runs/seqio.gin",
      f"--tfds_data_dir={_DATA_DIR.value}",
      "--gin.VOCABULARY=@vocabularies.english_8k()",  # T5's is a download.
    ]
    macros |= {
      "MIXTURE_OR_TASK_NAME": TASK,
      "MIXTURE_OR_TASK_MODULE": "prompt_tuning.tasks.super_glue",
      "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 8},
    }
  command = [
    *(sys.executable, "-m", "prompt_tuning.eval"),
    f"--gin_file=gin/models/t5_1_1_{_SIZE.value}.gin",
    *source,
    "--gin_file=gin/runs/eval.gin",
    *(f"--gin.{name}={value!r}" for name, value in macros.items()),
    f"--gin.t5.T5Config.param_dtype={_DTYPE.value!r}",
  ]
  start = clock()
  found = subprocess.run(
    command,
    env=_ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  if found.returncode:
    sys.exit(found.stdout)
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
  # This process draws weights: a GPU's memory is for the commands.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
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
