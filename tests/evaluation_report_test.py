# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from prompt_tuning import (
  batching,
  evaluate,
  evaluation_report,
  task_data,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

GOLDS = ["a", "b", "a", "b"]
# Right in 3, 3 and 2 of the rows; together, by majority, in all.
ANSWERS = ["abbb", "bbab", "aaaa"]


def make_task(name="task", default=("accuracy",), **row):
  accuracy = lambda targets, predictions: {
    "accuracy": 100 * np.mean(np.array(targets) == np.array(predictions)),
    "num_a": predictions.count("a"),
  }
  tokens = [np.array([ord(gold) + 3, 1], np.int32) for gold in GOLDS]
  ragged = batching.Ragged.from_rows(tokens)
  return task_data.EvalTask(
    name,
    batching.Examples(ragged, ragged),
    [{"targets_pretokenized": gold.encode(), **row} for gold in GOLDS],
    task_data.Scoring(
      lambda text, **unused: text, (accuracy,), default, ("a", "b")
    ),
  )


def ranked(answers, p=0.75):
  """Predictions that give their answers the probability `p`."""
  probabilities = [[p, 1 - p] if x == "a" else [1 - p, p] for x in answers]
  scores = np.log(np.array(probabilities, np.float32))
  return evaluate.Predictions(list(answers), np.max(scores, axis=1), scores)


def generated(answers, p=0.5):
  scores = np.full(len(answers), np.log(p), np.float32)
  return evaluate.Predictions(list(answers), scores, None)


def test_the_columns_are_those_of_the_papers_table():
  members = [ranked(x) for x in ANSWERS]
  table = evaluation_report.columns([make_task()], [members])
  assert list(table) == [
    "average",
    "best",
    "ensemble",
    "mean_probability",
    "prompt_1",
    "prompt_2",
    "prompt_3",
  ]
  accuracy = {name: x["task/accuracy"] for name, x in table.items()}
  assert accuracy == pytest.approx(
    {
      "average": (75 + 75 + 50) / 3,
      "best": 75,
      "ensemble": 100,
      "mean_probability": 100,
      "prompt_1": 75,
      "prompt_2": 75,
      "prompt_3": 50,
    }
  )
  assert {name: x["score"] for name, x in table.items()} == accuracy
  # All of a prompt's metrics are the best's, not the highest of each.
  assert table["best"]["task/num_a"] == 1
  # One of three dissents in every row.
  assert table["ensemble"]["task/dissent"] == pytest.approx(1 / 3)
  # Probabilities .75, .75 and .25 of the label that is likeliest on average.
  deviation = np.std([0.75, 0.75, 0.25])
  assert table["mean_probability"]["task/spread"] == pytest.approx(deviation)


def test_a_sure_minority_wins_the_mean_probability_only():
  members = [[ranked("aaaa", 0.6), ranked("aaaa", 0.6), ranked("bbbb", 0.95)]]
  table = evaluation_report.columns([make_task()], members)
  assert table["ensemble"]["task/num_a"] == 4
  assert table["mean_probability"]["task/num_a"] == 0


def test_each_task_has_its_own_best_prompt():
  tasks = [make_task("x"), make_task("y"), make_task("z", default=())]
  good, bad = ranked("abab"), ranked("baba")
  members = [[good, bad], [bad, good], [bad, good]]
  table = evaluation_report.columns(tasks, members)
  for name in "xyz":
    assert table["best"][f"{name}/accuracy"] == 100
    assert table["average"][f"{name}/accuracy"] == 50
  assert table["best"]["score"] == 100
  assert table["prompt_1"]["score"] == 50


def test_a_metric_that_is_not_a_number_is_not_the_best():
  def nan_for_constants(targets, predictions):
    return {"accuracy": np.nan if len(set(predictions)) == 1 else 10.0}

  task = make_task()
  scoring = dataclasses.replace(
    task.scoring, metric_fns=(nan_for_constants,), labels=()
  )
  members = [[generated("aaaa"), generated("abab")]]
  table = evaluation_report.columns([task._replace(scoring=scoring)], members)
  assert table["best"] == {"task/accuracy": 10.0, "score": 10.0}


def test_generated_texts_are_voted_on_only():
  members = [[generated(x) for x in ANSWERS]]
  table = evaluation_report.columns([make_task()], members)
  assert "mean_probability" not in table
  assert table["ensemble"]["task/accuracy"] == 100


def test_one_prompt_has_one_column():
  table = evaluation_report.columns([make_task()], [[ranked("abab")]])
  assert list(table) == ["eval"]
  assert table["eval"]["task/accuracy"] == 100


def test_the_table_is_aligned_and_leaves_counts_of_labels_out():
  members = [[ranked(x) for x in ANSWERS]]
  table = evaluation_report.columns([make_task()], members)
  text = evaluation_report.format_table(table)
  assert "labels/" not in text
  lines = text.splitlines()
  assert len({len(line) for line in lines}) == 1
  assert lines[0].split() == list(table)
  (accuracy,) = (line for line in lines if line.startswith("task/accuracy"))
  assert accuracy.split()[1:4] == ["66.67", "75", "100"]
  (dissent,) = (line for line in lines if line.startswith("task/dissent"))
  assert dissent.split() == ["task/dissent", "0.3333"]
  end = lines[0].index("ensemble") + len("ensemble")
  assert dissent[:end].rstrip().endswith("0.3333")


VOCABULARY = vocabulary_lib.from_bytes(259)


def test_the_row_of_one_prompt():
  task = make_task(inputs_pretokenized="é?".encode())
  member = ranked("abbb")
  rows = list(evaluation_report.prediction_rows(task, [member], VOCABULARY))
  assert rows[2] == {
    "input": "é?",
    "target": "a",
    "prediction": "b",
    "score": pytest.approx(np.log(0.75)),
    "label_scores": pytest.approx({"a": np.log(0.25), "b": np.log(0.75)}),
  }
  assert [row["target"] for row in rows] == GOLDS


def test_a_row_without_its_text_has_that_of_its_tokens():
  rows = evaluation_report.prediction_rows(
    make_task(), [generated("abbb")], VOCABULARY
  )
  assert next(rows) == {
    "input": "a",
    "target": "a",
    "prediction": "a",
    "score": pytest.approx(np.log(0.5)),
  }


def test_the_row_of_an_ensemble():
  members = [ranked(x) for x in ANSWERS]
  rows = list(
    evaluation_report.prediction_rows(make_task(), members, VOCABULARY)
  )
  first = rows[0]
  assert [x["prediction"] for x in first.pop("prompts")] == ["a", "b", "a"]
  assert first == {
    "input": "a",
    "target": "a",
    "prediction": "a",
    "dissent": pytest.approx(1 / 3),
    "averaged": "a",
    "spread": pytest.approx(np.std([0.75, 0.25, 0.75])),
    "mean_probabilities": pytest.approx({"a": 1.75 / 3, "b": 1.25 / 3}),
  }
  rows = evaluation_report.prediction_rows(
    make_task(), [generated(x) for x in ANSWERS], VOCABULARY
  )
  assert set(next(rows)) == {
    "input",
    "target",
    "prediction",
    "dissent",
    "prompts",
  }
