# SPDX-License-Identifier: Apache-2.0
"""Several processes on loopback, through the real command and its launcher."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = "encoder.prompt.prompt.prompt"


def free_port():
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def start(model_dir, cache, *flags, processes):
  """Starts all processes of a run; each writes a file of its own."""
  flags = [
    "--gin_file=tests/tiny_run_from_cache.gin",
    f"--gin.CACHE_DIR='{cache}'",
    *flags,
  ]
  return launch(model_dir, flags, processes, MODEL_DIR=str(model_dir))


def launch(folder, flags, processes, **extra):
  """Starts all processes of any program."""
  address = f"127.0.0.1:{free_port()}"
  result = []
  for i in range(processes):
    env = {
      **os.environ,
      "PYTHON": sys.executable,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
      **extra,
    }
    if processes > 1:
      env |= {"COORDINATOR_ADDRESS": address, "PROCESS_ID": str(i)}
      env["NUM_PROCESSES"] = str(processes)
    with open(f"{folder}.{i}", "w") as file:
      result.append(
        subprocess.Popen(
          ["./run_tpu.sh", *flags],
          cwd=ROOT,
          env=env,
          stdout=file,
          stderr=subprocess.STDOUT,
        )
      )
  return result


def finish(processes, model_dir, seconds=300):
  """Waits; returns the exit codes and what each process has printed."""
  codes = [process.wait(seconds) for process in processes]
  return codes, [
    pathlib.Path(f"{model_dir}.{i}").read_text() for i in range(len(codes))
  ]


def wait_for_step(model_dir, step):
  """Waits until a line of the log has reached a step."""
  path = model_dir / "metrics.jsonl"
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and json.loads(lines[-1])["step"] >= step:
      return
    time.sleep(0.02)
  pytest.fail(pathlib.Path(f"{model_dir}.0").read_text())


def prompt(model_dir, step):
  path = model_dir / "numpy_checkpoints" / f"checkpoint_{step}" / PROMPT
  return np.load(path)


def metrics(model_dir):
  lines = (model_dir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_malformed_variable_is_refused(monkeypatch):
  from prompt_tuning import distributed

  monkeypatch.setenv("PROMPT_TUNING_DISTRIBUTED", "1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two' must be a who"):
    distributed.initialize()


def test_a_process_alone_stops_by_its_own_signal():
  from prompt_tuning import distributed

  received = threading.Event()
  with distributed.one_run():
    assert not distributed.should_stop(received, 1)
    received.set()
    assert distributed.should_stop(received, 2)
    assert distributed.is_first()
    assert distributed.of_first(3) == 3


SHORT_RUN = ("--gin.TRAIN_STEPS=20", "--gin.loop.LoopConfig.log_period=5")


@pytest.fixture(scope="module")
def one(tmp_path_factory, demo_cache):
  """The folder of a run of one process."""
  folder = tmp_path_factory.mktemp("one") / "run"
  codes, texts = finish(
    start(folder, demo_cache, *SHORT_RUN, processes=1), folder
  )
  assert codes == [0], texts[0]
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  ("processes", "flags"),
  [
    (2, ()),
    (
      4,
      (
        "--gin.NUM_PARTITIONS=2",
        "--gin.PARAMETER_SHARDING=True",
        "--gin.PROMPT_SHARDING=True",
      ),
    ),
  ],
  ids=["data_2", "data_2_model_2"],
)
def test_processes_train_and_evaluate_as_one(
  tmp_path, demo_cache, one, processes, flags
):
  many = tmp_path / "many"
  running = start(many, demo_cache, *SHORT_RUN, *flags, processes=processes)
  codes, texts = finish(running, many)
  assert codes == [0] * processes, "\n".join(texts)
  assert "frozen parameters unchanged" in texts[0]
  assert "frozen parameters unchanged" not in texts[1]
  np.testing.assert_allclose(prompt(many, 20), prompt(one, 20), atol=1e-3)
  assert len(metrics(many)) == len(metrics(one))
  for found, expected in zip(metrics(many), metrics(one), strict=True):
    assert found.pop("split") == expected.pop("split")
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
  # Each row is counted once.
  counts = [
    sum(x for k, x in metrics(folder)[-1].items() if "/confusion/" in k)
    for folder in (one, many)
  ]
  assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_processes_train_several_trials_as_one(tmp_path, demo_cache):
  """A device for each of the two trials."""
  one, many = tmp_path / "one", tmp_path / "many"
  for folder, processes in ((one, 1), (many, 2)):
    seeds = "--gin.SEEDS=(0, 1)"
    running = start(folder, demo_cache, *SHORT_RUN, seeds, processes=processes)
    codes, texts = finish(running, folder)
    assert codes == [0] * processes, "\n".join(texts)
  expected, found = (
    json.loads((folder / "results.json").read_text())["trials"]
    for folder in (one, many)
  )
  assert list(found) == ["seed_0", "seed_1"]
  for name, trial in found.items():
    wanted = pytest.approx(expected[name]["metrics"], rel=1e-3, abs=1e-3)
    assert trial["metrics"] == wanted
    np.testing.assert_allclose(
      *(prompt(folder / "trials" / name, 20) for folder in (many, one)),
      atol=1e-3,
    )


READERS = (
  "--gin_file=gin/models/tiny.gin",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
  "--gin.ACTIVATION_DTYPE='float32'",
  "--gin.t5.T5Config.emb_dim=16",
  "--gin.t5.T5Config.num_encoder_layers=1",
  "--gin.t5.T5Config.num_decoder_layers=1",
  "--gin.t5.T5Config.mlp_dim=32",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_tiny_base):
  """The folder of a random base and two prompts for it."""
  from prompt_tuning import prompt_files

  folder = tmp_path_factory.mktemp("base")
  write_tiny_base(folder / "base.safetensors")
  for seed in (0, 1):
    prompt = np.random.default_rng(seed).normal(size=(3, 16))
    prompt_files.save(f"{folder}/{seed}.npy", prompt, {})
  return folder


def compare_rows(one, many):
  """Compares two files of predictions, up to the last digits of scores."""
  rows = [
    [json.loads(line) for line in path.read_text().splitlines()]
    for path in (one, many)
  ]
  assert len(rows[0]) == len(rows[1]) > 0
  for expected, found in zip(*rows, strict=True):
    for name in ("input", "prediction", "target"):
      assert found.get(name) == expected.get(name)
    for name in expected.keys() & {"score", "dissent"}:
      assert found[name] == pytest.approx(expected[name], rel=1e-4)
  return rows[0]


MESHES = {
  "data_2": (),
  "fsdp_2": ("--gin.PARAMETER_SHARDING=True",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mode", "mesh"),
  [("rank", "data_2"), ("generation", "fsdp_2")],
)
def test_processes_evaluate_as_one(tmp_path, demo_cache, base, mode, mesh):
  flags = [
    *READERS,
    "--gin_file=gin/runs/from_cache.gin",
    "--gin_file=gin/runs/eval.gin",
    f"--gin.CACHE_DIR='{demo_cache}'",
    "--gin.MIXTURE_OR_TASK_NAME='demo_sentiment'",
    f"--gin.CHECKPOINT_PATH='{base}/base.safetensors'",
    f"--gin.PROMPT_FILE=['{base}/0.npy', '{base}/1.npy']",
    f"--gin.EVAL_MODE='{mode}'",
  ]
  one, many = tmp_path / "one", tmp_path / "many"
  for folder, processes, extra in ((one, 1, ()), (many, 2, MESHES[mesh])):
    output = f"--gin.EVAL_OUTPUT_DIR='{folder}'"
    running = launch(
      folder, [*flags, output, *extra], processes, PROGRAM="eval"
    )
    codes, texts = finish(running, folder)
    assert codes == [0] * processes, "\n".join(texts)
    assert "demo_sentiment/accuracy" in texts[0]
    assert all("demo_sentiment/accuracy" not in x for x in texts[1:])
  name = "predictions/demo_sentiment.jsonl"
  assert len(compare_rows(one / name, many / name)) == 320
  expected, found = (
    json.loads((folder / "metrics.json").read_text())["metrics"]
    for folder in (one, many)
  )
  assert found.keys() == expected.keys()
  for column, scores in expected.items():
    assert found[column] == pytest.approx(scores, rel=1e-4)
  assert len(list((many / "tensorboard").glob("events*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data_2"])
def test_processes_predict_as_one_and_continue(tmp_path, base, mesh):
  texts = [f"sentence {'very ' * (i % 5)}{i}" for i in range(45)]
  (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
  flags = [
    *READERS,
    "--gin_file=gin/runs/infer.gin",
    "--gin.VOCABULARY=@vocabularies.english_8k()",
    f"--gin.CHECKPOINT_PATH='{base}/base.safetensors'",
    f"--gin.PROMPT_FILE='{base}/0.npy'",
    f"--gin.INPUT_FILE='{tmp_path}/in.txt'",
    "--gin.decoding.SamplingConfig.temperature=0.7",
    "--gin.BATCH_SIZE=16",
  ]
  one, many = tmp_path / "one", tmp_path / "many"

  def predict(folder, processes, *extra):
    output = f"--gin.INFER_OUTPUT_DIR='{folder}'"
    running = launch(
      folder, [*flags, output, *extra], processes, PROGRAM="infer"
    )
    codes, printed = finish(running, folder)
    return codes, printed, folder / "predictions.jsonl"

  codes, printed, expected = predict(one, 1)
  assert codes == [0], printed[0]
  codes, printed, found = predict(many, 2, *MESHES[mesh])
  assert codes == [0, 0], "\n".join(printed)
  assert "45 predictions in" in printed[0]
  assert "45 predictions in" not in printed[1]
  rows = compare_rows(expected, found)
  assert [row["input"] for row in rows] == texts
  # Torn in the second batch, it is continued with the same bytes.
  whole = found.read_bytes()
  found.write_bytes(whole[: len(whole) // 2])
  codes, printed, found = predict(many, 2, *MESHES[mesh])
  assert codes == [0, 0], "\n".join(printed)
  assert found.read_bytes() == whole
  # Both processes refuse what is wrong.
  codes, printed, found = predict(many, 2, "--gin.RANDOM_SEED=1")
  assert codes == [2, 2], "\n".join(printed)
  assert all("holds predictions with RANDOM_SEED=0" in x for x in printed)


LONG_RUN = (
  "--gin.TRAIN_STEPS=800",
  "--gin.EVAL_PERIOD=800",
  "--gin.loop.LoopConfig.checkpoint_period=50",
  "--gin.loop.LoopConfig.log_period=10",
)


def check_end(sent, victim, codes, texts):
  """Checks how both processes have ended after a signal to one of them."""
  output = "\n".join(texts)
  if sent == signal.SIGTERM:
    assert codes == [0, 0], output
    assert "stopped by SIGTERM; saving step" in texts[0]
    return
  assert codes[victim] == -signal.SIGKILL
  # Python ends the other one where a collective has failed; JAX, where the
  # service has, or where the save of a checkpoint waits for the victim.
  code, text = codes[1 - victim], texts[1 - victim]
  if code == 75:
    assert "most likely because another process has ended" in text
  else:
    assert code == -signal.SIGABRT, output
    assert "most likely indicates that another task died" in text


@pytest.mark.slow
def test_processes_stop_together_and_continue_with_the_same_bits(
  tmp_path, demo_cache
):
  straight, stopped = tmp_path / "straight", tmp_path / "stopped"
  codes, texts = finish(
    start(straight, demo_cache, *LONG_RUN, processes=2), straight
  )
  assert codes == [0, 0], "\n".join(texts)
  for sent, victim, step in (
    (signal.SIGTERM, 1, 130),
    (signal.SIGKILL, 0, 330),
    (signal.SIGKILL, 1, 530),
  ):
    running = start(stopped, demo_cache, *LONG_RUN, processes=2)
    wait_for_step(stopped, step)
    running[victim].send_signal(sent)
    sent_at = time.monotonic()
    codes, texts = finish(running, stopped, seconds=60)
    seconds = time.monotonic() - sent_at
    print(f"{sent.name} to {victim}: {seconds:.1f} s, {codes}")
    check_end(sent, victim, codes, texts)
  codes, texts = finish(
    start(stopped, demo_cache, *LONG_RUN, processes=2), stopped
  )
  assert codes == [0, 0], "\n".join(texts)
  assert f"continuing {stopped} from step" in texts[0]
  np.testing.assert_array_equal(prompt(stopped, 800), prompt(straight, 800))
  logs = [(x / "metrics.jsonl").read_text() for x in (straight, stopped)]
  assert logs[0] == logs[1]
