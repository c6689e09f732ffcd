# SPDX-License-Identifier: Apache-2.0
"""Predictions as JSON lines, in a file that an interrupted run continues.

A line holds what is known of a row:

    {"input": "...", "target": "yes", "prompt": "boolq", "prediction": "no",
     "score": -0.1, "candidates": [["no", -0.1], ["yes", -2.3]]}

`target`, `prompt` and, where there is but one, `candidates` are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
import io
import json
import pathlib
from typing import Any

from prompt_tuning import answers, atomic_files, distributed, input_rows


def recover(path: pathlib.Path) -> int:
  """Cuts a torn last line off; returns how many whole ones there are."""
  if not path.exists():
    return 0
  with open(path, "rb+") as file:
    num_lines = end = 0
    for line in file:
      if line.endswith(b"\n"):
        num_lines, end = num_lines + 1, end + len(line)
    file.truncate(end)
  return num_lines


def read(path: pathlib.Path, num_rows: int) -> Iterator[dict[str, Any]]:
  """Yields the first rows of a file.

  Raises:
    ValueError: for one that is not a prediction.
  """
  if not num_rows:
    return
  with open(path, encoding="utf-8") as file:
    for number, line in zip(range(1, num_rows + 1), file, strict=False):
      try:
        row = json.loads(line)
      except ValueError:
        row = None
      if not isinstance(row, dict) or "input" not in row:
        raise ValueError(
          f"{path} line {number} is not a prediction: delete the file, or"
          " choose another INFER_OUTPUT_DIR"
        )
      yield row


def check_same(
  path: pathlib.Path,
  written: Sequence[Mapping[str, Any]],
  rows: Sequence[input_rows.InputRow],
) -> None:
  """Refuses to continue a file that belongs to other inputs.

  Args:
    path: the file, for the message.
    written: rows that were read from it.
    rows: the inputs; more than these if the file ends among them.

  Raises:
    ValueError: for the first row that differs.
  """
  for old, new in zip(written, rows, strict=False):
    if (old["input"], old.get("prompt")) != (new.text, new.prompt):
      raise ValueError(
        f"{path} was written for other inputs: it has {old['input']!r:.60}"
        f" (prompt {old.get('prompt')}) where the input has {new.text!r:.60}"
        f" (prompt {new.prompt}); choose another INFER_OUTPUT_DIR"
      )


def append(
  file: io.TextIOBase,
  rows: Sequence[input_rows.InputRow],
  found: Sequence[answers.Prediction],
) -> None:
  """Writes the predictions of a batch, and hands them to the system."""
  lines = [
    json.dumps(_record(row, prediction), ensure_ascii=False)
    for row, prediction in zip(rows, found, strict=True)
  ]
  file.write("".join(f"{line}\n" for line in lines))
  file.flush()


def _record(
  row: input_rows.InputRow, prediction: answers.Prediction
) -> dict[str, Any]:
  known = {"input": row.text, "target": row.target, "prompt": row.prompt}
  record: dict[str, Any] = {k: x for k, x in known.items() if x is not None}
  record |= {"prediction": prediction.text, "score": prediction.scores[0]}
  if len(prediction.texts) > 1:
    pairs = zip(prediction.texts, prediction.scores, strict=True)
    record["candidates"] = [list(pair) for pair in pairs]
  return record


def claim(folder: str, identity: Mapping[str, Any]) -> None:
  """Makes a folder the output of one model, prompt and way of decoding.

  Of several processes the first writes that down, and all of them check it.

  Args:
    folder: is made if need be.
    identity: what all predictions of a file must have in common, as JSON.

  Raises:
    ValueError: if it is the output of another already, naming what differs, or
      lies in a bucket, where no file can be continued.
  """
  if atomic_files.is_remote(folder):
    raise ValueError(
      f"INFER_OUTPUT_DIR={folder!r} must be on a disk, where a file can grow:"
      " copy it to the bucket afterwards"
    )
  path = pathlib.Path(folder, "identity.json")
  written = pathlib.Path(folder, "predictions.jsonl")
  wanted = json.loads(json.dumps(identity))
  # A run that failed before its first prediction claims nothing.
  is_empty = not written.exists() or written.stat().st_size == 0
  if is_empty or not path.exists():
    if distributed.is_first():
      atomic_files.write(path, json.dumps(wanted, indent=2))
    return
  found = json.loads(path.read_text(encoding="utf-8"))
  for name, value in wanted.items():
    if found.get(name) != value:
      raise ValueError(
        f"INFER_OUTPUT_DIR={folder!r} holds predictions with"
        f" {name}={found.get(name)!r:.80}, now it is {value!r:.80}: choose"
        " another folder"
      )
