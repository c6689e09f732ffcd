# SPDX-License-Identifier: Apache-2.0
"""Own data: JSONL, CSV or TSV files as a task that trains and is evaluated.

A template makes the inputs of a row: "premise: {premise} claim: {claim}" puts
the cells of the columns `premise` and `claim` where their names stand.
"""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
import string
from typing import Any, NamedTuple
import zlib

import numpy as np
from prompt_tuning.tasks import rows, scores
import seqio

from prompt_tuning import (
  batching,
  data,
  task_data,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

_FORMATS = (".jsonl", ".csv", ".tsv")


class _Text(NamedTuple):
  """A row as text."""

  inputs: str
  target: str


def from_files(
  *,
  name: str,
  train_file: str,
  validation_file: str,
  input_template: str,
  target_column: str,
  labels: Sequence[str] = (),
  feature_lengths: Mapping[str, int],
  vocabulary: seqio.Vocabulary,
) -> task_data.TaskData:
  """Reads and tokenises own files.

  Args:
    name: what the task is called in the metrics.
    train_file: a file that ends with .jsonl, .csv or .tsv, or with .gz behind.
    validation_file: another one.
    input_template: the inputs, with the names of columns in braces.
    target_column: the column of the targets.
    labels: all texts that it may hold; a cell may also be the number of one.
      Empty if the targets are free text.
    feature_lengths: number of tokens of `inputs` and `targets`.
    vocabulary: to tokenise with.

  Raises:
    ValueError: with file and line, for whatever is wrong with a row.
  """
  data.check_lengths(feature_lengths)
  tokenizer = data.without_tensorflow(vocabulary)
  pieces = _parse_template(input_template)
  _check_labels(labels, tokenizer, feature_lengths["targets"])
  read = lambda path: list(
    _read(pathlib.Path(path), pieces, target_column, labels)
  )
  train, validation = read(train_file), read(validation_file)
  scoring = scores.own_data(name, labels=labels)
  task = task_data.EvalTask(
    name,
    _examples(validation, tokenizer, feature_lengths),
    [_fields(text) for text in validation],
    scoring,
  )
  return task_data.TaskData(
    name,
    [name],
    [(_examples(train, tokenizer, feature_lengths), 1.0)],
    [task],
    dict(feature_lengths),
    tokenizer,
  )


def _parse_template(template: str) -> list[tuple[str, str | None]]:
  """Splits a template into (text, name of the column behind it)."""
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(
      f"INPUT_TEMPLATE={template!r} is broken: {error}; a brace that is text is"
      " written twice"
    ) from None
  pieces = [(text, name) for text, name, _, _ in parts]
  is_plain = not any(spec or conversion for _, _, spec, conversion in parts)
  names = [name for _, name in pieces if name is not None]
  if not names or not all(names) or not is_plain:
    raise ValueError(
      f"INPUT_TEMPLATE={template!r} must name columns in braces, such as"
      " 'text: {text}'"
    )
  return pieces


def _check_labels(
  labels: Sequence[str], vocabulary: vocabulary_lib.Vocabulary, length: int
) -> None:
  """Refuses labels that are no texts, or that the target length would cut."""
  if isinstance(labels, str) or len(set(labels)) != len(labels):
    raise ValueError(
      f"LABELS={labels!r} must be a list of different texts such as"
      " ['negative', 'positive']"
    )
  for label in labels:
    num_tokens = len(vocabulary.encode(label)) + 1
    if num_tokens > length:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS['targets']={length} is too short for the label"
        f" {label!r}, which has {num_tokens} tokens with EOS"
      )


def _read(
  path: pathlib.Path,
  pieces: Sequence[tuple[str, str | None]],
  target_column: str,
  labels: Sequence[str],
) -> Iterator[_Text]:
  """Yields the rows of a file as text.

  Raises:
    ValueError: for a file that is missing, empty or broken.
  """
  if not path.is_file():
    raise ValueError(f"there is no file {path}")
  is_empty = True
  try:
    for located in _read_rows(path):
      is_empty = False
      inputs = "".join(
        text if name is None else f"{text}{_cell(located, name)}"
        for text, name in pieces
      )
      target = _cell(located, target_column)
      if labels:
        target = _label(target, target_column, labels, located.where)
      if not target.strip():
        raise ValueError(f"{located.where}: {target_column} is empty")
      yield _Text(inputs, target)
  except (EOFError, OSError, zlib.error) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if is_empty:
    raise ValueError(f"{path}: the file has no rows")


def _read_rows(path: pathlib.Path) -> Iterator[rows.Located]:
  suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
  if suffix not in _FORMATS:
    raise ValueError(
      f"{path} must end with {', '.join(_FORMATS)}, or with .gz behind"
    )
  if suffix == ".jsonl":
    return rows.read_jsonl(path)
  return rows.read_table(path, delimiter="," if suffix == ".csv" else "\t")


def _cell(located: rows.Located, name: str) -> str:
  """Returns a cell as text."""
  value = rows.column(located, name)
  if not isinstance(value, str | int | float):
    raise ValueError(
      f"{located.where}: {name} is {value!r}, wanted text or a number"
    )
  return str(value)


def _label(value: str, name: str, labels: Sequence[str], where: str) -> str:
  if value in labels:
    return value
  if value in {str(number) for number in range(len(labels))}:
    return labels[int(value)]
  raise ValueError(
    f"{where}: {name} is {value!r}, wanted one of {', '.join(labels)}, or its"
    " number"
  )


def _examples(
  texts: Sequence[_Text],
  vocabulary: vocabulary_lib.Vocabulary,
  feature_lengths: Mapping[str, int],
) -> batching.Examples:
  """Tokenises rows; those that are too long are cut, but end with EOS."""

  def ragged(feature: str, lines: Sequence[str]) -> batching.Ragged:
    most = feature_lengths[feature] - 1
    tokens = [[*vocabulary.encode(x)[:most], vocabulary_lib.EOS] for x in lines]
    return batching.Ragged.from_rows([np.array(x, np.int32) for x in tokens])

  return batching.Examples(
    ragged("inputs", [x.inputs for x in texts]),
    ragged("targets", [x.target for x in texts]),
  )


def _fields(text: _Text) -> dict[str, Any]:
  """Returns what the metrics and the log of examples read."""
  target = text.target.encode()
  return {
    "inputs_pretokenized": text.inputs.encode(),
    "targets_pretokenized": target,
    "answers": [target],
  }
