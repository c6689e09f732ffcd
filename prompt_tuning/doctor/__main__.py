# SPDX-License-Identifier: Apache-2.0
"""Says whether a run has learned and, if not, what to change.

    python -m prompt_tuning.doctor MODEL_DIR

reads MODEL_DIR/metrics.jsonl, of a run that has ended or goes on. Of a run of
several trials it reports on each.
"""

import argparse
from collections.abc import Sequence
import sys

from etils import epath

from prompt_tuning.doctor import logs, report


def _folders(model_dir: epath.Path) -> list[epath.Path]:
  """Returns the folder of each trial, or the only one."""
  trials = model_dir / "trials"
  return sorted(trials.iterdir()) if trials.exists() else [model_dir]


def _render(folder: epath.Path) -> str:
  """Writes the report on a run.

  Raises:
    ValueError: if its log is too short to say anything.
  """
  run = logs.read(folder)
  if not run.train or not run.evals:
    raise ValueError(
      f"{folder / 'metrics.jsonl'} has {len(run.train)} lines of training and"
      f" {len(run.evals)} of evaluation: wait for one of each"
    )
  return report.render(run)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the report; a mistake is one sentence and exit code 2."""
  parser = argparse.ArgumentParser(
    prog="python -m prompt_tuning.doctor",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("model_dir", metavar="MODEL_DIR")
  folders = _folders(epath.Path(parser.parse_args(argv).model_dir))
  num_reports = 0
  for folder in folders:
    title = f"{folder.name}: " if len(folders) > 1 else ""
    try:
      print(f"{title}{_render(folder)}")
      num_reports += 1
    except ValueError as error:  # Another trial may have come further.
      print(f"error: {title}{error}", file=sys.stderr)
  if not num_reports:
    sys.exit(2)


if __name__ == "__main__":
  main()
