# SPDX-License-Identifier: Apache-2.0
"""The demo: its comparison, its picture, its shipped base, its words."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

from etils import epath
import numpy as np
import pytest


def write_run(folder, scores):
  folder.mkdir(parents=True)
  lines = [
    {"step": 10 * i, "split": "eval", "mean/score": x, "sd/score": 1.0}
    for i, x in enumerate(scores)
  ]
  lines.insert(1, {"step": 5, "split": "train", "mean/loss": 1.0})
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(x) + "\n" for x in lines)
  )


class Ended(NamedTuple):
  """What a training returns, as far as the demo reads it."""

  step: int


def evaluate_fn(**unused):
  return {"eval": {"score": 49.0}}


def test_sigterm_ends_the_demo(tmp_path, capsys):
  from prompt_tuning import demo

  called = []

  def train_fn(*, model_dir, initial_checkpoint_path):
    called.append(initial_checkpoint_path)
    return Ended(19)

  demo.demo(
    model_dir=str(tmp_path),
    base="base",
    train_steps=20,
    train_fn=train_fn,
    evaluate_fn=evaluate_fn,
  )
  assert called == ["base"]
  assert "3/3" not in capsys.readouterr().out
  assert not (tmp_path / "demo.png").exists()


def test_one_seed_has_no_deviation(tmp_path, capsys):
  from prompt_tuning import demo

  def train_fn(*, model_dir, initial_checkpoint_path):
    lines = [
      {"step": 0, "split": "eval", "score": 50.0},
      {"step": 10, "split": "train", "loss": 1.0},
      {"step": 20, "split": "eval", "score": 70.0},
    ]
    folder = epath.Path(model_dir)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(
      "".join(json.dumps(x) + "\n" for x in lines)
    )
    return Ended(20)

  demo.demo(
    model_dir=str(tmp_path),
    base="base",
    train_steps=20,
    train_fn=train_fn,
    evaluate_fn=evaluate_fn,
  )
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2] == "  prompt, random       70.0 %"
  assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_compares_the_ends_of_both_runs(tmp_path, capsys):
  from prompt_tuning import demo

  calls = []
  scores = {"pretrained": (50, 90, 80), "random": (50, 50, 52)}

  def train_fn(*, model_dir, initial_checkpoint_path):
    folder = epath.Path(model_dir)
    write_run(folder, scores[folder.name])
    calls.append((folder.name, initial_checkpoint_path))
    return Ended(20)

  def evaluate_fn(*, eval_output_dir, checkpoint_path, prompt_file):
    calls.append((epath.Path(eval_output_dir).name, checkpoint_path))
    assert prompt_file is None
    return {"eval": {"score": 49.0}}

  demo.demo(
    model_dir=str(tmp_path),
    base="base",
    train_steps=20,
    train_fn=train_fn,
    evaluate_fn=evaluate_fn,
  )
  assert calls == [
    ("no_prompt", "base"),
    ("pretrained", "base"),
    ("random", None),
  ]
  lines = capsys.readouterr().out.splitlines()
  assert lines[-5:-1] == [
    "accuracy on sentences with words that training never shows:",
    "  no prompt            49.0 %",
    "  prompt, pretrained   80.0 % +- 1.0",
    "  prompt, random       52.0 % +- 1.0",
  ]
  assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_no_telling_word_of_the_validation_split_is_trained():
  from prompt_tuning.tasks import demo

  words = {
    split: {text.split()[-1] for text, _ in rows}
    for split in ("train", "validation")
    for rows in [list(demo.sentences(split))]
  }
  assert len(words["train"]) == 48
  assert len(words["validation"]) == 32
  assert not words["train"] & words["validation"]
  labels = [label for _, label in demo.sentences("validation")]
  assert labels.count("positive") == labels.count("negative") == 160


def test_the_inputs_are_as_long_as_the_longest_sentence(gin_model):
  from prompt_tuning.tasks import demo, vocabularies

  import gin

  gin_model("gin/runs/demo.gin")
  encode = vocabularies.english_8k().encode
  rows = [*demo.sentences("train"), *demo.sentences("validation")]
  longest = max(len(encode(text)) + 1 for text, _ in rows)  # And its end.
  assert gin.query_parameter("%TASK_FEATURE_LENGTHS")["inputs"] == longest


def test_the_shipped_base_is_that_of_its_gin_file(gin_model):
  from prompt_tuning import pretrained, t5, weights

  model = gin_model(
    "gin/models/english_4m.gin",
    bindings=["t5.Transformer.config = @t5.T5Config()"],
  )
  base = pretrained.load(weights.english_4m(), t5.param_shapes(model))
  assert base.step == 0
  assert all(np.isfinite(x).all() for x in base.params.values())


@pytest.mark.slow
def test_prompts_carry_over_to_unseen_words(tmp_path):
  program = [sys.executable, "-m", "prompt_tuning.demo"]
  output = subprocess.run(
    [*program, f"--gin.MODEL_DIR='{tmp_path}'"],
    cwd=tmp_path,
    env=os.environ | {"XLA_FLAGS": ""},  # Compiled as for a user.
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  plain, tuned, control = (
    float(line.split("%")[0].split()[-1]) for line in output.splitlines()[-4:-1]
  )
  assert tuned >= plain + 25
  assert tuned >= control + 10
