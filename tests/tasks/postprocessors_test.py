# SPDX-License-Identifier: Apache-2.0
"""Post-processed targets and predictions against the original's."""

import json
import pathlib

import numpy as np
from prompt_tuning.tasks import postprocessors, scores
import pytest

GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1] / "goldens" / "data_text_to_text.json"
  ).read_text()
)
CASES = [case for case in GOLDEN if "predictions" in GOLDEN[case]]


def plain(value):
  if isinstance(value, dict):
    return {name: plain(x) for name, x in value.items()}
  return list(value) if isinstance(value, tuple) else value


def example_of(row):
  """Gives a processed row the form in which seqio hands it over."""
  example = {
    name: np.asarray(value) for name, value in row.items() if name != "answers"
  }
  if "answers" in row:
    answers = [answer.encode() for answer in row["answers"]]
    example["answers"] = np.array(answers, object)
  return example | {
    "inputs_pretokenized": row["inputs"].encode(),
    "targets_pretokenized": row["targets"].encode(),
  }


@pytest.mark.parametrize("case", CASES)
def test_values_are_the_originals(case):
  golden = GOLDEN[case]
  postprocess_fn = scores.scoring(golden["task"]).postprocess_fn
  examples = [example_of(row) for row in golden["processed"]]
  targets = [
    postprocess_fn(row["targets"], example=example, is_target=True)
    for row, example in zip(golden["processed"], examples, strict=True)
  ]
  predictions = [
    postprocess_fn(output, example=example, is_target=False)
    for output, example in zip(golden["predictions"], examples, strict=True)
  ]
  assert list(map(plain, targets)) == golden["postprocessed_targets"]
  assert list(map(plain, predictions)) == golden["postprocessed_predictions"]


@pytest.mark.parametrize(
  ("output", "label"),
  [("duplicate", 1), ("not_duplicate", 0), ("equivalent", 1), ("same", -1)],
)
def test_a_qqp_model_is_scored_on_mrpc(output, label):
  postprocess_fn = scores.scoring("glue_mrpc_from_qqp_v002").postprocess_fn
  assert postprocess_fn(output, example={}, is_target=False) == label


@pytest.mark.parametrize(
  ("is_target", "value"), [(True, ["the sea", "sea"]), (False, "the sea")]
)
def test_all_answers_are_targets(is_target, value):
  example = {"answers": np.array([b"the sea", b"sea"], object)}
  postprocess_fn = scores.scoring("mrqa_race_v100_examples").postprocess_fn
  found = postprocess_fn("the sea", example=example, is_target=is_target)
  assert found == value


@pytest.mark.parametrize(
  "output", ["entailment", "<extra_id_0> entailment", "<extra_id_0>entailment"]
)
def test_the_sentinel_before_a_prediction_is_dropped(output):
  postprocess_fn = scores.scoring("sentinel_glue_rte_v002").postprocess_fn
  assert postprocess_fn(output, example={}, is_target=False) == 0


def test_texts_are_kept_for_the_log():
  example = {"inputs_pretokenized": b"sentence: \xc3\xa9"}
  logged = postprocessors.with_texts(
    "abc",
    postprocess_fn=postprocessors.identity,
    example=example,
    is_target=True,
  )
  assert logged == ("abc", "abc", "sentence: \u00e9")


@pytest.mark.parametrize(
  ("output", "referent", "expected"),
  [
    ("the dog", "Dog", 1),
    ("the big dog", "dog", 1),
    ("dog", "the big dog", 1),
    ("big dog", "small dog", 0),
    ("Bob", "Bob's dog", 0),
    ("Bob's dog", "Bob", 0),
    ("Bob's", "Bob's dog", 1),
    ("the", "dog", -1),
  ],
)
def test_a_referent_is_that_of_the_example_by_its_words(
  output, referent, expected
):
  example = {"label": 1, "targets_pretokenized": referent}
  found = postprocessors.wsc(output, example=example, is_target=False)
  assert found == expected
