# SPDX-License-Identifier: Apache-2.0
"""Metrics against the original's values."""

import json
import pathlib

from prompt_tuning.tasks import metrics, postprocessors, scores
import pytest

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
GOLDEN = json.loads((GOLDENS / "metrics.json").read_text())
TEXTS = json.loads((GOLDENS / "data_text_to_text.json").read_text())

METRICS = {
  "accuracy": metrics.accuracy,
  "cb_mean_3class_f1": metrics.cb_f1,
  "cb_mean_3class_f1_missing_class": metrics.cb_f1,
  "cb_mean_3class_f1_with_invalid": metrics.cb_f1,
  "f1_score_with_invalid": metrics.f1,
  "matthews_corrcoef": metrics.matthews,
  "multirc_exact_match": metrics.multirc_exact_match,
  "multirc_f1_over_all_answers": metrics.multirc_f1,
  "pearson_corrcoef": metrics.pearson,
  "record_em_f1": metrics.record,
  "sequence_accuracy": metrics.sequence_accuracy,
  "spearman_corrcoef": metrics.spearman,
  "squad": metrics.squad,
  "squad_empty_after_normalizing": metrics.squad,
  "trivia_qa": metrics.trivia_qa,
}


@pytest.mark.parametrize("case", METRICS)
def test_value_is_the_originals(case):
  golden = GOLDEN[case]
  values = METRICS[case](golden["targets"], golden["predictions"])
  assert values == pytest.approx(golden["value"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
  "case", [case for case in TEXTS if "metrics" in TEXTS[case]]
)
def test_task_is_scored_as_in_the_original(case):
  golden = TEXTS[case]
  if case == "record":  # Has a query without answers: see below.
    return
  wanted = {}
  for values in golden["metrics"].values():
    wanted |= values
  found = {}
  for metric_fn in scores.scoring(golden["task"]).metric_fns:
    found |= metric_fn(
      golden["postprocessed_targets"], golden["postprocessed_predictions"]
    )
  assert found == pytest.approx(wanted, rel=1e-9)


def test_a_query_without_answers_is_an_error():
  golden = TEXTS["record"]
  with pytest.raises(ValueError, match="evaluate a split with answers"):
    metrics.record(
      golden["postprocessed_targets"], golden["postprocessed_predictions"]
    )


def test_targets_and_predictions_must_be_as_many():
  with pytest.raises(ValueError, match="shorter"):
    metrics.accuracy([1, 2], [1])


def test_logged_rows_are_scored_and_shown():
  rows = [
    postprocessors.Logged(value=1, text="positive", inputs="good"),
    postprocessors.Logged(value=0, text="negative", inputs="bad"),
  ]
  values = metrics.on_values(rows, rows[::-1], metric_fn=metrics.accuracy)
  assert values == {"accuracy": 0.0}
  text = metrics.examples(rows, rows[::-1], num_examples=1)
  assert text == (
    "inputs: good\n\ntarget: positive\n\nprediction: negative\n\n---"
  )
