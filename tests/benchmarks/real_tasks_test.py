# SPDX-License-Identifier: Apache-2.0
"""The commands of the comparison on real tasks."""

import pathlib
import sys

import numpy as np
from prompt_tuning.tasks import labels
import pytest
from safetensors import numpy as safetensors_numpy

import gin
from prompt_tuning import configuration, optim

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def real_tasks():
  import real_tasks

  return real_tasks


@pytest.fixture
def bases(tmp_path):
  """A folder of bases with a step each."""
  for size, step in (("1m", 0), ("4m", 0), ("60m", 7700)):
    safetensors_numpy.save_file(
      {"encoder/x": np.zeros(1, np.float32)},
      tmp_path / f"{size}_lm.safetensors",
      {"step": str(step)},
    )
  return tmp_path


def parse(real_tasks, bases, run, **more):
  argv = real_tasks.command(run, bases, pathlib.Path("b"), **more)
  assert argv[1:3] == ["-m", "prompt_tuning.train"]
  configuration.load(configuration.parse_flags("train", argv[3:]))


@pytest.mark.parametrize("method", ["prompt", "model"])
@pytest.mark.parametrize("size", ["1m", "60m"])
@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte", "cb", "boolq", "wic"])
def test_every_command_parses(real_tasks, bases, size, task, method):
  parse(real_tasks, bases, real_tasks.Run(size, task, method))
  assert gin.query_parameter("%MODEL_DIR") == f"b/{size}/{task}/{method}"
  assert gin.query_parameter("%CACHE_DIR") == f"b/caches/{task}"
  base = gin.query_parameter("%INITIAL_CHECKPOINT_PATH")
  assert base == f"{bases}/{size}_lm.safetensors"
  assert gin.query_parameter("%SEEDS") == (0, 1, 2)


@pytest.mark.parametrize(
  ("task", "module", "tfds_data_dir"),
  [("sst2", "glue", "tfds"), ("boolq", "super_glue", None)],
)
def test_the_cache_is_written_that_training_reads(
  real_tasks, monkeypatch, task, module, tfds_data_dir
):
  calls = []
  monkeypatch.setattr(
    real_tasks.subprocess,
    "run",
    lambda argv, **options: calls.append((argv, options)),
  )
  real_tasks.write_cache(task, pathlib.Path("b"), tfds_data_dir)
  ((argv, options),) = calls
  assert options == {"check": True}
  assert argv[:3] == [sys.executable, "-m", "prompt_tuning.cache_task"]
  configuration.load(configuration.parse_flags("cache_task", argv[3:]))
  chosen = real_tasks.TASKS[task]
  expected = {
    "%CACHE_DIR": f"b/caches/{task}",
    "%MIXTURE_OR_TASK_NAME": chosen.name,
    "%MIXTURE_OR_TASK_MODULE": f"prompt_tuning.tasks.{module}",
    "%TASK_FEATURE_LENGTHS": {
      "inputs": chosen.num_inputs,
      "targets": chosen.num_targets,
    },
  }
  assert {name: gin.query_parameter(name) for name in expected} == expected
  assert "--gin.VOCABULARY=@vocabularies.english_8k()" in argv
  found = [flag for flag in argv if flag.startswith("--tfds_data_dir")]
  assert found == (
    [f"--tfds_data_dir={tfds_data_dir}"] if tfds_data_dir else []
  )


@pytest.mark.parametrize(
  ("method", "trained"),
  [("prompt", {"encoder/prompt/prompt/prompt"}), ("model", {"a", "b"})],
)
def test_a_method_trains_what_it_says(real_tasks, bases, method, trained):
  parse(real_tasks, bases, real_tasks.Run("4m", "cb", method))
  partition = gin.get_configurable(optim.Partition)()
  names = ["a", "b"]
  if method == "prompt":
    names.append("encoder/prompt/prompt/prompt")
  assert set(partition.labels(names)) == trained


def test_later_flags_take_the_place_of_the_settings(real_tasks, bases):
  run = real_tasks.Run("4m", "cb", "model")
  parse(real_tasks, bases, run, more=["--gin.BATCH_SIZE=7"])
  assert gin.query_parameter("%BATCH_SIZE") == 7


@pytest.mark.parametrize(("size", "last"), [("1m", 30), ("60m", 7730)])
def test_steps_count_from_the_step_of_the_base(real_tasks, bases, size, last):
  parse(real_tasks, bases, real_tasks.Run(size, "cb", "model"), num_steps=30)
  assert gin.query_parameter("%TRAIN_STEPS") == last


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte", "cb", "boolq", "wic"])
def test_the_targets_hold_the_longest_label(real_tasks, task):
  from prompt_tuning import vocabulary

  model = (ROOT / "tasks/english_8k.model").read_bytes()
  words = vocabulary.from_sentencepiece(model)
  texts = labels.LABELS[real_tasks.TASKS[task].stem]
  longest = max(len(words.encode(text)) + 1 for text in texts)
  assert real_tasks.TASKS[task].num_targets == longest


def test_a_longer_run_on_a_larger_base_costs_more(real_tasks):
  runs = [
    real_tasks.Run("1m", "boolq", "prompt"),
    real_tasks.Run("60m", "sst2", "prompt"),
    real_tasks.Run("60m", "boolq", "prompt"),
  ]
  assert sorted(runs, key=lambda run: run.cost) == runs
