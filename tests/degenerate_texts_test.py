# SPDX-License-Identifier: Apache-2.0
import pytest

from prompt_tuning import degenerate_texts

LABELS = ("entailment", "not_entailment", "True")


@pytest.mark.parametrize(
  ("text", "source", "expected"),
  [
    ("entailment", "entailment is a word", None),
    ("True", "Is it True?", None),
    ("", "a premise", "empty"),
    (" \n", "a premise", "empty"),
    ("<extra_id_0> a premise", "a premise", "sentinel"),
    ("not_entail", "a premise", "cut"),
    ("Not_Entail", "a premise", "cut"),
    # Both the beginning of a label and a piece of the input.
    ("not", "it is not so", "cut"),
    ("A  Premise", "here is a premise of it", "copied"),
    ("entailments", "a premise", "other"),
    ("true", "a premise", "cut"),
  ],
)
def test_the_fault_of_an_output(text, source, expected):
  found = degenerate_texts.kind(text, source=source, labels=LABELS)
  assert found == expected


def test_shares_are_percent_of_all_outputs():
  outputs = ["True", "", "", "<extra_id_0>"]
  found = degenerate_texts.shares(4 * ["text"], outputs, labels=LABELS)
  assert found == {
    "outputs/empty": 50,
    "outputs/sentinel": 25,
    "outputs/cut": 0,
    "outputs/copied": 0,
    "outputs/other": 0,
  }
