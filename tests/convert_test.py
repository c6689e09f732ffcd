# SPDX-License-Identifier: Apache-2.0
import pathlib
import subprocess
import sys

from prompt_tuning import pretrained

HF = pathlib.Path(__file__).parent / "goldens/hf_t5_tiny"


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "prompt_tuning.convert", f"--from={HF}", *flags],
    capture_output=True,
    text=True,
  )


def test_the_command_converts(tmp_path):
  done = run(f"--to={tmp_path}/checkpoint_0", "--format=t5x")
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith("66 arrays, 72,416 parameters, step 0\n")
  opened = pretrained.open_checkpoint(f"{tmp_path}/checkpoint_0")
  assert len(opened.leaves) == 66


def test_a_dry_run_writes_nothing_and_other_arguments_are_refused(tmp_path):
  flags = (f"--to={tmp_path}/checkpoint_0", "--format=t5x", "--dry_run")
  done = run(*flags)
  assert done.stdout.endswith("66 arrays, 72,416 parameters, step 0\n")
  done = run(*flags, "more")
  assert "unexpected arguments: ['more']" in done.stderr
  assert not list(tmp_path.iterdir())


def test_a_base_that_is_missing_is_one_sentence(tmp_path):
  command = [sys.executable, "-m", "prompt_tuning.convert"]
  flags = ["--from=/nowhere", f"--to={tmp_path}/checkpoint_0", "--format=t5x"]
  done = subprocess.run([*command, *flags], capture_output=True, text=True)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1
  assert "/nowhere" in done.stderr
