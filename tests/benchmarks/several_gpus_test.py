# SPDX-License-Identifier: Apache-2.0
"""The command of several GPUs, on simulated devices."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_divided_rows_and_prompts_train_as_one_device():
  program = subprocess.run(
    [
      *(sys.executable, "benchmarks/several_gpus.py", "--simulate"),
      *("--sizes=tiny", "--devices=1,2", "--layouts=data,prompts"),
      *("--steps=1", "--batch_size=4"),
      *("--inputs=8", "--targets=4", "--prompt=4"),
      *("--dtype=float32", "--param_dtype=float32"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  title, *lines = program.stdout.splitlines()
  names = title.split()
  rows = [dict(zip(names, line.split(), strict=True)) for line in lines]
  assert [(row["layout"], row["n"]) for row in rows] == [
    ("-", "1"),
    ("data", "2"),
    ("prompts", "2"),
  ]
  for row in rows:
    assert float(row["loss_diff"]) < 1e-5
    assert float(row["prompt_diff"]) < 1e-3
  sent = {row["layout"]: float(row["mib_sent"]) for row in rows}
  assert sent["prompts"] == 0 < sent["data"]
