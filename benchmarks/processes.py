# SPDX-License-Identifier: Apache-2.0
"""Times a step of one process with two devices against two processes.

    python benchmarks/processes.py

The run of benchmarks/against_t5x.py, with two rows of the batch on each of two
CPU devices: of one process or, with loopback between them, of two. One device
with all rows is there to compare with. They take turns, each as often.
"""

import argparse
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
from typing import NamedTuple

import against_t5x


class Setting(NamedTuple):
  """How many processes, and how many devices each has."""

  num_processes: int
  num_devices: int


SETTINGS = {
  "one process, one device": Setting(1, 1),
  "one process, two devices": Setting(1, 2),
  "two processes": Setting(2, 1),
}


def measure(setting: Setting, num_steps: int) -> float:
  """Trains; returns the median seconds of a step."""
  with tempfile.TemporaryDirectory() as folder:
    macros = against_t5x.MACROS | {
      "MODEL_DIR": repr(folder),
      "INITIAL_CHECKPOINT_PATH": "None",
      "TRAIN_STEPS": str(num_steps),
    }
    program = against_t5x.PROGRAMS["ours"]
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    running = [
      subprocess.Popen(
        against_t5x.command(program, macros),
        cwd=against_t5x.ROOT,
        env={**os.environ, **_environment(setting, address, i)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
      )
      for i in range(setting.num_processes)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
      raise RuntimeError(f"the processes ended with {codes}")
    events = against_t5x.read_events(pathlib.Path(folder, program.events))
    speeds = against_t5x.speeds_behind(list(events), against_t5x.WARM_UP)
  return 1 / statistics.median(speeds)


def _environment(setting: Setting, address: str, index: int) -> dict[str, str]:
  """Returns what tells a process of the others."""
  count = f"--xla_force_host_platform_device_count={setting.num_devices}"
  return {
    "XLA_FLAGS": count,
    "PROMPT_TUNING_DISTRIBUTED": str(int(setting.num_processes > 1)),
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(setting.num_processes),
    "JAX_PROCESS_ID": str(index),
  }


def main() -> None:
  """Prints median and range of the seconds of a step."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repetitions", type=int, default=3)
  parser.add_argument("--steps", type=int, default=30)
  args = parser.parse_args()
  found: dict[str, list[float]] = {name: [] for name in SETTINGS}
  for _ in range(args.repetitions):
    for name, setting in SETTINGS.items():
      found[name].append(measure(setting, args.steps))
      load = os.getloadavg()[0]
      print(f"{name}: {found[name][-1]:.3f} s, load {load:.1f}", flush=True)
  for name, seconds in found.items():
    print(
      f"{name:<26}median {statistics.median(seconds):.3f} s,"
      f" {min(seconds):.3f} to {max(seconds):.3f}"
    )


if __name__ == "__main__":
  main()
