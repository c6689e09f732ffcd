# SPDX-License-Identifier: Apache-2.0
"""Reading rows, and what is said of broken ones."""

import gzip
import re

from prompt_tuning.tasks import rows
import pytest


def test_rows_know_their_line(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"a": 1}\n\n{"a": "\u00e9"}\n', encoding="utf-8")
  assert list(rows.read_jsonl(path)) == [
    (f"{path}:1", {"a": 1}),
    (f"{path}:3", {"a": "\u00e9"}),
  ]


def test_gzip_is_read(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"a": 1}\n'))
  assert rows.find(tmp_path, "a.jsonl") == path
  assert [located.row for located in rows.read_jsonl(path)] == [{"a": 1}]
  assert rows.find(tmp_path, "b.jsonl") is None


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b'{"a": 1', "broken JSON, Expecting ',' delimiter at column 8"),
    (b"[1, 2]", "found '[1, 2]', wanted a JSON object"),
    (b'{"a": "\xff"}', "byte 0xff at column 8 is not UTF-8"),
  ],
  ids=["broken", "no object", "not UTF-8"],
)
def test_a_broken_line_is_named(tmp_path, line, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"a": 0}\n' + line + b"\n")
  with pytest.raises(ValueError, match=re.escape(f"{path}:2: {message}")):
    list(rows.read_jsonl(path))


def test_tsv_without_quoting(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_bytes(b'\xef\xbb\xbfx\ty\r\n"a\tb"\r\nc\td\te\r\n')
  assert [located.row for located in rows.read_tsv(path)] == [
    {"x": '"a', "y": 'b"'},
    {"x": "c", "y": "d"},
  ]


def test_a_short_row_is_named_or_skipped(tmp_path, caplog):
  path = tmp_path / "a.tsv"
  path.write_text("x\ty\n1\t2\n3\n")
  message = f"{path}:3: found 1 cells, wanted 2: x, y"
  with pytest.raises(ValueError, match=re.escape(message)):
    list(rows.read_tsv(path))
  assert len(list(rows.read_tsv(path, skip_short=True))) == 1
  assert "1 rows with too few cells" in caplog.text


def test_a_missing_column_is_named():
  located = rows.Located("a.tsv:2", {"x": 1})
  message = "a.tsv:2: column 'label' is missing: found x"
  with pytest.raises(ValueError, match=message):
    rows.column(located, "label")
