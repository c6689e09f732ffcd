# SPDX-License-Identifier: Apache-2.0
"""The table of scorings, default metrics and the SuperGLUE average."""

import subprocess
import sys

from prompt_tuning.tasks import labels, scores
import pytest

RESULTS = {
  "taskless_super_glue_boolq_v102_examples": {"accuracy": 80.0},
  "super_glue_cb_v102": {"mean_3class_f1": 90.0, "accuracy": 92.0},
  "super_glue_copa": {"accuracy": 70.0},
  "super_glue_multirc_v102": {"f1": 60.0, "exact_match": 20.0},
  "super_glue_record_v102": {"em": 81.0, "f1": 83.0},
  "task_index_super_glue_rte_v102": {"accuracy": 75.0},
  "super_glue_wic_v102": {"accuracy": 65.0},
  "super_glue_wsc_v102_simple_eval": {"accuracy": 66.0},
}


def test_super_glue_average_is_the_mean_of_eight_means():
  wanted = (80 + 91 + 70 + 40 + 82 + 75 + 65 + 66) / 8
  assert scores.super_glue_average(RESULTS) == wanted


def test_super_glue_average_needs_all_tasks():
  results = {k: v for k, v in RESULTS.items() if "_wic_" not in k}
  with pytest.raises(ValueError, match="lack super_glue_wic: found super_glue"):
    scores.super_glue_average(results)


def test_default_score_needs_its_metrics():
  with pytest.raises(ValueError, match="lack accuracy: found mean_3class_f1"):
    scores.default_score("super_glue_cb", {"mean_3class_f1": 90.0})


def test_a_task_without_public_labels_has_no_default_score():
  with pytest.raises(ValueError, match="no public labels"):
    scores.default_score("super_glue_axb_v102", {})


def test_an_unknown_task_is_an_error():
  with pytest.raises(ValueError, match="'glue_rta_v002' has no scoring"):
    scores.scoring("glue_rta_v002")


@pytest.mark.parametrize("stem", scores.SCORINGS)
def test_default_metrics_are_computed(stem):
  scoring = scores.SCORINGS[stem]
  target = {"answers": ["sea"], "label": 1, "idx/question": 0}
  target |= {"idx/passage": 0, "idx/query": 0, "targets_pretokenized": "sea"}
  texts = labels.LABELS.get(stem, ("0.2", "4.8"))
  targets, predictions = (
    [
      scoring.postprocess_fn(text, example=target, is_target=is_target)
      for text in texts
    ]
    for is_target in (True, False)
  )
  found = {}
  for metric_fn in scoring.metric_fns:
    found |= metric_fn(targets, predictions)
  assert set(scoring.default) <= set(found)
  assert bool(scoring.default) == bool(scoring.metric_fns)


@pytest.mark.parametrize(
  ("name", "stem"),
  [
    ("taskless_glue_rte_v002_examples", "glue_rte"),
    ("super_glue_wsc_v102_simple_eval", "super_glue_wsc"),
    ("task_index_dpr_v001_simple", "dpr"),
    ("glue_mrpc_from_qqp_v002", "glue_mrpc_from_qqp"),
    ("squad_v010_allanswers_examples", "squad"),
    ("mrqa_race_v100_examples", "mrqa_race"),
    ("sentinel_super_glue_cb_v102", "super_glue_cb"),
    ("glue_stsb", "glue_stsb"),
  ],
)
def test_stem(name, stem):
  assert labels.stem(name) == stem
  assert stem in scores.SCORINGS


@pytest.mark.parametrize(
  ("name", "texts"),
  [
    ("taskless_super_glue_rte_v102", ("entailment", "not_entailment")),
    ("super_glue_multirc_v102", ("False", "True")),
    ("sentinel_super_glue_wic", ("<extra_id_0> False", "<extra_id_0> True")),
    # The model answers as it was trained to.
    ("glue_mrpc_from_qqp_v002", ("not_duplicate", "duplicate")),
    ("super_glue_record_v102", ()),
    ("somebody_elses_task", ()),
  ],
)
def test_label_texts(name, texts):
  found = scores.find_scoring(name)
  assert (found.labels if found else ()) == texts


@pytest.mark.parametrize("stem", scores.SCORINGS)
def test_every_label_has_a_value_of_its_own(stem):
  scoring = scores.SCORINGS[stem]
  found = [
    scoring.postprocess_fn(text, example={}, is_target=False)
    for text in scoring.labels
  ]
  numbers = [x["value"] if isinstance(x, dict) else x for x in found]
  assert numbers == list(range(len(scoring.labels)))


def test_words_of_class_label_initialisation():
  words = ("commonsense", "pronoun", "resolution")
  assert labels.initial_words("super_glue_wsc_v102_simple_train") == words
  assert labels.initial_words("glue_sst2_v200") == ("negative", "positive")
  assert labels.initial_words("glue_stsb_v200") == ()


def test_scoring_imports_nothing_that_delays_a_start():
  slow = {"seqio", "sklearn", "tensorflow", "tensorflow_datasets"}
  code = (
    "import sys, prompt_tuning.tasks.scores\n"
    f"print(sorted({slow} & set(sys.modules)))"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  )
  assert run.stdout.strip() == "[]"
