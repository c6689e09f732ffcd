# SPDX-License-Identifier: Apache-2.0
"""Own files as a task, and what is said of mistakes in them."""

import gzip
import json
import re

import numpy as np
import pytest

TRAIN = [
  {"text": "fine", "stars": 5, "label": "good"},
  {"text": 'a "bad", "sad" day', "stars": 1, "label": "bad"},
  {"text": "two\nlines", "stars": 3, "label": 1},
]


def jsonl(rows):
  return "".join(f"{json.dumps(row)}\n" for row in rows)


CSV = """text,stars,label
fine,5,good
"a ""bad"", ""sad"" day",1,bad
"two
lines",3,1
"""
TSV = 'text\tstars\tlabel\nfine\t5\tgood\na "bad", "sad" day\t1\tbad\n'


@pytest.fixture(scope="module")
def read():
  """Reads the same file for both splits, with our vocabulary."""
  from prompt_tuning.tasks import files, vocabularies

  def call(path, **kwargs):
    kwargs = {
      "input_template": "stars: {stars} text: {text}",
      "target_column": "label",
      "labels": ["bad", "good"],
      "feature_lengths": {"inputs": 12, "targets": 4},
      **kwargs,
    }
    return files.from_files(
      name="mine",
      train_file=str(path),
      validation_file=str(path),
      vocabulary=vocabularies.english_8k(),
      **kwargs,
    )

  return call


@pytest.mark.parametrize(
  ("name", "content", "num_rows"),
  [
    ("a.jsonl", jsonl(TRAIN), 3),
    ("a.csv", CSV, 3),
    ("a.csv", f"\ufeff{CSV}", 3),
    ("a.tsv", TSV, 2),
    ("a.tsv.gz", TSV, 2),
  ],
)
def test_every_format_gives_the_same_rows(
  read, tmp_path, name, content, num_rows
):
  path = tmp_path / name
  encoded = content.encode()
  path.write_bytes(gzip.compress(encoded) if name.endswith("gz") else encoded)
  data = read(path)
  (task,) = data.eval_tasks
  assert [row["inputs_pretokenized"] for row in task.rows] == [
    b"stars: 5 text: fine",
    b'stars: 1 text: a "bad", "sad" day',
    b"stars: 3 text: two\nlines",
  ][:num_rows]
  targets = [row["targets_pretokenized"] for row in task.rows]
  assert targets == [b"good", b"bad", b"good"][:num_rows]
  encode = data.vocabulary.encode
  examples = data.train_sources[0][0]
  rows = examples.inputs.padded(np.arange(num_rows), 12)
  first = [*encode("stars: 5 text: fine"), 1]
  assert rows[0, : len(first)].tolist() == first
  # The second is too long, and still ends with EOS.
  assert rows[1].tolist() == [*encode('stars: 1 text: a "bad", "sad"')[:11], 1]
  first_target = examples.targets.padded(np.array([0]), 2)
  assert first_target.tolist() == [[*encode("good"), 1]]


def test_labels_are_scored_by_accuracy_and_free_text_as_answers(read, tmp_path):
  from prompt_tuning import task_metrics

  path = tmp_path / "a.jsonl"
  path.write_text(jsonl(TRAIN))
  (task,) = read(path).eval_tasks
  assert task.scoring.labels == ("bad", "good")
  scores = task_metrics.score(task, ["good", "good", "nothing"])
  assert scores["accuracy"] == pytest.approx(100 / 3)
  assert scores["legal_labels"] == pytest.approx(200 / 3)
  (task,) = read(path, labels=(), target_column="text").eval_tasks
  scores = task_metrics.score(task, ["Fine.", "sad day", "two lines"])
  f1 = 100 * (1 + 2 * 2 / (3 + 2) + 1) / 3
  assert scores == {"em": pytest.approx(200 / 3), "f1": pytest.approx(f1)}


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    (
      "a.jsonl",
      b'{"text": "x", "stars": 1}\n',
      ":1: column 'label' is missing",
    ),
    ("a.csv", b"text,label\nx,good\n", ":2: column 'stars' is missing"),
    (
      "a.tsv",
      b"text\tstars\tlabel\nx\t1\tgood\nx\t1\tugly\n",
      ":3: label is 'ugly', wanted one of bad, good, or its number",
    ),
    ("a.jsonl", b"", ": the file has no rows"),
    ("a.csv", b"text,stars,label\n", ": the file has no rows"),
    ("a.jsonl", b'\n{"text": "\xff"}\n', ":2: byte 0xff at column 11 is not"),
    ("a.jsonl", b'{"text": "x"', ":1: broken JSON"),
    ("a.csv", b"text,stars,label\nx,1\n", ":2: found 2 cells, wanted 3"),
    ("a.tsv", b"text\tstars\tlabel\nx\t1\tgood\t\n", ":2: found 4 cells"),
    ("a.csv", b'text,stars,label\n"x,1,good\n', ":2: broken table, unexpected"),
    ("a.csv", b'text,stars,label\n"x"y,1,good\n', ":2: broken table, ',' exp"),
    ("a.jsonl", b'{"text": null, "stars": 1}', ":1: text is None, wanted text"),
    ("a.tsv.gz", b"\x1f\x8b\x08", " cannot be read: "),
    ("a.jsonl.gz", b"{}", " cannot be read: Not a gzipped file"),
    ("a.txt", b"x", " must end with .jsonl, .csv, .tsv, or with .gz behind"),
  ],
)
def test_a_mistake_in_a_file_is_named(read, tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
    read(path)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"input_template": "text"}, "INPUT_TEMPLATE='text' must name columns"),
    ({"input_template": "{}"}, "must name columns"),
    ({"input_template": "{text!r}"}, "must name columns"),
    ({"input_template": "{text"}, "is broken: expected '}'"),
    ({"feature_lengths": {"inputs": 9}}, "must have the keys 'inputs' and"),
    ({"labels": "good"}, "LABELS='good' must be a list"),
    ({"labels": ["a", "a"]}, "must be a list of different texts"),
    (
      {"feature_lengths": {"inputs": 12, "targets": 1}},
      "['targets']=1 is too short for the label 'bad'",
    ),
    ({"target_column": "stars", "labels": ()}, "stars is empty"),
  ],
)
def test_a_mistake_in_the_flags_is_named(read, tmp_path, kwargs, message):
  path = tmp_path / "a.csv"
  path.write_text("text,stars,label\nx, ,good\n")
  with pytest.raises(ValueError, match=re.escape(message)):
    read(path, **kwargs)


def test_a_missing_file_is_named(read, tmp_path):
  with pytest.raises(ValueError, match=f"there is no file {tmp_path}/no.csv"):
    read(tmp_path / "no.csv")
