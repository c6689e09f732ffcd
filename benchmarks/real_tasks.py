# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning against model tuning on six tasks, for each size of the family.

    python -m prompt_tuning.tasks.prepare --rows=ROWS --data_dir=TFDS \
      --only=sst2,mrpc,rte,cb,boolq,wic
    python benchmarks/real_tasks.py --bases=family --output=runs \
      --tfds_data_dir=TFDS --jobs=8 --gpus=0,1

Bases are the `<size>_lm.safetensors` that `pretrain_family.sh` leaves. First
the tasks are cached in `runs/caches`; where the caches are there already,
nothing needs TensorFlow or `--tfds_data_dir`. Then every size, task and method
is an ordinary training command of three seeds: `runs/<size>/<task>/<method>`
is its MODEL_DIR, with its output in `log.txt`. The same command again skips
the runs that have come to their end and continues the others.
`real_tasks_report.py` makes docs/results.md of them.
"""

import argparse
from collections.abc import Sequence
from concurrent import futures
import itertools
import os
import pathlib
import queue
import subprocess
import sys
import time
from typing import NamedTuple

from prompt_tuning.tasks import labels

from prompt_tuning import pretrained

SIZES = {"1m": 1, "4m": 4, "16m": 16, "60m": 60}  # Millions of parameters.
METHODS = ("prompt", "model")
SETTINGS = (
  "--gin.SEEDS=(0, 1, 2)",
  "--gin.BATCH_SIZE=32",
  # Divides 7,700, the step of the bases, from which steps are counted.
  "--gin.EVAL_PERIOD=220",
  "--gin.EVAL_STEPS=4",
  "--gin.EVAL_MODE='rank'",
  "--gin.loop.LoopConfig.checkpoint_keep=1",
  "--gin.loop.LoopConfig.checkpoint_period=1100",
)
NUM_STEPS = 2200


class Task(NamedTuple):
  """A task and the numbers of tokens that its rows are cut to.

  Attributes:
    name: in seqio's registry; its module is told by the beginning.
    num_inputs: the longest inputs, but for RTE (0.5 % of the rows are longer)
      and BoolQ (0.4 % of train, 0.6 % of validation).
    num_targets: the longest label with EOS.
  """

  name: str
  num_inputs: int
  num_targets: int

  @property
  def stem(self) -> str:
    """Its name in `labels` and `scores`."""
    return labels.stem(self.name)

  @property
  def lengths(self) -> str:
    """As TASK_FEATURE_LENGTHS."""
    return f"{{'inputs': {self.num_inputs}, 'targets': {self.num_targets}}}"


# As in the paper, inputs do not name their task.
TASKS = {
  "sst2": Task("taskless_glue_sst2_v002", 96, 2),
  "mrpc": Task("taskless_glue_mrpc_v002", 160, 7),
  "rte": Task("taskless_super_glue_rte_v102", 256, 6),
  "cb": Task("taskless_super_glue_cb_v102", 320, 4),
  "boolq": Task("taskless_super_glue_boolq_v102", 512, 4),
  "wic": Task("taskless_super_glue_wic_v102", 96, 4),
}


class Run(NamedTuple):
  """One training command."""

  size: str
  task: str
  method: str

  @property
  def cost(self) -> int:
    """What it takes, in units of no meaning."""
    return SIZES[self.size] * TASKS[self.task].num_inputs

  @property
  def folder(self) -> str:
    """Its MODEL_DIR, below the folder of all."""
    return f"{self.size}/{self.task}/{self.method}"


def write_cache(
  task: str, output: pathlib.Path, tfds_data_dir: str | None
) -> None:
  """Writes the tokenised task in the vocabulary of the bases."""
  name = TASKS[task].name
  module = "super_glue" if "super_glue" in name else "glue"
  flags = [] if tfds_data_dir is None else [f"--tfds_data_dir={tfds_data_dir}"]
  subprocess.run(
    [
      *(sys.executable, "-m", "prompt_tuning.cache_task"),
      "--gin_file=gin/runs/seqio.gin",
      "--gin_file=gin/runs/cache.gin",
      f"--gin.MIXTURE_OR_TASK_NAME='{name}'",
      f"--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.tasks.{module}'",
      f"--gin.TASK_FEATURE_LENGTHS={TASKS[task].lengths}",
      "--gin.VOCABULARY=@vocabularies.english_8k()",
      f"--gin.CACHE_DIR='{output}/caches/{task}'",
      *flags,
    ],
    check=True,
  )


def command(
  run: Run,
  bases: pathlib.Path,
  output: pathlib.Path,
  *,
  num_steps: int = NUM_STEPS,
  more: Sequence[str] = (),
) -> list[str]:
  """Returns the training command of a run; `more` are flags of gin."""
  task = TASKS[run.task]
  base = bases / f"{run.size}_lm.safetensors"
  last_step = pretrained.open_checkpoint(str(base)).step + num_steps
  files = [f"gin/models/english_{run.size}.gin"]
  flags: list[str] = []
  if run.method == "prompt":
    files.append("gin/prompts/from_class_labels.gin")
    files.append("gin/runs/prompt_finetune_from_cache.gin")
    flags = [
      f"--gin.CLASS_LABELS={list(labels.LABELS[task.stem])}",
      "--gin.PROMPT_LENGTH=20",
      "--gin.optim.adafactor.learning_rate=1.0",
      "--gin.DROPOUT_RATE=0.0",
    ]
  else:
    files.append("gin/runs/model_tune_from_cache.gin")
  if task.num_inputs > 256:  # Half the memory.
    flags.append("--gin.loop.LoopConfig.num_microbatches=2")
  return [
    *(sys.executable, "-m", "prompt_tuning.train"),
    *[f"--gin_file={file}" for file in files],
    *flags,
    f"--gin.MODEL_DIR='{output}/{run.folder}'",
    f"--gin.INITIAL_CHECKPOINT_PATH='{base}'",
    f"--gin.TRAIN_STEPS={last_step}",
    f"--gin.CACHE_DIR='{output}/caches/{run.task}'",
    f"--gin.MIXTURE_OR_TASK_NAME='{task.name}'",
    f"--gin.TASK_FEATURE_LENGTHS={task.lengths}",
    *SETTINGS,
    *more,
  ]


def train(
  run: Run, args: argparse.Namespace, gpus: "queue.SimpleQueue[str]"
) -> bool:
  """Runs the command on the next free GPU; tells whether it went well."""
  folder = args.output / run.folder
  folder.mkdir(parents=True, exist_ok=True)
  gpu = gpus.get()
  environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", f"{args.output}/compiled")
  if gpu:
    environment["CUDA_VISIBLE_DEVICES"] = gpu
  start = time.monotonic()
  with open(folder / "log.txt", "a", encoding="utf-8") as log:
    result = subprocess.run(
      command(
        run, args.bases, args.output, num_steps=args.num_steps, more=args.more
      ),
      env=environment,
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    )
  gpus.put(gpu)
  outcome = "done" if result.returncode == 0 else "FAILED, see its log.txt"
  seconds = time.monotonic() - start
  print(f"{run.folder}: {outcome}, {seconds:.0f} s, GPU {gpu}", flush=True)
  return result.returncode == 0


def parse_arguments() -> argparse.Namespace:
  """Reads the command line; flags of gin are passed on to every run."""
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--bases", type=pathlib.Path, required=True)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--tfds_data_dir")
  parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
  parser.add_argument("--gpus", default="", help="to share them out to")
  parser.add_argument("--num_steps", type=int, default=NUM_STEPS)
  for name, known in (("sizes", SIZES), ("tasks", TASKS), ("methods", METHODS)):
    parser.add_argument(
      f"--{name}", type=lambda text: text.split(","), default=list(known)
    )
  args, args.more = parser.parse_known_args()
  wrong = [flag for flag in args.more if not flag.startswith("--gin")]
  if wrong:
    parser.error(f"{wrong[0]} is not known; see --help")
  return args


def main() -> None:
  """Writes the caches that are missing, then trains what is not done."""
  args = parse_arguments()
  for task in args.tasks:
    if not (args.output / "caches" / task / "manifest.json").exists():
      write_cache(task, args.output, args.tfds_data_dir)
  runs = [
    run
    for run in itertools.starmap(
      Run, itertools.product(args.sizes, args.tasks, args.methods)
    )
    if not (args.output / run.folder / "results.json").exists()
  ]
  runs.sort(key=lambda run: run.cost, reverse=True)
  gpus: queue.SimpleQueue[str] = queue.SimpleQueue()
  for _, gpu in zip(
    range(args.jobs), itertools.cycle(args.gpus.split(",")), strict=False
  ):
    gpus.put(gpu)
  with futures.ThreadPoolExecutor(args.jobs) as pool:
    results = list(pool.map(lambda run: train(run, args, gpus), runs))
  sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
  main()
