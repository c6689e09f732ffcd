# SPDX-License-Identifier: Apache-2.0
"""The report of the comparison on real tasks, from files as runs leave them."""

import json
import sys

import pytest

NAMES = {
  "sst2": "taskless_glue_sst2_v002",
  "mrpc": "taskless_glue_mrpc_v002",
  "rte": "taskless_super_glue_rte_v102",
  "cb": "taskless_super_glue_cb_v102",
  "boolq": "taskless_super_glue_boolq_v102",
  "wic": "taskless_super_glue_wic_v102",
}
GOLD = {
  "sst2": {"negative": 428, "positive": 444},
  "mrpc": {"equivalent": 279, "not_equivalent": 129},
  "rte": {"entailment": 146, "not_entailment": 131},
  "cb": {"contradiction": 28, "entailment": 23, "neutral": 5},
  "boolq": {"False": 1237, "True": 2033},
  "wic": {"False": 319, "True": 319},
}
PAGE = "top\n" + "\n".join(
  f"<!-- {name} -->\nold\n<!-- end of {name} -->\nbetween"
  for name in ("best", "last", "all runs")
)


@pytest.fixture
def report():
  import real_tasks_report

  return real_tasks_report


def write_run(folder, task, scores_by_seed, stopped_at=None):
  """Writes what a run of several seeds leaves: 100 steps an evaluation."""
  trials = {}
  for seed, values in scores_by_seed.items():
    own = folder / f"trials/seed_{seed}"
    own.mkdir(parents=True)
    name = NAMES[task]
    counts = {f"{name}/labels/gold/{x}": n for x, n in GOLD[task].items()}
    lines = [{"step": 50, "split": "train", "loss": 1.0}]
    lines += [
      {"step": 100 * i, "split": "eval", f"{name}/accuracy": x, "score": x}
      | counts
      for i, x in enumerate(values, 1)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (own / "metrics.jsonl").write_text(text)
    trials[f"seed_{seed}"] = {"seed": seed, "stopped_at": stopped_at}
  (folder / "results.json").write_text(json.dumps({"trials": trials}))


def trials_of(report, folder, cell, scores_by_seed, **more):
  write_run(folder.joinpath(*cell), cell[1], scores_by_seed, **more)
  return report.read_run(folder.joinpath(*cell), cell)


def test_a_trial_keeps_its_best_and_its_last(report, tmp_path):
  cell = ("4m", "cb", "prompt")
  (trial,) = trials_of(report, tmp_path, cell, {2: [50.0, 70.0, 70.0, 60.0]})
  assert (trial.seed, trial.best, trial.best_evaluation) == (2, 70.0, 2)
  assert trial.last == 60.0
  assert trial.metrics == {"accuracy": 70.0}
  assert trial.gold == GOLD["cb"]


# By hand: MRPC (2 * 279 / (279 + 408) + 279 / 408) / 2, CB (2 * 28 / (28 + 56)
# / 3 + 28 / 56) / 2.
@pytest.mark.parametrize(
  ("task", "level"),
  [
    ("sst2", 50.917),
    ("mrpc", 74.802),
    ("rte", 52.708),
    ("cb", 36.111),
    ("boolq", 62.171),
    ("wic", 50.0),
  ],
)
def test_majority_is_the_task_own_metric(report, tmp_path, task, level):
  (trial,) = trials_of(report, tmp_path, ("1m", task, "model"), {0: [1.0]})
  assert report.majority(trial) == pytest.approx(level, abs=1e-3)


def test_tables_have_means_and_sample_deviations(report, tmp_path):
  cell = ("16m", "rte", "model")
  seeds = {0: [60.0, 50.0], 1: [62.0, 52.0], 2: [64.0, 54.0]}
  trials = trials_of(report, tmp_path, cell, seeds)
  row = report.main_table(trials, which="best").splitlines()[4]
  assert row == "| RTE | 52.7 |  |  |  |  |  | 62.0 ± 2.0 |  |  |"
  assert "52.0 ± 2.0" in report.main_table(trials, which="last")


def test_the_mean_of_the_tasks_is_taken_by_seed(report, tmp_path):
  trials = []
  for i, task in enumerate(NAMES):
    seeds = {0: [60.0 + i], 1: [70.0 + i]}
    trials += trials_of(report, tmp_path, ("1m", task, "prompt"), seeds)
  # 62.5 and 72.5.
  assert (
    report.main_table(trials, which="best")
    .splitlines()[-1]
    .startswith("| **mean** | 54.5 | 67.5 ± 7.1 |")
  )
  without_one = [x for x in trials if x.task != "wic"]
  last = report.main_table(without_one, which="best").splitlines()[-1]
  assert set(last) == set("| *mean")


def test_every_run_has_a_row_also_one_that_was_not_run(report, tmp_path):
  cell = ("1m", "wic", "prompt")
  trials = trials_of(report, tmp_path, cell, {0: [50.0, 60.0], 1: [55.0, 51.0]})
  rows = report.all_runs_table(trials).splitlines()[2:]
  assert len(rows) == 4 * 6 * 2
  own = "| 1m | WiC | prompt tuning | 60.0 (2), 55.0 (1) | 60.0, 51.0 |"
  assert own in rows
  assert "| 60m | CB | model tuning | not run |  |" in rows


def test_a_stopped_trial_is_told(report, tmp_path):
  cell = ("1m", "cb", "prompt")
  trials = trials_of(report, tmp_path, cell, {0: [50.0], 1: []}, stopped_at=150)
  (row,) = [
    x for x in report.all_runs_table(trials).splitlines() if "50.0" in x
  ]
  told = "(loss not finite at 150)"
  assert f"| 50.0 (1), none | 50.0 {told}, none {told} |" in row
  # It has a score of one seed alone.
  assert "| 50.0 |" in report.main_table(trials, which="best")


def test_marks_keep_what_is_around_them(report):
  parts = {"best": "new 1", "last": r"new \2", "all runs": "new 3"}
  text = report.refresh(PAGE, parts)
  assert text == PAGE.replace("old", "{}").format(*parts.values())
  with pytest.raises(ValueError, match="marks of 'worst' 0 times"):
    report.refresh(PAGE, {"worst": ""})


def test_the_page_is_made_again_from_the_records_alone(
  report, tmp_path, monkeypatch, capsys
):
  runs, docs = tmp_path / "runs", tmp_path / "docs"
  (docs / "results").mkdir(parents=True)
  (docs / "results.md").write_text(PAGE)
  for method, value in (("prompt", 55.0), ("model", 77.0)):
    seeds = {seed: [value, value + seed] for seed in range(3)}
    write_run(runs / "4m/boolq" / method, "boolq", seeds)
  flags = ["report", f"--docs={docs}"]
  monkeypatch.setattr(sys, "argv", [*flags, f"--runs={runs}"])
  report.main()
  page = (docs / "results.md").read_text()
  assert "| BoolQ | 62.2 |  |  | 56.0 ± 1.0 | 78.0 ± 1.0 |" in page
  assert "not run: 60m/wic/model" in capsys.readouterr().out
  assert len((docs / "results/runs.jsonl").read_text().splitlines()) == 6
  picture = docs / "results/real_tasks.png"
  assert picture.read_bytes().startswith(b"\x89PNG")
  picture.unlink()
  (docs / "results.md").write_text(PAGE)
  monkeypatch.setattr(sys, "argv", flags)
  report.main()
  assert (docs / "results.md").read_text() == page
  assert picture.exists()
