# SPDX-License-Identifier: Apache-2.0
"""What predictions are made for: rows of a text file, of stdin or of a task."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import gzip
import json
import pathlib
import sys
from typing import Any, NamedTuple
import zlib

import jax
from jaxtyping import Int
import numpy as np

from prompt_tuning import inference, task_data
from prompt_tuning import vocabulary as vocabulary_lib

STDIN = "-"
_FORMATS = ("text", "jsonl")


class InputRow(NamedTuple):
  """One row.

  Attributes:
    text: the input.
    tokens: the same, with EOS.
    target: the right answer, if it is known.
    prompt: the name of the row's prompt, if it has one.
  """

  text: str
  tokens: Int[np.ndarray, " T"]
  target: str | None = None
  prompt: str | None = None


class Source(NamedTuple):
  """Rows to be read once.

  Attributes:
    rows: the rows, as they come.
    vocabulary: the one that they are written in.
    num_rows: how many there are, if that is known.
  """

  rows: Iterator[InputRow]
  vocabulary: vocabulary_lib.Vocabulary
  num_rows: int | None = None


class Fields(NamedTuple):
  """Which field of a JSON object is what.

  Attributes:
    text: the input.
    target: the right answer, which need not be there.
    prompt: the name of the row's prompt, which need not be there; None if no
      field is that.
  """

  text: str = "inputs"
  target: str = "targets"
  prompt: str | None = None


def from_file(
  *,
  path: str | None,
  file_format: str | None = None,
  fields: Fields,
  vocabulary: vocabulary_lib.Vocabulary,
  feature_lengths: Mapping[str, int],
) -> Source:
  """Reads a file of one input a line, or of one JSON object a line.

  Args:
    path: a file, which may end in .gz, or "-" for standard input; None, from
      gin, if no one has said.
    file_format: "text" or "jsonl"; None: by the name of the file, and text if
      that is not .jsonl.
    fields: which field of an object is what.
    vocabulary: to tokenise with.
    feature_lengths: most tokens of `inputs`, EOS included.

  Raises:
    ValueError: if there is no such file or format. While rows are read, with
      file and line, for whatever is wrong with one.
  """
  if path is None:
    raise ValueError(
      "INPUT_FILE is not set: name a file, or '-' for standard input; or put"
      " gin/runs/seqio.gin behind gin/runs/infer.gin, not before it"
    )
  if path == STDIN and jax.process_count() > 1:
    raise ValueError(
      f"INPUT_FILE='-' needs one process, found {jax.process_count()}, each of"
      " which reads all inputs: name a file"
    )
  if path != STDIN and not pathlib.Path(path).is_file():
    raise ValueError(
      f"INPUT_FILE={path!r} is no file: name one, or '-' for standard input"
    )
  if file_format not in (None, *_FORMATS):
    raise ValueError(
      f"INPUT_FORMAT={file_format!r} must be 'text', 'jsonl' or None, which"
      " goes by the name of the file"
    )
  is_jsonl = path.removesuffix(".gz").endswith(".jsonl")
  lines = _lines(path)
  rows = (
    (_parse(line, where, fields) for line, where in lines if line.strip())
    if (file_format or _FORMATS[is_jsonl]) == "jsonl"
    else ((line, None, None) for line, _ in lines)
  )
  length = feature_lengths["inputs"]
  tokenise = lambda x: inference.tokenise(x, vocabulary, length=length)
  return Source(
    (
      InputRow(text, tokenise(text), target, prompt)
      for text, target, prompt in rows
    ),
    vocabulary,
  )


def _lines(path: str) -> Iterator[tuple[str, str]]:
  """Yields each line, without its end, and where it is."""
  number = 0
  name = "standard input" if path == STDIN else path
  try:
    with _open(path) as file:
      for number, line in enumerate(file, 1):
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        yield text, f"{name} line {number}"
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} line {number} is not UTF-8: {error}") from error
  except (EOFError, OSError, zlib.error) as error:
    raise ValueError(
      f"{name} cannot be read behind line {number}: {error}"
    ) from error


def _open(path: str) -> contextlib.AbstractContextManager[Iterable[bytes]]:
  if path == STDIN:
    return contextlib.nullcontext(sys.stdin.buffer)
  if path.endswith(".gz"):
    return gzip.open(path)
  return open(path, "rb")


def _parse(
  line: str, where: str, fields: Fields
) -> tuple[str, str | None, str | None]:
  """Returns text, target and prompt of a line of JSON."""
  try:
    found = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{where} is not JSON: {error}") from error
  if not isinstance(found, dict):
    raise ValueError(f"{where} is no JSON object, such as {{...}}")
  text = _field(found, fields.text, where)
  if text is None:
    raise ValueError(
      f"{where} has no field {fields.text!r}, only {', '.join(found)}: set"
      " INPUT_FIELD"
    )
  return (
    text,
    _field(found, fields.target, where),
    _field(found, fields.prompt, where),
  )


def _field(row: dict[str, Any], name: str | None, where: str) -> str | None:
  """Returns a field as text, or None if there is none."""
  value = None if name is None else row.get(name)
  if value is not None and not isinstance(value, str | int | float):
    raise ValueError(
      f"{where}: {name} is {value!r:.80}, wanted text or a number"
    )
  text = None if value is None else str(value)
  if text and any("\ud800" <= x <= "\udfff" for x in text):
    raise ValueError(f"{where}: {name} is {text!r:.80}, with half a character")
  return text


def from_tasks(data: task_data.TaskData, known: set[str]) -> Source:
  """Takes the rows that a task, or a mixture's tasks in order, is scored on.

  Args:
    data: the tasks.
    known: the names of the prompts that there are. A task whose name is one of
      them is read with it; the others name no prompt.

  Raises:
    ValueError: if there are no such rows.
  """
  tasks = data.eval_tasks
  if not tasks:
    raise ValueError(
      f"MIXTURE_OR_TASK_NAME={data.name!r} has no validation split to predict:"
      " choose another, or INPUT_FILE"
    )
  rows = (row for task in tasks for row in _task_rows(task, known))
  num_rows = sum(len(task.rows) for task in tasks)
  return Source(rows, data.vocabulary, num_rows)


def _task_rows(task: task_data.EvalTask, known: set[str]) -> Iterator[InputRow]:
  tokens, offsets = task.examples.inputs
  for i, row in enumerate(task.rows):
    yield InputRow(
      row["inputs_pretokenized"].decode(),
      tokens[offsets[i] : offsets[i + 1]],
      row["targets_pretokenized"].decode(),
      task.name if task.name in known else None,
    )
