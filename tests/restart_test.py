# SPDX-License-Identifier: Apache-2.0
"""A run that is killed again and again ends with the same bits.

NUM_KILLS=25 python -m pytest -m slow -s tests/restart_test.py
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 450
NUM_KILLS = int(os.environ.get("NUM_KILLS", "3"))
PROMPT = (
  f"numpy_checkpoints/checkpoint_{NUM_STEPS}/encoder.prompt.prompt.prompt"
)
FLAGS = (
  f"--gin.TRAIN_STEPS={NUM_STEPS}",
  "--gin.EVAL_PERIOD=150",
  "--gin.loop.LoopConfig.checkpoint_period=15",
  "--gin.loop.LoopConfig.log_period=20",
)


def start(model_dir, *flags):
  command = [sys.executable, "-m", "prompt_tuning.train"]
  model_flag = f"--gin.MODEL_DIR='{model_dir}'"
  return subprocess.Popen(
    [*command, *flags, *FLAGS, model_flag],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def last_step(model_dir):
  """Returns the last step in the log; -1 before there is one."""
  trial = model_dir / "trials" / "seed_0"
  path = (trial if trial.exists() else model_dir) / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  whole = [line for line in lines if line.endswith("\n")]
  return json.loads(whole[-1])["step"] if whole else -1


def kill_once(process, model_dir, step, rng):
  """Kills a run at a random moment after it has logged a step."""
  while last_step(model_dir) < step:
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.01)
  time.sleep(rng.uniform(0.0, 0.2))
  assert process.poll() is None, "the run ended before it was killed"
  process.send_signal(signal.SIGKILL)
  process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("source", "num_kills"), [("seqio", 1), ("cache", NUM_KILLS), ("trials", 1)]
)
def test_kill_minus_9_changes_no_bit(tmp_path, demo_cache, source, num_kills):
  flags = ["--gin_file=tests/tiny_run.gin"]
  if source != "seqio":
    flags = [
      "--gin_file=tests/tiny_run_from_cache.gin",
      f"--gin.CACHE_DIR='{demo_cache}'",
      "--gin.loop.LoopConfig.eval_at_start=True",
    ]
  if source == "trials":
    flags.append("--gin.SEEDS=(0, 1)")
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  output, _ = start(straight, *flags).communicate()
  assert "frozen parameters unchanged" in output, output
  rng = random.Random(num_kills)
  num_torn = 0
  for step in sorted(rng.sample(range(NUM_STEPS - 150), num_kills)):
    kill_once(start(killed, *flags), killed, step, rng)
    num_torn += any(killed.glob("*orbax-checkpoint-tmp*"))
  output, _ = start(killed, *flags).communicate()
  assert "frozen parameters unchanged" in output, output
  print(f"{num_kills} kills, {num_torn} of them while saving")
  logs = [x.relative_to(straight) for x in straight.rglob("metrics.jsonl")]
  prompts = [x.relative_to(straight) for x in straight.glob(f"**/{PROMPT}")]
  assert (len(logs), len(prompts)) == ((3, 2) if source == "trials" else (1, 1))
  for name in (*logs, *prompts):
    same = (straight / name).read_bytes() == (killed / name).read_bytes()
    assert same, name
  assert np.load(killed / prompts[0]).shape == (3, 16)
