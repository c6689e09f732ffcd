# SPDX-License-Identifier: Apache-2.0
import numpy as np

from prompt_tuning import batching, loop, task_data, task_metrics


def test_labels_are_counted_by_gold_and_prediction():
  statistics = task_metrics.label_statistics(
    ["yes", "no", "yes", "yes"],
    ["yes", "yes", "maybe", "no"],
    labels=["no", "yes"],
  )
  assert statistics == {
    "legal_labels": 75.0,
    "labels/gold/no": 1,
    "labels/gold/yes": 3,
    "labels/predicted/no": 1,
    "labels/predicted/yes": 2,
    "labels/predicted/other": 1,
    "labels/confusion/no/no": 0,
    "labels/confusion/no/yes": 1,
    "labels/confusion/no/other": 0,
    "labels/confusion/yes/no": 1,
    "labels/confusion/yes/yes": 1,
    "labels/confusion/yes/other": 1,
  }
  shown = loop.format_scores({f"t/{k}": v for k, v in statistics.items()})
  assert shown == "t/legal_labels 75"


def test_only_tasks_with_labels_have_statistics():
  hits = lambda targets, predictions: {"hits": np.sum(targets == predictions)}
  empty = batching.Ragged.from_rows([])
  rows = [{"targets_pretokenized": text} for text in (b"ab", b"bc")]
  for labels in ((), ("ab", "bc")):
    scoring = task_data.Scoring(lambda text, **_: text, (hits,), (), labels)
    task = task_data.EvalTask(
      "task", batching.Examples(empty, empty), rows, scoring
    )
    scores = task_metrics.score(task, ["ab", "x"])
    assert scores["hits"] == 0
    assert scores.get("legal_labels") == (50 if labels else None)
