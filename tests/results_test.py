# SPDX-License-Identifier: Apache-2.0
import json

from etils import epath
import pytest

from prompt_tuning import results, trials


def trial(name, group="", seed=0):
  return trials.Trial(name, group, seed, None, None, None)


SEEDS = [trial(f"seed_{i}", seed=i) for i in range(3)]


def write_log(folder, *evals):
  lines = [{"step": 1, "split": "train", "loss": 9.0, "score": 99.0}]
  lines += [{"split": "eval", **metrics} for metrics in evals]
  path = epath.Path(folder) / "metrics.jsonl"
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  return path


def test_a_trial_stands_for_itself_with_its_first_best_evaluation(tmp_path):
  path = write_log(
    tmp_path,
    {"step": 2, "a/f1": 0.1, "score": 1.0},
    {"step": 4, "a/f1": 0.2, "score": 3.0},
    {"step": 6, "a/f1": 0.3, "score": 3.0},
  )
  found = results.read(path, SEEDS[0], stopped_at=-1)
  assert found.step == 4
  assert found.metrics == {"a/f1": 0.2, "score": 3.0}


def test_without_a_default_metric_the_last_evaluation_counts(tmp_path):
  path = write_log(tmp_path, {"step": 2, "a/x": 0.1}, {"step": 4, "a/x": 0.0})
  found = results.read(path, SEEDS[0], stopped_at=-1)
  assert found.metrics == {"a/x": 0.0}
  assert results.table([found]) == "seed_0  no score; last evaluated at step 4"


def test_a_trial_that_stopped_before_any_evaluation_has_no_metrics(tmp_path):
  found = results.read(write_log(tmp_path), SEEDS[0], stopped_at=2)
  assert found.metrics == {}
  assert results.table([found]) == "seed_0  stopped at step 2, left out"


def test_mean_and_sample_deviation_are_over_the_seeds_of_a_group():
  scores = [
    results.Scores(trial("lr_1-seed_0", "lr_1"), {"x": 1.0, "a/labels/b": 4}),
    results.Scores(trial("lr_1-seed_1", "lr_1"), {"x": 3.0, "a/labels/b": 5}),
    results.Scores(trial("lr_2-seed_0", "lr_2"), {"x": 7.0, "a/labels/b": 6}),
  ]
  found = results.spreads(scores)
  assert found == {
    "lr_1": {"x": results.Spread(2.0, pytest.approx(2**0.5), 2)},
    "lr_2": {"x": results.Spread(7.0, None, 1)},
  }
  assert results.flatten(found) == {
    "lr_1/mean/x": 2.0,
    "lr_1/sd/x": pytest.approx(2**0.5),
    "lr_2/mean/x": 7.0,
  }
  assert results.flatten(results.spreads(scores[2:])) == {"lr_2/mean/x": 7.0}


def test_results_name_every_trial_and_leave_out_those_that_stopped(tmp_path):
  found = [
    results.Result(SEEDS[0], 400, {"score": 81.5}, -1),
    results.Result(SEEDS[1], 100, {"score": 2.0}, 107),
    results.Result(SEEDS[2], 200, {"score": 82.5}, -1),
  ]
  assert results.table(found).splitlines() == [
    "seed_0  score 81.5 at step 400",
    "seed_1  stopped at step 107, left out",
    "seed_2  score 82.5 at step 200",
    "mean 82 +- 0.7071 (sample s.d. of 2 trials)",
  ]
  results.write(str(tmp_path), found)
  written = json.loads((tmp_path / "results.json").read_text())
  assert written["trials"]["seed_1"]["stopped_at"] == 107
  assert written["trials"]["seed_0"]["stopped_at"] is None
  assert written["trials"]["seed_2"]["step"] == 200
  assert written["groups"][""]["score"] == {
    "mean": 82.0,
    "sd": pytest.approx(0.5**0.5),
    "num_trials": 2,
  }


def test_the_screen_shows_every_trial_and_a_mean_where_there_is_one():
  found = [
    results.Scores(trial("lr_1-seed_0", "lr_1"), {"x": 1.0, "a/labels/b": 4}),
    results.Scores(trial("lr_1-seed_1", "lr_1"), {"x": 3.0, "a/labels/b": 5}),
    results.Scores(trial("lr_2-seed_0", "lr_2"), {"x": 7.0, "a/labels/b": 6}),
  ]
  assert results.text(found).splitlines() == [
    "3 trials",
    "  lr_1-seed_0: x 1",
    "  lr_1-seed_1: x 3",
    "  lr_2-seed_0: x 7",
    "  lr_1 mean: x 2 +- 1.414",
  ]
  assert results.text([results.Scores(trial(""), {"x": 1.0})]) == "x 1"
