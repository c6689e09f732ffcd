# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
from prompt_tuning.tasks import demo
import pytest

import gin
from prompt_tuning import (
  configuration,
  infer,
  prompt_files,
)

ROOT = pathlib.Path(__file__).parents[1]
SIZES = (
  "t5.T5Config.num_encoder_layers = 1",
  "t5.T5Config.num_decoder_layers = 1",
  "t5.T5Config.emb_dim = 16",
  "t5.T5Config.mlp_dim = 32",
)
TEXTS = [f"sentence {'very ' * (i % 3)}{i}" for i in range(7)]


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_tiny_base):
  """The folder of a random base, two prompts for it, and inputs."""
  folder = tmp_path_factory.mktemp("base")
  write_tiny_base(folder / "base.safetensors")
  rng = np.random.default_rng(0)
  for name, length in (("short", 2), ("long", 5)):
    prompt = 3 * rng.normal(size=(length, 16)).astype(np.float32)
    prompt_files.save(f"{folder}/{name}.npy", prompt, {})
  (folder / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
  return folder


def bindings(base, output, *extra):
  return (
    *SIZES,
    f"CHECKPOINT_PATH = '{base}/base.safetensors'",
    f"PROMPT_FILE = '{base}/short.npy'",
    f"INPUT_FILE = '{base}/in.txt'",
    f"INFER_OUTPUT_DIR = '{output}'",
    "TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 3}",
    "VOCABULARY = @vocabularies.english_8k()",
    "ACTIVATION_DTYPE = 'float32'",
    "BATCH_SIZE = 4",
    *extra,
  )


@pytest.fixture
def run(base, tmp_path):
  """Predicts; returns the rows that are written."""

  def call(*extra, files=(), output=tmp_path):
    gin.clear_config()
    files = ("gin/models/tiny.gin", "gin/runs/infer.gin", *files)
    configuration.load(
      configuration.Flags(files, bindings(base, output, *extra), ())
    )
    gin.get_configurable(infer.infer)()
    return read(output)

  return call


def read(output):
  lines = (output / "predictions.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_rows_are_predicted_in_order(run, tmp_path, capsys):
  rows = run()
  assert [row["input"] for row in rows] == TEXTS
  assert all(set(row) == {"input", "prediction", "score"} for row in rows)
  assert len({row["score"] for row in rows}) == len(TEXTS)
  assert "7 predictions in" in capsys.readouterr().out
  config = (tmp_path / "operative_config.gin").read_text()
  assert "BATCH_SIZE = 4" in config


def test_rows_name_their_prompts(run, base, tmp_path):
  path = tmp_path / "in.jsonl"
  fields = [{"prompt": "long"}, {}, {"prompt": "long", "y": "no"}]
  rows = [{"q": TEXTS[i]} | fields[i] for i in range(3)]
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  mixed = run(
    f"INPUT_FILE = '{path}'",
    "INPUT_FIELD = 'q'",
    "TARGET_FIELD = 'y'",
    "PROMPT_FIELD = 'prompt'",
    f"PROMPT_FILES = {{'long': '{base}/long.npy'}}",
    output=tmp_path / "mixed",
  )
  assert [row.get("prompt") for row in mixed] == ["long", None, "long"]
  assert [row.get("target") for row in mixed] == [None, None, "no"]
  alone = {
    name: run(f"PROMPT_FILE = '{base}/{name}.npy'", output=tmp_path / name)
    for name in ("short", "long")
  }
  for i, name in enumerate(("long", "short", "long")):
    expected = alone[name][i]
    assert mixed[i]["prediction"] == expected["prediction"]
    np.testing.assert_allclose(
      mixed[i]["score"], expected["score"], rtol=0, atol=1e-5
    )


def test_a_row_that_names_no_prompt_is_not_answered_by_another(run, base):
  files = f"PROMPT_FILES = {{'long': '{base}/long.npy'}}"
  message = r"row 1 names no prompt: name one of long \(PROMPT_FIELD\), or set"
  with pytest.raises(ValueError, match=message):
    run("PROMPT_FILE = None", files)


def test_a_prompt_elsewhere_does_not_continue_a_file(run):
  run()
  with pytest.raises(ValueError, match="holds predictions with join='prefix_"):
    run("prompts.PromptConfig.join = @prompts.suffix_prompt")


def test_labels_are_candidates(run):
  labels = "answers.Labels.texts = ['glad', 'sad']"
  rows = run("DECODER = @answers.Labels()", labels)
  for row in rows:
    (first, higher), (second, lower) = row["candidates"]
    assert sorted([first, second]) == ["glad", "sad"]
    assert (row["prediction"], row["score"]) == (first, higher)
    assert higher >= lower


# Nothing, a torn line in the first batch, whole lines of it, all of it, a torn
# line in the second, all but the last byte, everything.
CUTS = [(0, 0), (0, 9), (2, 0), (4, 0), (5, 20), (7, -1), (7, 0)]


@pytest.mark.parametrize("decoder", ["greedy", "draws"])
def test_an_interrupted_file_is_continued(run, tmp_path, decoder):
  extra = {
    "greedy": (),
    "draws": ("decoding.SamplingConfig.temperature = 1.0",),
  }[decoder]
  run(*extra)
  path = tmp_path / "predictions.jsonl"
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  for num_lines, num_bytes in CUTS:
    end = sum(map(len, lines[:num_lines])) + num_bytes
    path.write_bytes(whole[:end])
    run(*extra)
    assert path.read_bytes() == whole, (num_lines, num_bytes)


def test_a_file_of_other_inputs_or_another_prompt_is_refused(
  run, base, tmp_path
):
  run()
  path = tmp_path / "other.txt"
  flag = f"INPUT_FILE = '{path}'"
  path.write_text("\n".join([*TEXTS[:5], "other", TEXTS[6]]))
  with pytest.raises(ValueError, match="other inputs: it has 'sentence very"):
    run(flag)
  path.write_text("\n".join(TEXTS[:3]))
  with pytest.raises(ValueError, match="has 7 rows, the input 3: choose"):
    run(flag)
  with pytest.raises(ValueError, match="holds predictions with prompts="):
    run(f"PROMPT_FILE = '{base}/long.npy'")
  assert [row["input"] for row in read(tmp_path)] == TEXTS
  path.write_text("\n".join([*TEXTS, "one more"]))
  assert [row["input"] for row in run(flag)] == [*TEXTS, "one more"]


def test_a_batch_from_standard_input_is_written_before_the_next_comes(
  run, tmp_path, monkeypatch
):
  reader, writer = os.pipe()
  stdin = os.fdopen(reader, "rb")
  monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
  path = tmp_path / "predictions.jsonl"
  seen = []

  def feed():
    for start in (0, 4):
      texts = TEXTS[start : start + 4]
      os.write(writer, "".join(f"{text}\n" for text in texts).encode())
      deadline = time.monotonic() + 120
      while start == 0 and time.monotonic() < deadline and not seen:
        time.sleep(0.01)
        if path.exists() and path.read_bytes().count(b"\n") == 4:
          seen.append(4)
    os.close(writer)

  thread = threading.Thread(target=feed, daemon=True)
  thread.start()
  rows = run("INPUT_FILE = '-'")
  thread.join()
  stdin.close()
  assert seen == [4]
  assert [row["input"] for row in rows] == TEXTS


def test_a_task_is_predicted_with_its_targets(run):
  rows = run(
    "MIXTURE_OR_TASK_NAME = 'demo_sentiment'",
    "MIXTURE_OR_TASK_MODULE = 'prompt_tuning.tasks.demo'",
    "VOCABULARY = @vocabularies.english_8k()",
    "BATCH_SIZE = 128",
    files=("gin/runs/seqio.gin",),
  )
  found = [(row["input"], row["target"]) for row in rows]
  assert found == list(demo.sentences("validation"))


@pytest.mark.slow
def test_a_killed_command_loses_and_repeats_no_row(base, tmp_path):
  texts = [f"row {i}" for i in range(2000)]
  (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
  flags = bindings(base, tmp_path / "out", f"INPUT_FILE = '{tmp_path}/in.txt'")
  command = [
    sys.executable,
    "-m",
    "prompt_tuning.infer",
    "--gin_file=gin/models/tiny.gin",
    "--gin_file=gin/runs/infer.gin",
    *(f"--gin.{flag.replace(' = ', '=', 1)}" for flag in flags),
  ]
  path = tmp_path / "out" / "predictions.jsonl"
  for num_rows in (40, 400, 1200):
    process = subprocess.Popen(command, cwd=ROOT)
    while not path.exists() or path.read_bytes().count(b"\n") < num_rows:
      assert process.poll() is None, "it ended before it was killed"
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
  subprocess.run(command, cwd=ROOT, check=True)
  assert [row["input"] for row in read(tmp_path / "out")] == texts
