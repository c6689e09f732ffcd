# SPDX-License-Identifier: Apache-2.0
"""Reads the log of a run for the doctor."""

import json

from etils import epath

from prompt_tuning.doctor import evidence


def read(folder: epath.Path) -> evidence.Run:
  """Reads the lines of a run so far; a torn last one is left out.

  Its `end` is the last step of training that is logged, -1 without one.

  Raises:
    ValueError: if there is no file, or it is no log.
  """
  path = folder / "metrics.jsonl"
  if not path.exists():
    raise ValueError(f"{path} does not exist: give the MODEL_DIR of a run")
  text = path.read_text()
  try:
    lines = [json.loads(x) for x in text[: text.rfind("\n") + 1].splitlines()]
    train, evals, base = (
      [line for line in lines if line["split"] == split]
      for split in ("train", "eval", "base")
    )
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is no log of a run: {error}") from error
  end = evidence.step(train[-1]) if train else -1
  return evidence.Run(train, evals, base[0] if base else {}, end)
