# SPDX-License-Identifier: Apache-2.0
"""ROUGE, worked out by hand."""

from prompt_tuning.tasks import rouge
import pytest


def test_by_hand():
  target, prediction = "The cat sat on the mat.", "the cat on a mat"
  values = rouge.rouge([target], [prediction])
  # Common words: the, cat, on, mat, of 6 and 5; common pairs: the cat.
  assert values["rouge1"] == pytest.approx(100 * 2 * 4 / 11)
  assert values["rouge2"] == pytest.approx(100 * 2 * 1 / 9)
  assert values["rougeLsum"] == pytest.approx(100 * 2 * 4 / 11)


def test_lsum_matches_each_sentence_with_the_union_of_all():
  # Lin (2004), sec. 3.2: w1 w2 of the first, w1 w3 w5 of the second: 4 of 5.
  target = "w1 w2 w3 w4 w5"
  prediction = "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"
  values = rouge.rouge([target], [prediction])
  assert values["rougeLsum"] == pytest.approx(100 * 2 * 4 / 15)


def test_lsum_ignores_the_order_of_sentences_but_not_of_words():
  target = "a b c\nd e f"
  assert rouge.rouge([target], ["d e f\na b c"])["rougeLsum"] == 100
  assert rouge.rouge([target], ["c b a\nf e d"])["rougeLsum"] < 50


def test_nothing_in_common_is_zero():
  values = rouge.rouge(["a b", "c"], ["x y", ""])
  assert values == {"rouge1": 0, "rouge2": 0, "rougeLsum": 0}


def test_values_are_means_over_rows():
  values = rouge.rouge(["one two", "three four"], ["one two", "five"])
  assert values == {"rouge1": 50, "rouge2": 50, "rougeLsum": 50}
