# SPDX-License-Identifier: Apache-2.0
"""Times a training command from its start to the end of its first step.

    python benchmarks/first_step.py --gin_file=gin/models/t5_1_1_base.gin \
      --gin_file=... --gin.CACHE_DIR="'...'"   # as for prompt_tuning.train

Every repetition is a process of its own, in a folder of its own, which is
stopped when it reports its first step. With JAX_COMPILATION_CACHE_DIR all but
the first find their programs compiled.
"""

import argparse
from collections.abc import Sequence
import re
import subprocess
import sys
import tempfile
import time

_STEP = re.compile(r"step \d+/\d+: loss")


def measure(flags: Sequence[str]) -> float:
  """Returns the seconds of one repetition.

  Raises:
    RuntimeError: if the command ended without a step; with its last line.
  """
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    process = subprocess.Popen(
      [
        *(sys.executable, "-u", "-m", "prompt_tuning.train"),
        *flags,
        f"--gin.MODEL_DIR='{folder}'",
        "--gin.loop.LoopConfig.log_period=1",
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    line = ""
    for line in process.stdout or ():
      if _STEP.search(line):
        seconds = time.perf_counter() - started
        process.kill()
        process.communicate()
        return seconds
    process.wait()
    raise RuntimeError(f"ended before its first step: {line.strip()}")


def main() -> None:
  """Prints the seconds of each repetition."""
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--repeats", type=int, default=3)
  args, flags = parser.parse_known_args()
  for _ in range(args.repeats):
    print(f"start to end of first step: {measure(flags):.1f} s", flush=True)


if __name__ == "__main__":
  main()
