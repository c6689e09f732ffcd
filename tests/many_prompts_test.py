# SPDX-License-Identifier: Apache-2.0
"""Runs of several trials through the real command, and what they leave."""

import json
import os
import shutil
import signal

import numpy as np
from prompt_tuning.tasks import demo, registration, scores
import pytest
import seqio
import tensorflow as tf

import gin
from prompt_tuning import configuration, loop, prompt_files, train

PROMPT = "encoder.prompt.prompt.prompt"
TINY = (
  "TRAIN_STEPS = 6",
  "loop.LoopConfig.num_microbatches = 1",
  "loop.LoopConfig.eval_at_start = False",
)
THREE = "SEEDS = (0, 1, 2)"


def short_task(name, **targets):
  """Registers the demo's task with 16 rows for validation, other targets."""

  def dataset(split, shuffle_files, seed=None):
    del shuffle_files, seed
    rows = list(demo.sentences(split))
    if split == "validation":
      rows = rows[:16]
    inputs, labels = zip(*rows, strict=True)
    labels = [targets.get(label, label) for label in labels]
    return tf.data.Dataset.from_tensor_slices(
      {"inputs": list(inputs), "targets": labels}
    )

  registration.add(
    name,
    seqio.FunctionDataSource(dataset, splits=("train", "validation")),
    [],
    scoring=scores.SCORINGS["demo_sentiment"],
  )


@pytest.fixture(scope="module", autouse=True)
def _tasks():
  short_task("short_a")
  short_task("short_b", positive="yes", negative="no")
  with pytest.MonkeyPatch.context() as patch:
    for name in ("short_a", "short_b"):
      patch.setitem(scores.SCORINGS, name, scores.SCORINGS["demo_sentiment"])
    yield
  for name in ("short_a", "short_b"):
    seqio.TaskRegistry.remove(name)


def train_once(model_dir, *bindings):
  """Trains on the task short_a."""
  gin.clear_config()
  task = "MIXTURE_OR_TASK_NAME = 'short_a'"
  bindings = (*TINY, task, f"MODEL_DIR = '{model_dir}'", *bindings)
  flags = configuration.Flags(("tests/tiny_run.gin",), bindings, ())
  configuration.load(flags)
  gin.get_configurable(train.train)()


@pytest.fixture
def run(capsys):
  """Trains; returns what was printed."""

  def call(model_dir, *bindings):
    train_once(model_dir, *bindings)
    return capsys.readouterr().out

  return call


@pytest.fixture(scope="module")
def three(_tasks, tmp_path_factory):
  """The folder of a run of three seeds, which no test changes."""
  folder = tmp_path_factory.mktemp("three")
  train_once(folder, THREE)
  return folder


def prompt(folder, step):
  path = folder / "numpy_checkpoints" / f"checkpoint_{step}" / PROMPT
  return np.load(path)


def lines(folder, split=None):
  found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return [x for x in found if split in (None, x["split"])]


def assert_same_run(trial, alone):
  """The folder of a trial is that of a run of its own.

  XLA may sum in another order over three batches than over one: prompts, whose
  values are about 3, differ by up to 3e-6 after a dozen steps of Adafactor.
  """
  for step in (4, 6):
    np.testing.assert_allclose(
      prompt(trial, step), prompt(alone, step), atol=2e-5, rtol=0
    )
  for found, expected in zip(lines(trial), lines(alone), strict=True):
    assert list(found) == list(expected)
    for name, value in expected.items():
      wanted = value if name == "split" else pytest.approx(value, rel=1e-4)
      assert found[name] == wanted, name
  (best,) = (x.name for x in (trial / "best").glob("checkpoint_*"))
  assert (alone / "best" / best).exists()
  found, expected = (
    prompt_files.load(f"{folder}/best/prompt.safetensors")
    for folder in (trial, alone)
  )
  assert found.metadata == expected.metadata
  np.testing.assert_allclose(found.prompt, expected.prompt, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_three_seeds_at_once_equal_three_runs(run, three, tmp_path):
  for seed in range(3):
    run(tmp_path / f"{seed}", f"SEEDS = {seed}")
    assert_same_run(three / "trials" / f"seed_{seed}", tmp_path / f"{seed}")
  first, second = (prompt(tmp_path / x, 6) for x in "01")
  assert np.abs(first - second).max() > 0.1
  last = lines(three)[-1]
  losses = [lines(tmp_path / x, "eval")[-1]["short_a/loss"] for x in "012"]
  assert last["mean/short_a/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
  assert last["sd/short_a/loss"] == pytest.approx(
    np.std(losses, ddof=1), rel=1e-2
  )


@pytest.mark.slow
def test_several_trials_leave_one_checkpoint_and_a_folder_each(three):
  assert (three / "checkpoint_6").exists()
  assert not list(three.glob("trials/*/checkpoint_*"))
  assert len(list(three.glob("trials/*/tensorboard/events*"))) == 3
  assert len(list(three.glob("tensorboard/events*"))) == 1
  assert not (three / "best").exists()
  assert [x["step"] for x in lines(three)] == [4, 6]
  written = json.loads((three / "results.json").read_text())
  assert list(written["trials"]) == ["seed_0", "seed_1", "seed_2"]
  for name, result in written["trials"].items():
    evals = lines(three / "trials" / name, "eval")
    assert result["metrics"]["score"] == max(x["score"] for x in evals)
  assert written["groups"][""]["score"]["num_trials"] == 3


@pytest.mark.slow
def test_learning_rates_and_initialisers_are_trials_too(run, three, tmp_path):
  run(
    tmp_path / "many",
    "LEARNING_RATES = (0.3, 1.5)",
    "INITIAL_PROMPTS = {'labels': @prompt_init.class_labels,"
    " 'random': @prompt_init.random_uniform}",
  )
  many = tmp_path / "many" / "trials"
  assert sorted(x.name for x in many.iterdir()) == [
    f"{x}-lr_{y}" for x in ("labels", "random") for y in (0.3, 1.5)
  ]
  # The run itself, but for the number of prompts beside it.
  assert_same_run(many / "labels-lr_0.3", three / "trials" / "seed_0")
  run(
    tmp_path / "alone",
    "optim.adafactor.learning_rate = 1.5",
    "train.train.initial_prompt = @prompt_init.random_uniform",
  )
  assert_same_run(many / "random-lr_1.5", tmp_path / "alone")


@pytest.mark.slow
def test_each_task_has_its_own_prompt(run, three, tmp_path):
  run(
    tmp_path / "two",
    "MIXTURE_OR_TASK_NAME = ['short_a', 'short_b']",
    "INITIAL_PROMPTS = {'short_a': @prompt_init.class_labels,"
    " 'short_b': @yes/prompt_init.class_labels}",
    "yes/prompt_init.class_labels.labels = ['yes', 'no']",
  )
  run(
    tmp_path / "b",
    "MIXTURE_OR_TASK_NAME = 'short_b'",
    "CLASS_LABELS = ['yes', 'no']",
  )
  two = tmp_path / "two" / "trials"
  assert_same_run(two / "short_a", three / "trials" / "seed_0")
  assert_same_run(two / "short_b", tmp_path / "b")


@pytest.mark.slow
def test_a_trial_that_diverges_is_stopped_alone(run, three, tmp_path):
  """1e39 is infinite in float32, and so is the prompt behind step 1."""
  rates = "LEARNING_RATES = (0.3, 1e39)"
  output = run(tmp_path, rates, "TRAIN_STEPS = 5")
  advice = "lr_1e+39 is stopped: the size of what is trained is inf at step 1"
  assert output.count(advice) == 1
  assert "lr_1e+39  stopped at step 1, left out" in output
  stopped = tmp_path / "trials" / "lr_1e+39"
  assert not lines(stopped)
  saved = [path.name for path in stopped.glob("numpy_checkpoints/*")]
  assert saved == ["checkpoint_0"]  # As it was drawn.
  written = json.loads((tmp_path / "results.json").read_text())
  assert written["trials"]["lr_1e+39"]["stopped_at"] == 1
  assert list(written["groups"]) == ["lr_0.3"]
  # Who has stopped is remembered, and said no more. (At step 4 there are steps
  # that no line of the log has yet.)
  shutil.rmtree(tmp_path / "checkpoint_5")
  output = run(tmp_path, rates)
  assert "from step 4" in output
  assert "is stopped" not in output
  assert "lr_1e+39  stopped at step 1, left out" in output
  np.testing.assert_allclose(
    prompt(tmp_path / "trials" / "lr_0.3", 6),
    prompt(three / "trials" / "seed_0", 6),
    atol=2e-5,
    rtol=0,
  )


@pytest.mark.slow
def test_the_run_ends_when_all_trials_have_diverged(run, tmp_path):
  with pytest.raises(FloatingPointError, match="is trained is inf at step 1"):
    run(tmp_path, "SEEDS = (0, 1)", "optim.adafactor.learning_rate = 1e39")


@pytest.mark.slow
def test_a_restarted_run_of_several_equals_an_uninterrupted_one(
  run, three, tmp_path, monkeypatch
):
  real_fit = loop.fit

  def interrupted_fit(state, frozen, batches, **kwargs):
    def interrupting():
      for i, batch in enumerate(batches):
        if i == 2:
          os.kill(os.getpid(), signal.SIGTERM)
        yield batch

    return real_fit(state, frozen, interrupting(), **kwargs)

  monkeypatch.setattr(loop, "fit", interrupted_fit)
  output = run(tmp_path, THREE)
  assert "stopped by SIGTERM; saving step 3" in output
  assert not (tmp_path / "results.json").exists()
  monkeypatch.setattr(loop, "fit", real_fit)
  assert "from step 3" in run(tmp_path, THREE)
  for name in (
    "metrics.jsonl",
    "results.json",
    *(f"trials/seed_{i}/metrics.jsonl" for i in range(3)),
    *(
      f"trials/seed_{i}/numpy_checkpoints/checkpoint_6/{PROMPT}"
      for i in range(3)
    ),
  ):
    assert (three / name).read_bytes() == (tmp_path / name).read_bytes(), name
  with pytest.raises(ValueError, match=r"with trials=\['seed_0', 'seed_1', 's"):
    run(tmp_path, "SEEDS = (0, 1)")
  with pytest.raises(ValueError, match=r"RANDOM_SEED=\[0, 1, 2\], now it is 0"):
    run(tmp_path)


@pytest.mark.parametrize(
  ("bindings", "message"),
  [
    (
      (THREE, "loop.LoopConfig.num_buckets = 2"),
      "num_buckets=2 needs one trial, found 3",
    ),
    (
      (THREE, "PROMPT_REGEX = ['.*relpos_bias.*']"),
      "3 trials need prompts that are trained: let the partition match /enc",
    ),
  ],
  ids=["buckets", "frozen prompts"],
)
def test_trials_that_cannot_be_trained_at_once_are_refused(
  run, tmp_path, bindings, message
):
  with pytest.raises(ValueError, match=message):
    run(tmp_path, *bindings)


def test_own_files_are_one_task(run, tmp_path):
  gin.clear_config()
  flags = configuration.Flags(
    ("tests/tiny_run.gin", "gin/runs/own_data.gin"),
    (
      *TINY,
      f"MODEL_DIR = '{tmp_path}'",
      "MIXTURE_OR_TASK_NAME = ['a', 'b']",
      "TRAIN_FILE = 'a.csv'",
      "VALIDATION_FILE = 'b.csv'",
      "INPUT_TEMPLATE = '{a}'",
      "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 8}",
    ),
    (),
  )
  configuration.load(flags)
  with pytest.raises(ValueError, match=r"\['a', 'b'\] must be one name: LOAD_"):
    gin.get_configurable(train.train)()


@pytest.mark.slow
def test_all_parameters_can_be_trained_several_times_at_once(run, tmp_path):
  bindings = (
    "PROMPT_REGEX = ['.*']",
    "optim.adafactor.learning_rate = 1e-3",
    "optim.adafactor.multiply_by_parameter_scale = True",
    "optim.adafactor.weight_decay_rate = None",
  )
  run(tmp_path / "two", "SEEDS = (0, 1)", *bindings)
  run(tmp_path / "alone", "SEEDS = 1", *bindings)
  np.testing.assert_allclose(
    prompt(tmp_path / "two" / "trials" / "seed_1", 6),
    prompt(tmp_path / "alone", 6),
    atol=2e-5,
    rtol=0,
  )
