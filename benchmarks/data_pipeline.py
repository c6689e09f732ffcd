# SPDX-License-Identifier: Apache-2.0
"""Times the data of a run: start-up, batches a second, and padding.

    python benchmarks/data_pipeline.py --tfds_data_dir=tfds

For each task, of seqio and of a tokenised cache, in a process of its own: the
seconds until its modules are imported, until the task is read, and until the
first batch is there; then examples a second in batches of 32, with and without
buckets. The vocabulary is our own, inputs are cut to 512 tokens.
"""

from collections.abc import Iterator
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

TASKS = {
  "RTE": "taskless_super_glue_rte_v102",
  "BoolQ": "taskless_super_glue_boolq_v102",
  "MultiRC": "taskless_super_glue_multirc_v102",
}
LENGTHS = {"inputs": 512, "targets": 8}
BATCH_SIZE = 32
NUM_BUCKETS = 6

_TFDS_DATA_DIR = flags.DEFINE_string("tfds_data_dir", None, "With the tasks.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Processes each.")
_MEASURE = flags.DEFINE_list("measure", [], "Internal: source, task, cache.")


def load_data(source: str, task: str, cache_dir: str) -> Any:
  """Returns a function that reads the task; imports what it needs."""
  if source == "cache":
    from prompt_tuning.tasks import scores

    from prompt_tuning import cache

    return lambda: cache.from_cache(
      cache_dir=cache_dir,
      mixture_or_task_name=task,
      feature_lengths=LENGTHS,
      scoring_fn=scores.scoring,
    )
  from prompt_tuning.tasks import scores, super_glue, vocabularies

  from prompt_tuning import data

  return lambda: data.from_seqio(
    mixture_or_task_name=task,
    mixture_or_task_module=super_glue.__name__,
    feature_lengths=LENGTHS,
    vocabulary=vocabularies.english_8k(),
    tfds_data_dir=_TFDS_DATA_DIR.value,
    scoring_fn=scores.find_scoring,
  )


def measure(source: str, task: str, cache_dir: str) -> dict[str, float]:
  """Times one source in this process; BENCHMARK_START says when it began."""
  since_start = lambda: time.time() - float(os.environ["BENCHMARK_START"])
  read = load_data(source, task, cache_dir)
  from prompt_tuning import batching, task_data

  figures = {"imported": since_start()}
  data = read()
  figures["read"] = since_start()
  examples, _ = data.train_sources[0]

  def batches(buckets: tuple[int, ...]) -> Iterator[batching.Batch]:
    return batching.train_batches(
      data.train_sources,
      batch_size=BATCH_SIZE,
      feature_lengths=LENGTHS,
      seed=0,
      buckets=buckets,
    )

  next(batches(()))
  figures["first_batch"] = since_start()
  chosen = task_data.with_buckets(data, NUM_BUCKETS).buckets
  num_steps = max(200, examples.inputs.num_rows // BATCH_SIZE)
  for name, buckets in (("plain", ()), ("buckets", tuple(chosen))):
    start = time.perf_counter()
    for _ in itertools.islice(batches(buckets), num_steps):
      pass
    seconds = time.perf_counter() - start
    figures[f"{name}_per_s"] = num_steps * BATCH_SIZE / seconds
    figures[f"{name}_padding"] = batching.padding_share(
      data.train_sources,
      batch_size=BATCH_SIZE,
      feature_lengths=LENGTHS,
      seed=0,
      buckets=buckets,
    )
  # What the source alone yields, tokenised and not yet in batches.
  num_rows = examples.inputs.num_rows
  num_rows += sum(len(x.rows) for x in data.eval_tasks)
  figures["read_per_s"] = num_rows / (figures["read"] - figures["imported"])
  return figures


def measure_apart(source: str, task: str, cache_dir: str) -> dict[str, float]:
  """Runs `measure` in fresh processes; returns the medians."""
  results = []
  for _ in range(_REPETITIONS.value):
    env = os.environ | {"BENCHMARK_START": str(time.time())}
    command = [
      sys.executable,
      __file__,
      f"--measure={source},{task},{cache_dir}",
      f"--tfds_data_dir={_TFDS_DATA_DIR.value}",
    ]
    done = subprocess.run(
      command, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    results.append(json.loads(done.stdout.splitlines()[-1]))
  middle = _REPETITIONS.value // 2
  return {
    name: sorted(result[name] for result in results)[middle]
    for name in results[0]
  }


def report(label: str, source: str, task: str, cache_dir: str) -> None:
  """Prints a line about one task and source."""
  x = measure_apart(source, task, cache_dir)
  print(
    f"{label:8} {source:6} imported {x['imported']:5.1f} s, read"
    f" {x['read']:5.1f} s, first batch {x['first_batch']:5.1f} s; reading"
    f" {x['read_per_s']:8.0f}/s; batches {x['plain_per_s']:7.0f}/s, with"
    f" buckets {x['buckets_per_s']:7.0f}/s; padding {x['plain_padding']:.1%} ->"
    f" {x['buckets_padding']:.1%}; load {os.getloadavg()[0]:.1f}",
    flush=True,
  )


def main(argv: list[str]) -> None:
  """Prints a line for each task and source."""
  del argv
  if _MEASURE.value:
    print(json.dumps(measure(*_MEASURE.value)))
    return
  from prompt_tuning import cache

  with tempfile.TemporaryDirectory() as folder:
    for label, task in TASKS.items():
      cache_dir = str(pathlib.Path(folder) / label)
      print(cache.write(cache_dir, load_data("seqio", task, "")()), flush=True)
      for source in ("seqio", "cache"):
        report(label, source, task, cache_dir)


if __name__ == "__main__":
  app.run(main)
