# SPDX-License-Identifier: Apache-2.0
"""Rows of text files from outside, each with the place it was read at.

Files may be gzip-compressed (`.gz`). Whatever is wrong with one is a ValueError
that begins with "file:line".
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import gzip
import json
import logging
import pathlib
from typing import Any, NamedTuple


class Located(NamedTuple):
  """A row, and "file:line" where it stands."""

  where: str
  row: Mapping[str, Any]


def find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """Returns the file `name` in `folder`, or `name.gz`, if there is one."""
  for path in (folder / name, folder / f"{name}.gz"):
    if path.is_file():
      return path
  return None


def read_lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields ("file:line", text) of each line, without its line break."""
  open_fn = gzip.open if path.suffix == ".gz" else open
  with open_fn(path, "rb") as lines:
    for number, line in enumerate(lines, start=1):
      where = f"{path}:{number}"
      try:
        yield where, line.decode("utf-8").rstrip("\r\n")
      except UnicodeDecodeError as error:
        raise ValueError(
          f"{where}: byte {error.object[error.start]:#x} at column "
          f"{error.start + 1} is not UTF-8: convert the file to UTF-8"
        ) from None


def read_jsonl(path: pathlib.Path) -> Iterator[Located]:
  """Yields the rows of a file with one JSON object a line."""
  for where, line in read_lines(path):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(
        f"{where}: broken JSON, {error.msg} at column {error.colno}"
      ) from None
    if not isinstance(row, dict):
      raise ValueError(f"{where}: found {line[:40]!r}, wanted a JSON object")
    yield Located(where, row)


def read_tsv(
  path: pathlib.Path,
  *,
  columns: Sequence[str] = (),
  skip_short: bool = False,
) -> Iterator[Located]:
  """Yields the rows of a tab-separated file without quoting, all as text.

  More cells than columns are allowed: some published files have stray ones.

  Args:
    path: the file.
    columns: names of the columns; without, the first line has them.
    skip_short: whether rows with too few cells are left out, and counted in the
      log, instead of being an error.
  """
  num_skipped = 0
  for where, line in read_lines(path):
    cells = line.split("\t")
    if not columns:
      # A byte order mark is no part of the first column's name.
      columns = [cell.removeprefix("\ufeff") for cell in cells]
    elif len(cells) >= len(columns):
      yield Located(where, dict(zip(columns, cells, strict=False)))
    elif skip_short:
      num_skipped += 1
    else:
      raise ValueError(
        f"{where}: found {len(cells)} cells, wanted {len(columns)}: "
        f"{', '.join(columns)}"
      )
  if num_skipped:
    logging.warning("%s: %d rows with too few cells", path, num_skipped)


def read_table(path: pathlib.Path, *, delimiter: str) -> Iterator[Located]:
  """Yields the rows of a table whose first line names its columns.

  Every row must have a cell for each column. Between commas, cells may be
  quoted, and a quoted cell may hold line breaks; between tabs, quotes are text.

  Args:
    path: the file.
    delimiter: comma or tab.
  """
  where = f"{path}:1"

  def lines() -> Iterator[str]:
    nonlocal where
    for place, line in read_lines(path):
      where = place
      yield f"{line}\n"

  if delimiter == ",":
    table = csv.reader(lines(), strict=True)
  else:
    table = csv.reader(
      lines(), delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True
    )
  columns: list[str] = []
  try:
    for cells in filter(None, table):
      if not columns:
        # A byte order mark is no part of the first column's name.
        columns = [cell.removeprefix("\ufeff") for cell in cells]
      elif len(cells) == len(columns):
        yield Located(where, dict(zip(columns, cells, strict=True)))
      else:
        raise ValueError(
          f"{where}: found {len(cells)} cells, wanted {len(columns)}: "
          f"{', '.join(columns)}"
        )
  except csv.Error as error:
    raise ValueError(f"{where}: broken table, {error}") from None


def column(located: Located, name: str) -> Any:
  """Returns a value of a row; a missing column is a ValueError."""
  if name not in located.row:
    raise ValueError(
      f"{located.where}: column {name!r} is missing: found "
      f"{', '.join(located.row)}"
    )
  return located.row[name]
