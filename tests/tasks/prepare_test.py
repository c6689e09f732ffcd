# SPDX-License-Identifier: Apache-2.0
"""Preparing TFDS data sets from local rows and official archives."""

import json
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def prepare():
  from prompt_tuning.tasks import prepare

  return prepare.prepare


@pytest.fixture
def write(tmp_path):
  """Writes rows, text or bytes as a file below tmp_path/rows."""

  def write_file(name, content):
    path = tmp_path / "rows" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
      content = "".join(f"{json.dumps(row)}\n" for row in content)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    return path

  return write_file


@pytest.fixture
def prepare_and_load(prepare, tmp_path):
  """Prepares tmp_path/rows; returns what TFDS loads, by idx."""
  import tensorflow_datasets as tfds

  def run(only, name, split):
    list(prepare(tmp_path / "rows", tmp_path / "tfds", only=[only]))
    dataset = tfds.load(
      name, split=split, data_dir=tmp_path / "tfds", download=False
    )
    found = [
      {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
      for row in tfds.as_numpy(dataset)
    ]
    return sorted(found, key=lambda row: str(row.get("idx")))

  return run


PAIR = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 0}
RTE = [PAIR | {"label": 0}, PAIR | {"label": "not_entailment", "idx": 1}]


def test_a_second_run_finds_the_first(prepare, write, tmp_path):
  write("rte/train.jsonl", RTE)
  write("rte/test.jsonl", [PAIR | {"label": -1}])
  rows, data = tmp_path / "rows", tmp_path / "tfds"
  counts = "train 2 of 2490 published, test 1 of 3000 published rows"
  first = list(prepare(rows, data, only=["rte"]))
  assert first == [f"super_glue/rte:1.0.2: wrote {counts}"]
  second = list(prepare(rows, data, only=["rte"]))
  assert second == [f"super_glue/rte:1.0.2: already there, {counts}"]
  assert [path.name for path in data.iterdir()] == ["super_glue"]


def test_rte_is_read_through_its_tasks(
  prepare, write, tmp_path, registry, monkeypatch
):
  from prompt_tuning.tasks import vocabularies
  import seqio

  from prompt_tuning import data

  write("rte/validation.jsonl", RTE)
  list(prepare(tmp_path / "rows", tmp_path / "tfds"))
  # What seqio.set_tfds_data_dir_override sets, and undone after the test.
  monkeypatch.setattr(
    seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path / "tfds")
  )
  texts = {}
  for name in ("taskless_super_glue_rte_v102", "glue_rte_v200_examples"):
    task = data.with_vocabulary(registry.get(name), vocabularies.english_8k())
    dataset = task.get_dataset(
      {"inputs": 64, "targets": 8}, "validation", shuffle=False
    )
    texts[name] = {
      row["inputs_pretokenized"].decode() for row in dataset.as_numpy_iterator()
    }
  assert texts == {
    "taskless_super_glue_rte_v102": {
      "hypothesis: It is wet. premise: It rains."
    },
    "glue_rte_v200_examples": {
      "rte sentence1: It rains. sentence2: It is wet."
    },
  }


BROKEN = {
  "missing column": (
    [RTE[0], PAIR],
    "{path}:2: column 'label' is missing: found premise, hypothesis, idx",
  ),
  "unknown label": (
    [PAIR | {"label": "maybe"}],
    "{path}:1: label is 'maybe', wanted one of entailment, not_entailment, or",
  ),
  "label out of range": ([PAIR | {"label": 2}], "{path}:1: label is 2, wanted"),
  "wrong type": (
    [RTE[0] | {"premise": 3}],
    "{path}:1: premise is 3, wanted str",
  ),
  "no number": (
    [RTE[0] | {"idx": "x"}],
    "{path}:1: idx is 'x', wanted int",
  ),
  "invalid UTF-8": (
    b'{"premise": "\xe9"}\n',
    "{path}:1: byte 0xe9 at column 14",
  ),
  "broken JSON": ('{"premise"\n', "{path}:1: broken JSON, Expecting ':'"),
  "empty split": ("\n", "{path}: split 'train' has no rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_rows_leave_nothing_behind(prepare, write, tmp_path, case):
  content, message = BROKEN[case]
  path = write("rte/train.jsonl", content)
  message = re.escape(message.format(path=path))
  with pytest.raises(ValueError, match=f"^{message}"):
    list(prepare(tmp_path / "rows", tmp_path / "tfds", only=["rte"]))
  assert not list((tmp_path / "tfds").iterdir())


def test_an_unknown_name_is_an_error(prepare, tmp_path):
  with pytest.raises(ValueError, match="--only=rta is unknown: known are axb"):
    list(prepare(tmp_path, tmp_path / "tfds", only=["rta"]))


@pytest.mark.parametrize(
  ("only", "what"), [(["cb"], "cb"), ([], "any data set")]
)
def test_no_rows_is_an_error(prepare, tmp_path, only, what):
  with pytest.raises(ValueError, match=f"has no rows of {what}: wanted is"):
    list(prepare(tmp_path, tmp_path / "tfds", only=only))


def test_a_mistake_ends_the_command_with_one_sentence_and_2(tmp_path):
  run = subprocess.run(
    [sys.executable, "-m", "prompt_tuning.tasks.prepare"]
    + [f"--rows={tmp_path}", f"--data_dir={tmp_path / 'tfds'}", "--only=rte"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 2
  (line,) = [x for x in run.stderr.splitlines() if x.startswith("prepare:")]
  assert "has no rows of rte" in line
  assert "Traceback" not in run.stderr


# Name in --only, TFDS name, split, file, its content, one row that comes out.
ARCHIVES = {
  "boolq": (
    "super_glue/boolq:1.0.2",
    "validation",
    "BoolQ/val.jsonl",
    [{"question": "q", "passage": "p", "idx": 3, "label": True}],
    {"question": "q", "passage": "p", "idx": 3, "label": 1},
  ),
  "cb": (
    "super_glue/cb:1.0.2",
    "test",
    "CB/test.jsonl",
    [PAIR],
    PAIR | {"label": -1},
  ),
  "wsc_fixed": (
    "super_glue/wsc.fixed:1.0.2",
    "train",
    "WSC/train.jsonl",
    [
      {
        "text": "Tom saw a cat. He ran.",
        "target": {
          "span1_index": 2,
          "span1_text": "A cat.",
          "span2_index": 4,
          "span2_text": "he",
        },
        "idx": 0,
        "label": False,
      }
    ],
    {
      "text": "Tom saw a cat. He ran.",
      "span1_index": 2,
      "span1_text": "a cat",
      "span2_index": 4,
      "span2_text": "He",
      "idx": 0,
      "label": 0,
    },
  ),
  "axb": (
    "super_glue/axb:1.0.2",
    "test",
    "AX-b/AX-b.jsonl",
    [{"sentence1": "a", "sentence2": "b", "idx": 0, "label": "entailment"}],
    {"sentence1": "a", "sentence2": "b", "idx": 0, "label": 0},
  ),
  "cola": (
    "glue/cola:1.0.0",
    "train",
    "CoLA/train.tsv",
    "gj04\t1\t\tHe ran.\n",
    {"sentence": "He ran.", "label": 1, "idx": 0},
  ),
  "stsb": (
    "glue/stsb:2.0.0",
    "validation",
    "STS-B/dev.tsv",
    "index\tsentence1\tsentence2\tscore\n7\ta\tb\t2.5\n",
    {"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 0},
  ),
  "mnli": (
    "glue/mnli:1.0.0",
    "validation_mismatched",
    "MNLI/dev_mismatched.tsv",
    "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
    {"premise": "a", "hypothesis": "b", "label": 1, "idx": 0},
  ),
  "ax": (
    "glue/ax:2.0.0",
    "test",
    "diagnostic/diagnostic.tsv",
    "index\tsentence1\tsentence2\n0\ta\tb\n",
    {"premise": "a", "hypothesis": "b", "label": -1, "idx": 0},
  ),
  "qqp": (
    "glue/qqp:2.0.0",
    "train",
    "QQP/train.tsv",
    "id\tquestion1\tquestion2\tis_duplicate\nbroken\n9\ta?\tb?\t1\n",
    {"question1": "a?", "question2": "b?", "label": 1, "idx": 0},
  ),
  "glue_rte": (
    "glue/rte:2.0.0",
    "train",
    "RTE/train.tsv",
    "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n",
    {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
  ),
}


@pytest.mark.parametrize("only", ARCHIVES)
def test_official_archive(prepare_and_load, write, only):
  name, split, file, content, row = ARCHIVES[only]
  write(file, content)
  assert prepare_and_load(only, name, split) == [row]


def test_dpr_rows(prepare_and_load, write):
  row = {"sentence": "Tom ran as he sang.", "pronoun": "he", "label": 1}
  write("dpr/train.jsonl", [row | {"candidates": ["Bob", "Tom"]}])
  name = "definite_pronoun_resolution:1.1.0"
  (found,) = prepare_and_load("dpr", name, "train")
  assert found["candidates"].tolist() == [b"Bob", b"Tom"]
  assert found["label"] == 1


def test_mnli_rows_have_the_splits_of_tfds(prepare_and_load, write):
  write("mnli/validation_matched.jsonl", [PAIR | {"label": 2}])
  found = prepare_and_load("mnli", "glue/mnli:2.0.0", "validation_matched")
  assert found == [PAIR | {"label": 2}]


def test_mrpc_is_cut_by_its_dev_ids(prepare_and_load, write):
  header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
  lines = "1\t10\t11\ta\tb\n0\t20\t21\tc\td\n"
  write("MRPC/msr_paraphrase_train.txt", header + lines)
  write("MRPC/dev_ids.tsv", "20\t21\n")
  write("MRPC/msr_paraphrase_test.txt", header + "1\t30\t31\te\tf\n")
  pair = {"sentence1": "a", "sentence2": "b"}
  train = prepare_and_load("mrpc", "glue/mrpc:1.0.0", "train")
  assert train == [pair | {"label": 1, "idx": 0}]
  pair = {"sentence1": "c", "sentence2": "d"}
  validation = prepare_and_load("mrpc", "glue/mrpc:1.0.0", "validation")
  assert validation == [pair | {"label": 0, "idx": 1}]


def test_mrpc_needs_its_dev_ids(prepare, write, tmp_path):
  write("MRPC/msr_paraphrase_train.txt", "Quality\n")
  with pytest.raises(ValueError, match=r"dev_ids\.tsv is missing"):
    list(prepare(tmp_path / "rows", tmp_path / "tfds", only=["mrpc"]))


def test_multirc_archive_has_a_row_an_answer(prepare_and_load, write):
  answers = [{"text": "x", "idx": 4, "label": 1}]
  answers += [{"text": "y", "idx": 5, "label": 0}]
  question = {"question": "q", "answers": answers, "idx": 2}
  passage = {"text": "p", "questions": [question]}
  write("MultiRC/train.jsonl", [{"passage": passage, "idx": 1}])
  found = prepare_and_load("multirc", "super_glue/multirc:1.0.2", "train")
  assert [(row["answer"], row["label"], row["idx"]) for row in found] == [
    ("x", 1, {"paragraph": 1, "question": 2, "answer": 4}),
    ("y", 0, {"paragraph": 1, "question": 2, "answer": 5}),
  ]


def test_record_archive_has_sorted_entities_and_answers(
  prepare_and_load, write
):
  spans = [{"start": 4, "end": 6}, {"start": 0, "end": 2}] * 2
  passage = {"text": "Tom Bob ran", "entities": spans}
  answers = [{"text": "Tom", "start": 0, "end": 2}] * 2
  query = {"query": "@placeholder ran", "answers": answers, "idx": 8}
  write("ReCoRD/val.jsonl", [{"passage": passage, "qas": [query], "idx": 7}])
  (row,) = prepare_and_load("record", "super_glue/record:1.0.2", "validation")
  assert row["entities"].tolist() == [b"Bob", b"Tom"]
  assert row["answers"].tolist() == [b"Tom"]
  assert row["idx"] == {"passage": 7, "query": 8}


def test_a_file_that_is_no_archive_is_an_error(prepare, write, tmp_path):
  path = write("MultiRC/train.jsonl", [{"passage": {}}])
  message = f"^{path}:1: not laid out as in the SuperGLUE archive: .*questions"
  with pytest.raises(ValueError, match=message):
    list(prepare(tmp_path / "rows", tmp_path / "tfds", only=["multirc"]))


def test_mrqa_rows_become_the_one_split_of_tfds(prepare_and_load, write):
  row = {"id": "a", "title": "", "context": "the sea", "question": "q"}
  row["answers"] = {"text": ["sea"], "answer_start": [4]}
  write("mrqa_race/train.jsonl", [row])
  write("mrqa_race/validation.jsonl", [row | {"id": "b"}])
  found = prepare_and_load("mrqa_race", "mrqa/race:1.0.0", "test")
  assert sorted(row["qid"] for row in found) == ["a", "b"]
  spans = found[0]["detected_answers"]["char_spans"]
  assert spans["start"].to_list() == [[4]]
  assert spans["end"].to_list() == [[6]]
  assert found[0]["answers"].tolist() == [b"sea"]
