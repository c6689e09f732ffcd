# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

import gin
from prompt_tuning import (
  checkpoints,
  configuration,
  loop,
  losses,
  optim,
  pretrained,
  prompt_files,
  prompt_init,
  prompts,
  t5,
  task_data,
  train,
  vocabulary,
)

PROMPT = "encoder.prompt.prompt.prompt"
SHARED = pathlib.Path(__file__).parents[2] / "shared"
TINY_RUN = "tests/tiny_run.gin"


def train_once(model_dir, *bindings):
  """Trains on the demo's task."""
  gin.clear_config()
  bindings = (f"MODEL_DIR = '{model_dir}'", *bindings)
  configuration.load(configuration.Flags((TINY_RUN,), bindings, ()))
  gin.get_configurable(train.train)()


@pytest.fixture
def run(capsys):
  """Trains; returns what was printed."""

  def call(model_dir, *bindings):
    train_once(model_dir, *bindings)
    return capsys.readouterr().out

  return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The folder of a finished run, not to be changed."""
  folder = tmp_path_factory.mktemp("finished") / "run"
  train_once(folder)
  return folder


@pytest.fixture
def copied(finished, tmp_path):
  """A copy of it."""
  return shutil.copytree(finished, tmp_path / "copied")


def prompt(model_dir, step):
  path = model_dir / "numpy_checkpoints" / f"checkpoint_{step}" / PROMPT
  return np.load(path)


def test_a_run_leaves_what_the_original_leaves(run, tmp_path):
  output = run(tmp_path)
  assert "trainable              48" in output
  assert "encoder/prompt/prompt/prompt (3, 16)" in output
  assert "frozen parameters unchanged: fingerprint" in output
  assert "demo_sentiment/accuracy        before" in output
  assert prompt(tmp_path, 12).shape == (3, 16)
  config = (tmp_path / "operative_config.gin").read_text()
  assert "TRAIN_STEPS = 12" in config
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  steps = [(line["step"], line["split"]) for line in lines]
  train_steps = [(5, "train"), (10, "train"), (12, "train")]
  eval_steps = [(0, "eval"), (4, "eval"), (8, "eval"), (12, "eval")]
  assert sorted(steps) == sorted(train_steps + eval_steps)
  by_step = {line["step"]: line for line in lines if line["split"] == "train"}
  assert by_step[12]["loss"] < by_step[5]["loss"]
  assert by_step[12]["learning_rate"] == pytest.approx(0.3)
  assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_stacked_layers_train_the_same_prompt(run, tmp_path):
  plain, stacked = tmp_path / "plain", tmp_path / "stacked"
  run(plain, "t5.T5Config.dropout_rate = 0.0")
  output = run(
    stacked,
    "t5.T5Config.dropout_rate = 0.0",
    "loop.LoopConfig.stack_layers = True",
    "REMAT = 'minimal'",
  )
  assert "frozen parameters unchanged: fingerprint" in output
  one, other = prompt(plain, 12), prompt(stacked, 12)
  np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
  for name in ("demo_sentiment/loss", "demo_sentiment/accuracy"):
    values = [
      [
        line[name]
        for line in map(json.loads, (x / "metrics.jsonl").open())
        if line["split"] == "eval"
      ]
      for x in (plain, stacked)
    ]
    np.testing.assert_allclose(*values, rtol=1e-3)


def test_the_best_prompt_is_kept_by_the_default_metric(run, tmp_path):
  run(
    *(tmp_path, "EVAL_MODE = 'rank'", "RANDOM_SEED = 2"),
    "optim.adafactor.learning_rate = 3.0",
  )
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  scores = {
    line["step"]: line["score"]
    for line in map(json.loads, lines)
    if line["split"] == "eval"
  }
  best = max(scores, key=lambda step: (scores[step], -step))
  assert min(scores) < best < max(scores)
  assert [x.name for x in (tmp_path / "best").glob("checkpoint_*")] == [
    f"checkpoint_{best}"
  ]
  found = prompt_files.load(f"{tmp_path}/best/prompt.safetensors")
  assert found.metadata["step"] == str(best)
  assert float(found.metadata["score"]) == scores[best]
  assert found.metadata["task"] == "demo_sentiment"
  assert found.metadata["place"] == "prefix_prompt"
  np.testing.assert_array_equal(found.prompt, prompt(tmp_path, best))


def test_the_same_command_gives_the_same_bits(run, finished, tmp_path):
  second, other = tmp_path / "second", tmp_path / "other"
  run(second)
  run(other, "RANDOM_SEED = 1")
  read = lambda folder: (folder / "metrics.jsonl").read_text()
  assert read(finished) == read(second) != read(other)
  first = prompt(finished, 12)
  np.testing.assert_array_equal(first, prompt(second, 12))
  assert np.abs(first - prompt(other, 12)).max() > 0.1


@pytest.mark.parametrize(
  "step",
  [7, pytest.param(8, marks=pytest.mark.slow)],
  ids=["between_lines_of_the_log", "behind_a_checkpoint"],
)
def test_a_restarted_run_equals_an_uninterrupted_one(
  run, finished, tmp_path, monkeypatch, step
):
  # SIGTERM arrives while the step runs.
  real_fit = loop.fit

  def interrupted_fit(state, frozen, batches, **kwargs):
    def interrupting():
      for i, batch in enumerate(batches):
        if i == step - 1:
          os.kill(os.getpid(), signal.SIGTERM)
        yield batch

    return real_fit(state, frozen, interrupting(), **kwargs)

  monkeypatch.setattr(loop, "fit", interrupted_fit)
  output = run(tmp_path / "resumed")
  assert f"stopped by SIGTERM; saving step {step}" in output
  monkeypatch.setattr(loop, "fit", real_fit)
  output = run(tmp_path / "resumed")
  assert f"from step {step}" in output
  resumed = tmp_path / "resumed"
  read = lambda folder: (folder / "metrics.jsonl").read_text()
  assert read(finished) == read(resumed)
  np.testing.assert_array_equal(prompt(finished, 12), prompt(resumed, 12))


def test_a_finished_run_does_not_train_again(run, copied):
  before = (copied / "metrics.jsonl").read_text()
  run(copied)
  assert (copied / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_base_or_partition_is_refused(run, copied):
  with pytest.raises(ValueError, match="was trained on another base"):
    run(copied, "t5.T5Config.num_heads = 2", "t5.T5Config.head_dim = 32")
  with pytest.raises(ValueError, match="with another partition, prompt, opt"):
    run(copied, "PROMPT_REGEX = ['.*/prompt/.*', '.*relpos_bias.*']")


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_refused(run, copied, monkeypatch):
  with pytest.raises(ValueError, match="with learning_rate=0.3, now it is 0.1"):
    run(copied, "optim.adafactor.learning_rate = 0.1")
  with pytest.raises(ValueError, match="with RANDOM_SEED=0, now it is 1"):
    run(copied, "RANDOM_SEED = 1")
  with pytest.raises(ValueError, match="trained with BATCH_SIZE=8, now it is"):
    run(copied, "BATCH_SIZE = 16")
  with pytest.raises(ValueError, match="with TASK_FEATURE_LENGTHS={'inputs': "):
    run(copied, "TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 4}")
  with pytest.raises(ValueError, match="QUANTIZATION=None, now it is 'int8'"):
    run(copied, "QUANTIZATION = 'int8'")
  with pytest.raises(ValueError, match="place='prefix_prompt', now it is 'suf"):
    run(copied, "prompts.PromptConfig.join = @prompts.suffix_prompt")
  monkeypatch.setattr(vocabulary.Vocabulary, "sha256", "another")
  with pytest.raises(ValueError, match="VOCABULARY='8e92.*, now it is 'anot"):
    run(copied)


def test_a_damaged_checkpoint_is_passed_over(run, copied):
  state = copied / "checkpoint_12" / "state"
  files = list(state.glob("**/d/*"))
  assert files
  for path in files:
    path.write_bytes(bytes(path.stat().st_size))
  output = run(copied)
  assert "checkpoint_12 is damaged and not used" in output
  assert "from step 8" in output
  output = run(copied)  # It has been written again.
  assert "is damaged" not in output
  assert "from step 12" in output


@pytest.mark.slow
def test_the_best_of_an_earlier_attempt_is_forgotten(run, copied):
  for path in copied.glob("checkpoint_*"):
    shutil.rmtree(path)
  (saved,) = (copied / "best").glob("checkpoint_*")
  saved.rename(copied / "best" / "checkpoint_3")
  run(copied)
  (saved,) = (copied / "best").glob("checkpoint_*")
  assert saved.name != "checkpoint_3"


@pytest.mark.slow
def test_all_parameters_can_be_trained(run, tmp_path):
  output = run(
    tmp_path,
    "PROMPT_REGEX = ['.*']",
    "optim.adafactor.learning_rate = 1e-3",
    "optim.adafactor.multiply_by_parameter_scale = True",
    "optim.adafactor.weight_decay_rate = None",
  )
  assert "frozen                  0" in output


def test_a_run_that_diverges_ends_with_advice(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(
    "sys.argv",
    [
      "train",
      f"--gin_file={TINY_RUN}",
      f"--gin.MODEL_DIR='{tmp_path}'",
      "--gin.optim.adafactor.learning_rate=1e39",  # Infinite in float32.
    ],
  )
  with pytest.raises(SystemExit) as info:
    configuration.run("prompt_tuning.train.train")
  assert info.value.code == 1
  error = capsys.readouterr().err
  assert "the size of what is trained is inf at step 1: try a lower" in error


def test_a_loss_that_is_not_finite_is_named_before_the_parameters():
  row = [float("nan"), *[1.0] * 7, float("nan"), 1.0]
  with pytest.raises(
    FloatingPointError, match="the loss is nan at step 3: try"
  ):
    loop._stop_diverged(["one"], {"one": row}, 3)


def test_what_is_not_finite_is_never_saved(run, tmp_path):
  with pytest.raises(FloatingPointError, match=r"what is trained is .* at st"):
    run(
      tmp_path,
      "optim.adafactor.learning_rate = 1e39",
      "loop.LoopConfig.checkpoint_period = 1",
      "loop.LoopConfig.eval_at_start = False",
    )
  assert not list(tmp_path.glob("checkpoint_*"))


def test_a_prompt_is_there_before_its_checkpoint(run, tmp_path, monkeypatch):
  found = []
  real_save, real_save_best = checkpoints.save, checkpoints.save_best

  def save(manager, state, metadata):
    if "unlogged" in metadata:
      found.append(prompt(tmp_path, int(state.step)))
    real_save(manager, state, metadata)

  def save_best(manager, state, score, metadata):
    best = prompt_files.load(f"{tmp_path}/best/prompt.safetensors")
    assert best.metadata["step"] == str(int(state.step))
    found.append(best.prompt)
    real_save_best(manager, state, score, metadata)

  monkeypatch.setattr(checkpoints, "save", save)
  monkeypatch.setattr(checkpoints, "save_best", save_best)
  run(tmp_path)
  assert len(found) > 3


def test_train_steps_below_the_base_are_refused_before_it_is_read(
  run, tmp_path, monkeypatch, write_tiny_base
):
  path = tmp_path / "base.safetensors"
  write_tiny_base(path, step=12)
  monkeypatch.setattr(pretrained, "load", None)
  with pytest.raises(ValueError, match="TRAIN_STEPS=12 must be above 12, the"):
    run(tmp_path, f"INITIAL_CHECKPOINT_PATH = '{path}'")


@pytest.mark.slow
def test_a_run_with_buckets_can_be_restarted(run, tmp_path):
  buckets = "loop.LoopConfig.num_buckets = 2"
  output = run(tmp_path / "straight", buckets)
  assert "buckets of inputs: 8, 16; padding 7" in output
  run(tmp_path / "resumed", buckets, "TRAIN_STEPS = 7")
  run(tmp_path / "resumed", buckets)
  np.testing.assert_array_equal(
    prompt(tmp_path / "straight", 12), prompt(tmp_path / "resumed", 12)
  )


@pytest.mark.slow
def test_ranked_predictions_are_all_legal(run, tmp_path):
  run(tmp_path, "EVAL_MODE = 'rank'", "TRAIN_STEPS = 1")
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  scores = json.loads(lines[-1])
  assert scores["demo_sentiment/legal_labels"] == 100
  assert scores["demo_sentiment/labels/predicted/other"] == 0
  counts = [x for name, x in scores.items() if "/confusion/" in name]
  assert sum(counts) == 320


@pytest.mark.skipif(not SHARED.exists(), reason="needs real data")
@pytest.mark.slow
def test_real_rows_train_and_evaluate_through_seqio(run, tmp_path):
  from prompt_tuning.tasks import prepare

  list(prepare.prepare(SHARED / "data", tmp_path / "tfds", only=["rte"]))
  task = "taskless_super_glue_rte_v102_examples"
  run(
    tmp_path / "model",
    f"MIXTURE_OR_TASK_NAME = '{task}'",
    "MIXTURE_OR_TASK_MODULE = 'prompt_tuning.tasks.super_glue'",
    "TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 8}",
    "CLASS_LABELS = ['entailment', 'not_entailment']",
    f"data.from_seqio.tfds_data_dir = '{tmp_path}/tfds'",
    "loop.LoopConfig.eval_at_start = False",
    "EVAL_PERIOD = 12",
  )
  lines = (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()
  assert 0 <= json.loads(lines[-1])[f"{task}/accuracy"] <= 100


def test_metrics_of_some_steps_are_averaged_as_in_t5x(golden):
  arrays = golden("trainer_steps")
  expected = {
    name.removeprefix("plain/eval_metric/"): x
    for name, x in arrays.items()
    if name.startswith("plain/eval_metric/")
  }
  weights = np.sum(arrays["batches/decoder_loss_weights"], axis=(1, 2))
  loss, z_loss = float(expected["loss"]), float(expected["z_loss"])
  correct = float(expected["accuracy"]) * weights
  rows = [
    [loss, z_loss, c, w, w, 1.0, 0.3, 0.1, 0.2, 1.0]
    for c, w in zip(correct, weights, strict=True)
  ]
  summary = loop.summarize([[float(x) for x in row] for row in rows])
  assert summary["trainable_rms"] == pytest.approx(0.2)
  for name in (
    "loss",
    "z_loss",
    "cross_ent_loss",
    "accuracy",
    "loss_per_nonpadding_target_token",
  ):
    np.testing.assert_allclose(summary[name], expected[name], rtol=1e-4)


@pytest.mark.parametrize(
  ("regex", "settings", "message"),
  [
    (".*/prompt/.*", {"eval_mode": "rank"}, "'rank' needs a task with labels"),
    (".*", {"probe_base": True}, "probe_base=True needs a frozen base"),
  ],
)
def test_what_cannot_go_well_is_refused_before_anything_is_written(
  tiny_config, tmp_path, regex, settings, message
):
  data = task_data.TaskData(
    *("task", [], [], [], {"inputs": 8, "targets": 2}),
    vocabulary.from_bytes(128),
    batches_fn=lambda *args, **kwargs: iter(()),
  )
  with pytest.raises(ValueError, match=message):
    train.train(
      model_dir=str(tmp_path / "run"),
      initial_checkpoint_path=None,
      model=t5.Transformer(tiny_config, prompts.PromptConfig(length=2)),
      partition=optim.Partition([([regex], optim.adafactor())]),
      load_data=lambda: data,
      config=loop.LoopConfig(train_steps=2, **settings),
      loss=losses.LossConfig(),
      initial_prompt=prompt_init.random_uniform,
    )
  assert not (tmp_path / "run").exists()
