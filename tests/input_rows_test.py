# SPDX-License-Identifier: Apache-2.0
import gzip
import io
import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prompt_tuning import batching, input_rows, task_data
from prompt_tuning import vocabulary as vocabulary_lib

BYTES = vocabulary_lib.from_bytes(384)


def read(path, file_format=None, **fields):
  source = input_rows.from_file(
    path=path and str(path),
    file_format=file_format,
    fields=input_rows.Fields(**fields),
    vocabulary=BYTES,
    feature_lengths={"inputs": 8, "targets": 4},
  )
  return list(source.rows)


def jsonl(path, *rows):
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return path


def test_every_line_of_a_text_is_a_row(tmp_path):
  (tmp_path / "a.txt").write_bytes("one\r\n\nzwölf \u2028 x".encode())
  rows = read(tmp_path / "a.txt")
  assert [row.text for row in rows] == ["one", "", "zwölf \u2028 x"]
  assert rows[0].tokens.tolist() == [*BYTES.encode("one"), 1]
  assert rows[1].tokens.tolist() == [1]
  assert rows[2].tokens.tolist() == [*BYTES.encode("zwölf ")[:7], 1]
  assert rows[0][2:] == (None, None)


def test_fields_of_an_object_are_named(tmp_path):
  path = jsonl(
    tmp_path / "a.jsonl",
    {"inputs": "a", "targets": 3, "prompt": "not a name"},
    {"inputs": 7},
  )
  assert [row[:1] + row[2:] for row in read(path)] == [
    ("a", "3", None),
    ("7", None, None),
  ]
  path = jsonl(path, {"q": "a", "y": "b", "task": "rte"})
  (row,) = read(path, text="q", target="y", prompt="task")
  assert (row.text, row.target, row.prompt) == ("a", "b", "rte")


def test_gzip_and_blank_lines_are_read(tmp_path):
  text = '{"inputs": "a"}\n\n{"inputs": "b"}\n'
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
  assert [row.text for row in read(tmp_path / "a.jsonl.gz")] == ["a", "b"]


@pytest.mark.parametrize(
  ("file_format", "expected"),
  [(None, '{"inputs": "a"}'), ("jsonl", "a")],
)
def test_standard_input_is_text_unless_told_otherwise(
  monkeypatch, file_format, expected
):
  stdin = SimpleNamespace(buffer=io.BytesIO(b'{"inputs": "a"}\n'))
  monkeypatch.setattr(sys, "stdin", stdin)
  (row,) = read("-", file_format)
  assert row.text == expected


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b'{"inputs": "a"}\n{"in', "line 2 is not JSON"),
    ("a.jsonl", b"[1]", r"line 1 is no JSON object, such as \{...\}"),
    ("a.jsonl", b'{"x": 1, "y": 2}', "no field 'inputs', only x, y: set INPUT"),
    ("a.jsonl", b'{"inputs": [1]}', r"inputs is \[1\], wanted text or a num"),
    ("a.jsonl", b'{"inputs": "\\ud800"}', "line 1: inputs is .* half a charac"),
    ("a.txt", b"a\n\xff\xfe\n", "line 2 is not UTF-8"),
    (
      "a.txt.gz",
      gzip.compress(b"a\n" * 9, mtime=0)[:-9],
      "cannot be read behind line",
    ),
  ],
)
def test_a_broken_row_is_located(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read(tmp_path / name)


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
  with pytest.raises(ValueError, match="INPUT_FILE is not set: name a file"):
    read(None)
  with pytest.raises(ValueError, match="is no file: name one, or '-' for"):
    read(tmp_path / "none.txt")
  with pytest.raises(ValueError, match="INPUT_FORMAT='csv' must be 'text', 'j"):
    read("-", "csv")


def test_several_processes_need_a_file(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="INPUT_FILE='-' needs one process, fou"):
    read("-")


def make_task(name, *texts):
  tokens = [np.array([*BYTES.encode(text), 1], np.int32) for text in texts]
  ragged = batching.Ragged.from_rows(tokens)
  rows = [
    {"inputs_pretokenized": x.encode(), "targets_pretokenized": b"y"}
    for x in texts
  ]
  return task_data.EvalTask(
    name,
    batching.Examples(ragged, ragged),
    rows,
    task_data.Scoring(lambda text, **unused: text),
  )


def test_rows_of_a_mixture_name_the_prompts_of_their_tasks():
  tasks = [make_task("rte", "a", "bc"), make_task("boolq", "d")]
  data = task_data.TaskData("both", [], [], tasks, {}, BYTES)
  source = input_rows.from_tasks(data, {"boolq", "other"})
  rows = list(source.rows)
  assert source.num_rows == 3
  assert [row[:1] + row[2:] for row in rows] == [
    ("a", "y", None),
    ("bc", "y", None),
    ("d", "y", "boolq"),
  ]
  assert rows[1].tokens.tolist() == [*BYTES.encode("bc"), 1]


def test_a_task_without_rows_to_predict_is_refused():
  data = task_data.TaskData("none", [], [], [], {}, BYTES)
  with pytest.raises(ValueError, match="'none' has no validation split to pre"):
    input_rows.from_tasks(data, set())
