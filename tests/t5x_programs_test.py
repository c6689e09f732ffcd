# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import gin
from prompt_tuning import pretrained, prompt_files, t5
from prompt_tuning.pretrained import conversion
from prompt_tuning.pretrained import leaves as leaves_lib

pytest.importorskip("t5x.train", reason="T5X is not installed: see docs/t5x.md")
models = importlib.import_module("t5x.models")
partitioning = importlib.import_module("t5x.partitioning")
utils = importlib.import_module("t5x.utils")
seqio = importlib.import_module("seqio")
t5x_adapter = importlib.import_module("prompt_tuning.t5x_adapter")

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = prompt_files.NAME
TINY = {
  "gin_file": ["gin/models/tiny.gin"],
  "MIXTURE_OR_TASK_NAME": "'demo_sentiment'",
  "MIXTURE_OR_TASK_MODULE": "'prompt_tuning.tasks.demo'",
  "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 4}",
  "VOCABULARY": "@vocabularies.english_8k()",
  "PROMPT_LENGTH": "20",
  "ACTIVATION_DTYPE": "'float32'",
}


def parse(monkeypatch, program, files, **macros):
  """Parses gin files as a program of T5X does."""
  main = importlib.import_module(f"t5x.{program}")
  monkeypatch.setitem(sys.modules, "__main__", main)
  for folder in (ROOT, pathlib.Path(main.__file__).parents[1]):
    gin.add_config_file_search_path(str(folder))
  bindings = [f"{name} = {value}" for name, value in macros.items()]
  gin.parse_config_files_and_bindings(files, bindings)


@pytest.mark.parametrize(
  ("program", "more", "macros", "kind"),
  [
    ("train", ["prompt_finetune"], {"CLASS_LABELS": "['a']"}, "OptaxWrapper"),
    ("train", ["prompt_finetune", "adafactor"], {}, "MultiOptimizer"),
    ("eval", ["eval"], {"PROMPT_FILE": "'p'"}, "NoneType"),
    ("infer", ["infer"], {"PROMPT_FILE": "'p'"}, "NoneType"),
  ],
  ids=["train", "adafactor", "eval", "infer"],
)
def test_gin_files_build_under_t5x(monkeypatch, program, more, macros, kind):
  required = {
    "train": ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "TRAIN_STEPS"),
    "eval": ("CHECKPOINT_PATH", "EVAL_OUTPUT_DIR"),
    "infer": ("CHECKPOINT_PATH", "INFER_OUTPUT_DIR"),
  }[program]
  tiny = {k: x for k, x in TINY.items() if k != "gin_file"}
  files = [*TINY["gin_file"], *(f"gin/t5x/{x}.gin" for x in more)]
  files.append("gin/t5x/vocabulary.gin")
  macros = dict.fromkeys(required, "'x'") | tiny | macros
  parse(monkeypatch, program, files, **macros)
  model = gin.get_configurable(models.EncoderDecoderModel)()
  assert type(model.optimizer_def).__name__ == kind
  assert model.module.prompt.length == 20
  assert model.module.config.emb_dim == 64
  rules = gin.get_configurable(
    partitioning.PjitPartitioner
  )()._logical_axis_rules
  assert ("prompt_embed", None) in rules
  restore = gin.get_configurable(utils.RestoreCheckpointConfig)()
  assert restore.path == "x"
  assert restore.fallback_to_scratch
  assert len(restore.state_transformation_fns) == 1
  scope = "infer_eval" if program == "train" else None
  with gin.config_scope(scope):
    dataset = gin.get_configurable(utils.DatasetConfig)()
  assert dataset.mixture_or_task_name == "demo_sentiment"
  assert (dataset.split, dataset.pack) == ("validation", False)


def run(program, files, **macros):
  flags = [f"--gin_file={name}" for name in [*TINY["gin_file"], *files]]
  macros = TINY | macros
  flags += [f"--gin.{name}={x}" for name, x in macros.items() if name.isupper()]
  command = [sys.executable, "-m", f"t5x.{program}", *flags]
  result = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_the_programs_of_t5x_train_evaluate_and_predict(tmp_path):
  config = t5.T5Config(8192, 64, 4, 2, 2, 16, 128)
  params = t5.init_params(t5.Transformer(config), seed=0)
  pretrained.save(str(tmp_path / "base.safetensors"), params, 1000, {})
  base = str(tmp_path / "base/checkpoint_1000")
  conversion.convert(
    str(tmp_path / "base.safetensors"),
    base,
    output="t5x",
    dtype=None,
    dry_run=False,
  )
  vocabulary = "gin/t5x/vocabulary.gin"
  arguments = {
    "MODEL_DIR": repr(str(tmp_path / "out")),
    "INITIAL_CHECKPOINT_PATH": repr(base),
    "CLASS_LABELS": "['positive', 'negative']",
    "BATCH_SIZE": "32",
    "EVAL_PERIOD": "10",
    "EVAL_STEPS": "1",
  }
  files = ["gin/t5x/prompt_finetune.gin", vocabulary]
  run("train", files, TRAIN_STEPS="1010", **arguments)
  run("train", files, TRAIN_STEPS="1020", **arguments)  # Continues.
  arrays = tmp_path / "out/numpy_checkpoints"
  steps = ("checkpoint_1000", "checkpoint_1010", "checkpoint_1020")
  assert sorted(x.name for x in arrays.iterdir()) == list(steps)
  after = {
    name: leaves_lib.read(x, leaves_lib.whole(x.shape), x.dtype)
    for name, x in pretrained.open_checkpoint(
      str(tmp_path / "out/checkpoint_1020")
    ).leaves.items()
  }
  before = np.load(arrays / steps[0] / "encoder.prompt.prompt.prompt")
  assert np.abs(after.pop(PROMPT) - before).max() > 1
  for name, value in after.items():
    np.testing.assert_array_equal(value, params[name], err_msg=name)

  prompt = {
    "CHECKPOINT_PATH": repr(base),
    "PROMPT_FILE": repr(
      str(arrays / steps[2] / "encoder.prompt.prompt.prompt")
    ),
  }
  out = tmp_path / "eval"
  files = ["gin/t5x/eval.gin", vocabulary]
  run("eval", files, EVAL_OUTPUT_DIR=repr(str(out)), **prompt)
  trained = tmp_path / "out/inference_eval/demo_sentiment-001020.jsonl"
  evaluated = out / "inference_eval/demo_sentiment-001000.jsonl"
  assert evaluated.read_text() == trained.read_text()
  files = ["gin/t5x/infer.gin", vocabulary]
  run("infer", files, INFER_OUTPUT_DIR=repr(str(tmp_path / "infer")), **prompt)
  (inferred,) = (tmp_path / "infer").glob("*.jsonl-00000-of-00001")
  predicted = [
    json.loads(line)["prediction"] for line in inferred.read_text().splitlines()
  ]
  outputs = [
    json.loads(line)["output"] for line in trained.read_text().splitlines()
  ]
  assert predicted == outputs


@pytest.fixture
def _two_tasks():
  """Registers two tasks and a mixture of them for the length of a test."""
  words = seqio.ByteVocabulary()
  for name in ("adapter_one", "adapter_two"):
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
        lambda split, shuffle_files: None, ["train"]
      ),
      output_features={"targets": seqio.Feature(words)},
      preprocessors=[],
    )
  rates = [("adapter_one", 1.0), ("adapter_two", 3.0)]
  seqio.MixtureRegistry.add("adapter_both", rates)
  yield
  seqio.MixtureRegistry.remove("adapter_both")
  seqio.TaskRegistry.remove("adapter_one")
  seqio.TaskRegistry.remove("adapter_two")


@pytest.mark.usefixtures("_two_tasks")
def test_a_mixture_gets_another_vocabulary():
  other = seqio.PassThroughVocabulary(11)
  name = t5x_adapter.with_vocabulary(
    "adapter_both", module=None, vocabulary=other
  )
  mixture = seqio.get_mixture_or_task(name)
  assert mixture.name == name == "adapter_both"
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {"adapter_one": 1.0, "adapter_two": 3.0}
  for task in mixture.tasks:
    assert task.output_features["targets"].vocabulary is other
    assert seqio.TaskRegistry.get(task.name) is task
