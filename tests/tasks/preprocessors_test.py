# SPDX-License-Identifier: Apache-2.0
"""Text-to-text forms: every task from raw rows, through seqio."""

import json
import pathlib

import numpy as np
import pytest

GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1] / "goldens" / "data_text_to_text.json"
  ).read_text()
)
LABELLED = {"label": 0, "idx": 0}
ANSWERS = {"text": ["The sea!", "sea"], "answer_start": [3, 7]}

# Task -> one raw row, and what the model reads and writes.
LITERALS = {
  "glue_ax_v002": (
    {"premise": "It rains.", "hypothesis": "It is wet.", **LABELLED},
    "mnli hypothesis: It is wet. premise: It rains.",
    "entailment",
  ),
  "glue_mnli_matched_v200": (
    {"premise": "It rains.", "hypothesis": "It is wet.", "label": 2, "idx": 0},
    "mnli hypothesis: It is wet. premise: It rains.",
    "contradiction",
  ),
  "glue_mnli_mismatched_v002": (
    {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1, "idx": 0},
    "mnli hypothesis: It is wet. premise: It rains.",
    "neutral",
  ),
  "glue_mrpc_from_qqp_v002": (
    {"sentence1": "He ran .", "sentence2": "He fled .", "label": 1, "idx": 0},
    "mrpc sentence1: He ran . sentence2: He fled .",
    "equivalent",
  ),
  "glue_qqp_from_mrpc_v002": (
    {"question1": "Why?", "question2": "Why so?", **LABELLED},
    "qqp question1: Why? question2: Why so?",
    "not_duplicate",
  ),
  "dpr_v001_simple": (
    {
      "sentence": "Then the heron saw that he, the frog, slept, and he ate.",
      "pronoun": "he",
      "candidates": ["The heron", "the frog"],
      "label": 1,
    },
    "wsc: Then the heron saw that *he*, the frog, slept, and he ate.",
    "the frog",
  ),
  "squad_v010_allanswers_examples": (
    {
      "id": "0",
      "title": "",
      "context": 'It (the sea)  is "blue".',
      "question": "What's blue?",
      "answers": ANSWERS,
    },
    'question: What \' s blue ? context: It ( the sea ) is " blue " . ',
    "The sea ! ",
  ),
  "mrqa_race_v100_examples": (
    {
      "qid": "0",
      "context": "The sea is blue.",
      "question": "What is?",
      "answers": ["the sea", "sea"],
    },
    "question: What is ? context: The sea is blue . ",
    "the sea",
  ),
  "xsum_v110_examples": (
    {"document": "A ship sank.\nAll swam.", "summary": "Ship sinks"},
    "summarize: A ship sank.\nAll swam.",
    "Ship sinks",
  ),
  "cnn_dailymail_v310_examples": (
    {"id": "0", "article": "A ship sank.", "highlights": "Ship .\nSinks ."},
    "summarize: A ship sank.",
    "Ship .\nSinks .",
  ),
}


# Task -> the sentinel that tells it, in the vocabulary of 8,192 ids.
TASK_SENTINELS = {"record": 8191 - 4, "wsc_eval": 8191 - 7}


def plain(value):
  """Turns what TensorFlow yields into what JSON holds."""
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    return value.decode()
  return [plain(x) for x in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", GOLDEN)
def test_text_is_the_originals(run_text, case):
  found = run_text(GOLDEN[case]["task"], GOLDEN[case]["raw"])
  assert [
    {name: plain(value) for name, value in row.items()} for row in found
  ] == GOLDEN[case]["processed"]


@pytest.mark.parametrize("case", GOLDEN)
def test_text_without_task_name_is_the_originals(run_text, case):
  found = run_text(GOLDEN[case]["taskless_task"], GOLDEN[case]["raw"])
  assert [
    {name: plain(value) for name, value in row.items()} for row in found
  ] == GOLDEN[case]["processed_taskless"]


@pytest.mark.parametrize("name", LITERALS)
def test_text_of_one_row(run_text, name):
  row, inputs, targets = LITERALS[name]
  (found,) = run_text(name, [row])
  assert found["inputs"].decode() == inputs
  assert found["targets"].decode() == targets


@pytest.mark.parametrize(
  "prefix", ["", "taskless_", "task_index_", "sentinel_"]
)
@pytest.mark.parametrize("case", TASK_SENTINELS)
def test_a_variant_differs_in_name_or_sentinel_only(run_task, case, prefix):
  golden = GOLDEN[case]
  texts = golden["processed_taskless" if prefix else "processed"]
  examples = run_task(f"{prefix}{golden['task']}", golden["raw"])
  for example, text in zip(examples, texts, strict=True):
    assert example["inputs_pretokenized"].decode() == text["inputs"]
    assert example["targets_pretokenized"].decode() == text["targets"]
    is_told = example["inputs"][0] == TASK_SENTINELS[case]
    assert is_told == (prefix == "task_index_")
    assert (example["targets"][0] == 8191) == (prefix == "sentinel_")


def unlabelled(row):
  """Takes away what the public test splits have not."""
  hidden = dict(row)
  if "label" in row:
    hidden["label"] = type(row["label"])(-1)
  if isinstance(row.get("answers"), list):
    hidden["answers"] = []
  if isinstance(row.get("answers"), dict):
    hidden["answers"] = {"text": [], "answer_start": []}
  return hidden


@pytest.mark.parametrize("case", [*GOLDEN, *LITERALS])
def test_targets_are_never_empty_and_no_row_is_lost(run_text, case):
  if case in GOLDEN:
    name, rows = GOLDEN[case]["task"], GOLDEN[case]["raw"]
  else:
    name, rows = case, [LITERALS[case][0]]
  rows = rows + [unlabelled(row) for row in rows]
  if case == "wsc_train":  # Trains on the right referents alone.
    rows = [row for row in rows if row["label"] == 1]
  texts = run_text(name, rows)
  is_record = case.startswith("record")
  assert len(texts) == sum(
    max(1, len(row["answers"])) if is_record else 1 for row in rows
  )
  assert all(row["targets"] for row in texts)


def test_wsc_trains_on_right_referents_alone(run_text):
  rows = GOLDEN["wsc_train"]["raw"]
  labels = [row["label"] for row in rows]
  found = run_text("super_glue_wsc_v102_simple_train", rows)
  assert [row["label"] for row in found] == [1] * labels.count(1)
  assert 0 in labels


@pytest.mark.parametrize(
  ("index", "marked"),
  [
    (4, "He said: Good for *them*!, but them ."),
    (3, "He said: Good for *them*!, but them ."),
    (6, "He said: Good for them!, but *them* ."),
  ],
  ids=["within a word", "index too low", "a word"],
)
def test_wsc_marks_the_pronoun_at_or_behind_its_index(run_text, index, marked):
  row = {
    "text": "He said: Good for them!, but them .",
    "span1_index": 0,
    "span1_text": "He",
    "span2_index": index,
    "span2_text": "them",
    **LABELLED,
  }
  (found,) = run_text("taskless_super_glue_wsc_v102_simple_eval", [row])
  assert found["inputs"].decode() == marked


def test_wsc_marks_a_pronoun_with_its_comma(run_text):
  row = {"text": "Tom saw it, then.", "span1_index": 0, "span1_text": "Tom"}
  row |= {"span2_index": 2, "span2_text": "it,", **LABELLED}
  (found,) = run_text("super_glue_wsc_v102_simple_eval", [row])
  assert found["inputs"].decode() == "wsc: Tom saw *it,* then."


def test_inputs_are_trimmed_behind_the_sentinel_and_ended(run_task):
  row = GOLDEN["rte"]["raw"][0]
  lengths = {"inputs": 6, "targets": 3}
  (example,) = run_task("task_index_super_glue_rte_v102", [row], lengths)
  assert example["inputs"].size == 6
  assert example["inputs"][0] == 8191 - 5
  assert example["inputs"][-1] == example["targets"][-1] == 1
