# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest

from prompt_tuning import doctor
from prompt_tuning.doctor import __main__ as command
from prompt_tuning.doctor import evidence, report

KNOWN = {
  "step": 0,
  "split": "base",
  "base/continue": 4.0,
  "base/continue_exchanged": 8.0,
  "base/fill_in": 6.0,
  "base/fill_in_exchanged": 8.0,
  "base/sentinel": 0.01,
}


def train(step, loss=1.0, **values):
  """A line of training, every 20 steps, with the paper's rate."""
  return {
    "step": step,
    "split": "train",
    evidence.LOSS: loss,
    "learning_rate": 0.3,
    "grad_rms": 0.1,
    "trainable_rms": 11.0,
    "clipped": 0.2,
    **values,
  }


def confusion(yes, no, **values):
  """A line of an evaluation.

  Args:
    yes: of 100 rows with this label, those answered by yes, no, other.
    no: the same for 100 rows with that label.
    values: further metrics of the task.
  """
  line = {"step": 200, "split": "eval"}
  for gold, cells in (("yes", yes), ("no", no)):
    line[f"t/labels/gold/{gold}"] = 100.0
    for label, count in zip(("yes", "no", "other"), cells, strict=True):
      line[f"t/labels/confusion/{gold}/{label}"] = float(count)
      name = f"t/labels/predicted/{label}"
      line[name] = line.get(name, 0.0) + count
  line["t/legal_labels"] = 100 - line["t/labels/predicted/other"] / 2
  values = {name.replace("_in_", "/"): x for name, x in values.items()}
  return line | {f"t/{name}": x for name, x in values.items()}


ALL_YES = confusion((100, 0, 0), (100, 0, 0))
NOTHING = confusion((0, 0, 100), (0, 0, 100))
GOOD = confusion((90, 10, 0), (10, 90, 0))


def run(evals, lines=None, base=KNOWN, end=200):
  lines = lines or [train(20 * i, 1 / i) for i in range(1, 11)]
  return evidence.Run(lines, evals, base, end)


def names(findings):
  return [x.name for x in findings]


def test_answers_are_counted_by_label():
  (found,) = evidence.answers(confusion((80, 15, 5), (30, 60, 10)))
  assert (found.task, found.step, found.num_rows) == ("t", 200, 200)
  assert found.accuracy == 70
  assert found.majority == 50
  assert found.legal == 92.5
  assert found.error == pytest.approx(100 * math.sqrt(0.25 / 200))


@pytest.mark.parametrize(
  ("right", "is_learned"),
  # The standard error is 3.54%: 57.07% are two above the majority.
  [(57, False), (58, True)],
)
def test_a_prompt_has_learned_above_two_standard_errors(right, is_learned):
  line = confusion((right, 100 - right, 0), (100 - right, right, 0))
  assert evidence.is_learned(run([line])) == is_learned


def test_the_best_evaluation_counts():
  evals = [GOOD | {"score": 90.0}, ALL_YES | {"score": 50.0, "step": 400}]
  assert evidence.is_learned(run(evals))
  assert names(doctor.find_symptoms(run(evals)))[-1] == "past its best"


def test_without_labels_the_loss_decides():
  line = {"step": 200, "split": "eval", "t/f1": 3.0, "score": 3.0}
  for last, is_learned in ((1.79, True), (1.81, False)):
    lines = [train(20, 2.0), train(40, last)]
    assert evidence.is_learned(run([line], lines)) == is_learned


def outputs(**shares):
  return {f"outputs_in_{name}": float(x) for name, x in shares.items()}


def illegal(**values):
  """A line of an evaluation without a single label among the outputs."""
  return confusion((0, 0, 100), (0, 0, 100), **values)


def test_sentinel_tasks_are_no_advice_to_one_who_runs_them():
  line = illegal(**outputs(sentinel=80))
  own = {name.replace("t/", "sentinel_t/", 1): x for name, x in line.items()}
  for evaluation, is_advised in ((line, True), (own, False)):
    (found,) = doctor.find_causes(run([evaluation], base={}))
    assert ("sentinel_..." in found.advice) == is_advised


def rated(rate):
  return [train(step, learning_rate=rate) for step in (20, 40)]


FOREIGN = {"base/continue_exchanged": 4.3, "base/fill_in_exchanged": 6.4}
SPANS = outputs(empty=30, copied=25)


@pytest.mark.parametrize(
  ("spoiled", "expected"),
  [
    (run([illegal(token_accuracy=0.99)]), "labels cut off"),
    (run([illegal(**outputs(cut=97))]), "labels cut off"),
    (run([ALL_YES], base=KNOWN | FOREIGN), "wrong vocabulary"),
    (
      run([NOTHING], base=KNOWN | {"base/sentinel": 0.9}),
      "base not LM-adapted",
    ),
    (run([illegal(**outputs(sentinel=80))], base={}), "base not LM-adapted"),
    (run([illegal(**SPANS)]), "base not LM-adapted"),
    (run([NOTHING], 2 * [train(20, grad_rms=0.0)]), "no gradient"),
    (run([NOTHING], rated(1e-4)), "learning rate too low"),
    (run([ALL_YES], rated(9.0)), "learning rate too high"),
    (run([ALL_YES]), "one label for all"),
  ],
)
def test_each_cause_is_the_first_that_is_named(spoiled, expected):
  assert names(doctor.find_causes(spoiled))[0] == expected
  assert expected in report.render(spoiled).splitlines()[0]


def kinds(**shares):
  """A run whose illegal outputs are of these kinds, in percent."""
  return run([illegal(**outputs(**shares))])


def probed(**found):
  values = {f"base/{name}": x for name, x in found.items()}
  return run([NOTHING], base=KNOWN | FOREIGN | values)


def trained(**values):
  return run([NOTHING], [train(step, **values) for step in (20, 40)])


def legal(yes, no=0, **values):
  """A run with so many right answers to each label, and no label else."""
  return run([confusion((yes, 0, 100 - yes), (0, no, 100 - no), **values)])


def yes_to(no):
  """A run that answers yes, and to so many of the other rows too."""
  return run([confusion((100, 0, 0), (no, 100 - no, 0))])


def gold(yes):
  counts = {"t/labels/gold/yes": yes, "t/labels/gold/no": 200 - yes}
  return run([ALL_YES | counts])


def right_at_last(share):
  last = confusion((share, 100 - share, 0), (100 - share, share, 0))
  return run([GOOD | {"score": 100.0}, last])


def clipped(share):
  """A run of eight lines; of the last two updates (share + 1) / 2."""
  shares = [0.2] * 6 + [share, 1.0]
  return run([GOOD], [train(20 * i, clipped=x) for i, x in enumerate(shares)])


@pytest.mark.parametrize(
  ("expected", "make", "inside", "outside"),
  [
    ("labels cut off", lambda x: kinds(cut=x), 50, 49),
    ("labels cut off", lambda x: legal(0, token_accuracy=x), 0.91, 0.9),
    ("labels cut off", lambda x: legal(x, token_accuracy=0.99), 99, 100),
    ("wrong vocabulary", lambda x: probed(continue_exchanged=x), 4.49, 4.5),
    ("base not LM-adapted", lambda x: probed(sentinel=x), 0.5, 0.49),
    ("base not LM-adapted", lambda x: kinds(sentinel=x), 50, 49),
    ("base not LM-adapted", lambda x: kinds(empty=25, copied=x), 25, 24),
    ("no gradient", lambda x: trained(grad_rms=x), 0.99e-9, 1e-9),
    # 200 steps of 0.0055 are a tenth of the prompt's 11.
    ("learning rate too low", lambda x: trained(learning_rate=x), 54e-4, 56e-4),
    # 2.5 steps of 4.4 are the prompt's 11.
    ("learning rate too high", lambda x: trained(learning_rate=x), 4.41, 4.39),
    ("one label for all", yes_to, 90, 89),
    ("one label for all", gold, 179, 180),
    ("illegal labels", lambda x: legal(100, x), 89, 90),
    ("skewed labels", yes_to, 41, 40),
    ("skewed labels", yes_to, 89, 90),
    ("skewed labels", lambda x: legal(100, x), 1, 0),
    # Two standard errors are 7.07%.
    ("past its best", right_at_last, 82, 83),
    ("clipped updates", clipped, 0.81, 0.79),
  ],
)
def test_each_finding_begins_at_its_threshold(expected, make, inside, outside):
  found = [
    names(doctor.find_causes(x) + doctor.find_symptoms(x))
    for x in (make(inside), make(outside))
  ]
  assert [expected in x for x in found] == [True, False]


def test_a_good_run_has_no_cause_and_no_symptom():
  good = run([GOOD], [train(20 * i, 0.1) for i in range(1, 11)])
  assert doctor.find_causes(good) == []
  assert names(doctor.find_symptoms(good)) == ["plateau"]
  assert report.render(good).startswith("The prompt has learned.")


@pytest.mark.parametrize(
  ("found", "noted"),
  [
    (run([GOOD], rated(9.0)), "learning rate too high"),
    (run([GOOD], base=KNOWN | {"base/sentinel": 0.9}), "base not LM-adapted"),
  ],
)
def test_what_a_prompt_learns_in_spite_of_is_noted(found, noted):
  assert doctor.find_causes(found) == []
  assert report.render(found).startswith(
    f"The prompt has learned. Noted: {noted}"
  )


def test_rates_say_nothing_of_another_optimizer():
  other = {"learning_rate": 9.0, "clipped": math.nan}
  found = doctor.find_causes(run([ALL_YES], [train(20, **other)]))
  assert names(found) == ["one label for all"]


@pytest.mark.parametrize(
  ("losses", "expected"),
  [
    ([3.0, 2.9, 2.8, 2.7, 2.6, 2.4, 2.2, 1.9], ["still falling"]),
    ([3.0, 2.0, 1.5, 1.2, 1.0, 1.01, 1.0, 1.01], ["plateau"]),
    ([3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 0.949, 0.949], ["still falling"]),
    ([3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 0.951, 0.951], []),
    ([3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 0.989, 0.989], []),
    ([3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 0.991, 0.991], ["plateau"]),
    # Two standard errors are 0.283.
    ([3.0, 3.0, 3.0, 3.0, 1.1, 0.9, 0.81, 0.61], ["still falling"]),
    ([3.0, 3.0, 3.0, 3.0, 1.1, 0.9, 0.82, 0.62], []),
    # Too few lines to tell.
    ([3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0], []),
  ],
)
def test_the_end_of_the_loss_curve(losses, expected):
  lines = [train(20 * i, x) for i, x in enumerate(losses, 1)]
  assert names(doctor.find_symptoms(run([GOOD], lines))) == expected


@pytest.mark.parametrize(
  ("line", "lines", "expected"),
  [
    (confusion((80, 0, 20), (5, 80, 15)), None, "illegal labels"),
    (confusion((100, 0, 0), (50, 50, 0)), None, "skewed labels"),
    (GOOD, [train(20), train(40, clipped=0.97)], "clipped updates"),
  ],
)
def test_symptoms_are_told_of_a_run_that_has_learned(line, lines, expected):
  found = run([line], lines)
  assert evidence.is_learned(found)
  assert expected in names(doctor.find_symptoms(found))


def test_the_first_step_is_that_of_the_base():
  lines = [train(1_000_020), train(1_000_040)]
  late = ALL_YES | {"step": 1_000_040}
  early = ALL_YES | {"step": 1_000_000}
  base = KNOWN | {"step": 1_000_000}
  for found in (
    run([late], lines, base),
    run([early], lines, base={}),
    run([late], lines, base={}),
  ):
    assert evidence.first_step(found) == 1_000_000
  assert evidence.first_step(run([late], lines[:1], base={})) == 0


def test_a_run_under_way_is_warned_of_what_is_certain():
  lines = [train(20), train(40)]
  early = run([ALL_YES], lines, end=80)
  assert doctor.warning(early) is None
  assert doctor.warning(early._replace(end=79)).startswith("one label for all?")
  foreign = early._replace(base=KNOWN | {"base/sentinel": 0.9})
  assert doctor.warning(foreign).startswith("base not LM-adapted?")
  assert "\n" not in doctor.warning(foreign)
  slow = [train(20, learning_rate=1e-4), train(40, learning_rate=1e-4)]
  assert doctor.warning(run([ALL_YES], slow, end=1000)).startswith(
    "learning rate too low?"
  )
  # Slow too, but with enough steps to come.
  assert doctor.warning(run([ALL_YES], slow, end=20_000)) is None
  assert doctor.warning(run([GOOD], slow, end=1000)) is None
  assert doctor.warning(run([], slow, end=1000)) is None


@pytest.fixture
def write(tmp_path):
  def lines(*rows, folder="."):
    path = tmp_path / folder / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path

  return lines


def test_the_command_reports_on_a_run(write, tmp_path, capsys):
  path = write(KNOWN, train(20, 2.0), train(40, 1.0), GOOD)
  with path.open("a") as file:
    file.write('{"step": 60, "spl')  # Torn by a crash.
  command.main([str(tmp_path)])
  out = capsys.readouterr().out
  assert out.startswith("The prompt has learned.\n  step      40 of 40\n")
  assert (
    "accuracy  90.0% of 200 rows; always the most frequent label: 50" in out
  )
  assert "continue: 4.00 nats a token, 8.00 with words exchanged" in out
  assert "loss      2 at first, 1 at last" in out


def test_the_command_reports_on_each_trial(write, tmp_path, capsys):
  write(train(20), folder=".")  # The means of a run of several.
  write(train(20), GOOD, folder="trials/seed_0")
  write(train(20), ALL_YES, folder="trials/seed_1")
  command.main([str(tmp_path)])
  out = capsys.readouterr().out
  assert "seed_0: The prompt has learned." in out
  assert "seed_1: The prompt has not learned: one label for all." in out


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (None, "metrics.jsonl does not exist: give the MODEL_DIR of a run"),
    ([train(20)], "has 1 lines of training and 0 of evaluation: wait"),
    ([{"step": 20}], "is no log of a run: 'split'"),
    ([[1]], "is no log of a run"),
  ],
)
def test_a_mistake_is_one_sentence(write, tmp_path, capsys, rows, message):
  if rows is not None:
    write(*rows)
  with pytest.raises(SystemExit) as info:
    command.main([str(tmp_path)])
  assert info.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert len(error.splitlines()) == 1
