# SPDX-License-Identifier: Apache-2.0
"""The words of each task's labels: targets, ranked candidates, initial prompt.

A task's *stem* is its name without variant and version: `glue_rte` for
`taskless_glue_rte_v002_examples`.
"""

from collections.abc import Mapping
import re

_NLI = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_BOOL = ("False", "True")

# Stem -> text of label 0, label 1, ... as tensorflow_datasets numbers them.
LABELS: Mapping[str, tuple[str, ...]] = {
  "demo_sentiment": ("negative", "positive"),
  "glue_ax": _MNLI,
  "glue_cola": ("unacceptable", "acceptable"),
  "glue_mnli": _MNLI,
  "glue_mnli_matched": _MNLI,
  "glue_mnli_mismatched": _MNLI,
  "glue_mrpc": ("not_equivalent", "equivalent"),
  "glue_mrpc_from_qqp": ("not_equivalent", "equivalent"),
  "glue_qnli": _NLI,
  "glue_qqp": ("not_duplicate", "duplicate"),
  "glue_qqp_from_mrpc": ("not_duplicate", "duplicate"),
  "glue_rte": _NLI,
  "glue_sst2": ("negative", "positive"),
  "glue_wnli": ("not_entailment", "entailment"),
  "super_glue_axb": _NLI,
  "super_glue_axg": _NLI,
  "super_glue_boolq": _BOOL,
  "super_glue_cb": ("entailment", "contradiction", "neutral"),
  "super_glue_copa": ("choice1", "choice2"),
  "super_glue_multirc": _BOOL,
  "super_glue_rte": _NLI,
  "super_glue_wic": _BOOL,
}

# Class-label initialisation of tasks that generate text has no labels to use;
# Lester et al. (2021), appendix A.1, took words of the task's name.
_INITIAL_WORDS: Mapping[str, tuple[str, ...]] = {
  "super_glue_record": (
    "commonsense",
    "reasoning",
    "reading",
    "comprehension",
  ),
  "super_glue_wsc": ("commonsense", "pronoun", "resolution"),
}


def stem(task_name: str) -> str:
  """Strips variant and version: `taskless_dpr_v001_simple` gives `dpr`."""
  name = re.sub(r"^(taskless|task_index|sentinel)_", "", task_name)
  return re.sub(r"_v\d+(_.*)?$", "", name)


def initial_words(task_name: str) -> tuple[str, ...]:
  """Returns the texts of class-label initialisation, empty if there are none.

  Args:
    task_name: name of a registered task, or its stem.
  """
  name = stem(task_name)
  return LABELS.get(name, _INITIAL_WORDS.get(name, ()))
