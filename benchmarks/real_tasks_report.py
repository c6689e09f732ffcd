# SPDX-License-Identifier: Apache-2.0
"""Makes the tables and the plot of docs/results.md from the runs' own files.

    python benchmarks/real_tasks_report.py --runs=runs   # after real_tasks.py
    python benchmarks/real_tasks_report.py               # the same again, later

With `--runs` it first reads `metrics.jsonl` and `results.json` of every run
that has come to its end and writes `docs/results/runs.jsonl`, a line a trial.
From that file alone it then writes `docs/results/real_tasks.png`, and the
tables between their marks in docs/results.md. Runs that are missing are named.
"""

import argparse
from collections.abc import Mapping, Sequence
import itertools
import json
import pathlib
import re
from typing import NamedTuple

from matplotlib import figure
import numpy as np
from prompt_tuning.tasks import scores

DOCS = pathlib.Path(__file__).parents[1] / "docs"
# Parameters beside the embeddings.
SIZES = {"1m": 952_192, "4m": 3_559_168, "16m": 16_523_904, "60m": 59_790_848}
# As the paper calls them, and what their default metric is.
TASKS = {
  "sst2": ("SST-2", "accuracy"),
  "mrpc": ("MRPC", "mean of F1 and accuracy"),
  "rte": ("RTE", "accuracy"),
  "cb": ("CB", "mean of F1 and accuracy"),
  "boolq": ("BoolQ", "accuracy"),
  "wic": ("WiC", "accuracy"),
}
METHODS = {"prompt": "prompt tuning", "model": "model tuning"}
COLOURS = {"prompt": "#2166ac", "model": "#b2182b"}
MEAN = "mean"  # Of the six tasks.

Cell = tuple[str, str, str]  # Size, task, method.


class Trial(NamedTuple):
  """What became of one seed.

  Attributes:
    size, task, method, seed: which.
    name: of the task, as it is registered.
    steps: of its evaluations; none if it has stopped before the first.
    scores: the default metric, in percent, at each of them.
    metrics: all metrics of the best evaluation, the first of equals.
    gold: rows of each label.
    stopped_at: the step whose loss was not finite; None if none was. It counts
      for what it had come to by then.
  """

  size: str
  task: str
  method: str
  seed: int
  name: str
  steps: list[int]
  scores: list[float]
  metrics: dict[str, float]
  gold: dict[str, int]
  stopped_at: int | None

  @property
  def cell(self) -> Cell:
    """Where it belongs."""
    return self.size, self.task, self.method

  @property
  def best(self) -> float:
    """The score of the best evaluation, which the paper reports."""
    return max(self.scores)

  @property
  def best_evaluation(self) -> int:
    """Which that was, counted from 1."""
    return self.scores.index(self.best) + 1

  @property
  def last(self) -> float:
    """The score of the last evaluation."""
    return self.scores[-1]


def cells() -> list[Cell]:
  """Lists all combinations that are to be run."""
  return list(itertools.product(SIZES, TASKS, METHODS))


def read_run(folder: pathlib.Path, cell: Cell) -> list[Trial]:
  """Reads the trials of a run that has come to its end."""
  found = json.loads((folder / "results.json").read_text())["trials"]
  return [
    _read_trial(folder / "trials" / name, cell, value["seed"], value)
    for name, value in found.items()
  ]


def _read_trial(
  folder: pathlib.Path, cell: Cell, seed: int, result: Mapping
) -> Trial:
  text = (folder / "metrics.jsonl").read_text()
  evals = [
    line
    for line in map(json.loads, text.splitlines())
    if line["split"] == "eval"
  ]
  best = max(evals, key=lambda line: line["score"], default={})
  is_task = lambda name: "/" in name
  name = next((x.split("/")[0] for x in best if is_task(x)), "")
  own = {x.removeprefix(f"{name}/"): best[x] for x in best if is_task(x)}
  gold = {
    x.removeprefix("labels/gold/"): int(count)
    for x, count in own.items()
    if x.startswith("labels/gold/")
  }
  metrics = {x: round(own[x], 4) for x in own if "/" not in x}
  return Trial(
    *cell,
    seed,
    name,
    [line["step"] for line in evals],
    [round(line["score"], 4) for line in evals],
    metrics,
    gold,
    result["stopped_at"],
  )


def majority(trial: Trial) -> float:
  """Returns the score of always giving the most frequent label."""
  scoring = scores.scoring(trial.name)
  golds = [
    scoring.labels.index(label)
    for label, count in trial.gold.items()
    for _ in range(count)
  ]
  most = scoring.labels.index(max(trial.gold, key=lambda x: trial.gold[x]))
  values: dict[str, float] = {}
  for metric_fn in scoring.metric_fns:
    values |= metric_fn(golds, [most] * len(golds))
  return scores.default_score(trial.name, values)


def majorities(trials: Sequence[Trial]) -> dict[str, float]:
  """Returns the majority level of each task, and their mean."""
  found = {trial.task: majority(trial) for trial in trials if trial.gold}
  if len(found) == len(TASKS):
    found[MEAN] = float(np.mean(list(found.values())))
  return found


def by_cell(
  trials: Sequence[Trial], *, which: str
) -> dict[Cell, dict[int, float]]:
  """Returns the scores by seed of every cell, and of the means over the tasks.

  Args:
    trials: all; those without an evaluation are left out.
    which: "best" or "last".
  """
  found: dict[Cell, dict[int, float]] = {}
  for trial in trials:
    if trial.scores:
      found.setdefault(trial.cell, {})[trial.seed] = getattr(trial, which)
  for size, method in itertools.product(SIZES, METHODS):
    own = [found.get((size, task, method), {}) for task in TASKS]
    seeds = set.intersection(*[set(x) for x in own])
    if seeds:
      found[size, MEAN, method] = {
        seed: float(np.mean([x[seed] for x in own])) for seed in sorted(seeds)
      }
  return found


def spread(values: Sequence[float]) -> tuple[float, float]:
  """Returns mean and standard deviation of a sample; 0 for one value."""
  sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
  return float(np.mean(values)), sd


def main_table(trials: Sequence[Trial], *, which: str) -> str:
  """Writes the table of tasks by sizes and methods."""
  found, levels = by_cell(trials, which=which), majorities(trials)
  columns = list(itertools.product(SIZES, METHODS))
  rows = [["task", "majority", *[f"{size} {x}" for size, x in columns]]]
  for task in (*TASKS, MEAN):
    title = TASKS[task][0] if task in TASKS else "**mean**"
    level = f"{levels[task]:.1f}" if task in levels else ""
    values = [found.get((size, task, method)) for size, method in columns]
    rows.append([title, level, *map(_text, values)])
  return _markdown(rows)


def _text(values: Mapping[int, float] | None) -> str:
  if not values:
    return ""
  mean, sd = spread(list(values.values()))
  return f"{mean:.1f} ± {sd:.1f}" if len(values) > 1 else f"{mean:.1f}"


def all_runs_table(trials: Sequence[Trial]) -> str:
  """Writes a row for every run: the best and the last score of each seed."""
  groups: dict[Cell, list[Trial]] = {}
  for trial in trials:
    groups.setdefault(trial.cell, []).append(trial)
  rows = [["size", "task", "method", "best (of which evaluation)", "last"]]
  for size, task, method in cells():
    own = groups.get((size, task, method), [])
    best = [
      f"{x.best:.1f} ({x.best_evaluation})" if x.scores else "none" for x in own
    ]
    last = [f"{x.last:.1f}" if x.scores else "none" for x in own]
    ends = [f"{x}{_stopped(trial)}" for x, trial in zip(last, own, strict=True)]
    row = [size, TASKS[task][0], METHODS[method]]
    rows.append([*row, ", ".join(best) or "not run", ", ".join(ends)])
  return _markdown(rows)


def _stopped(trial: Trial) -> str:
  if trial.stopped_at is None:
    return ""
  return f" (loss not finite at {trial.stopped_at})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  head, *body = rows
  lines = [head, ["---"] * len(head), *body]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def refresh(document: str, parts: Mapping[str, str]) -> str:
  """Puts each part between `<!-- name -->` and `<!-- end of name -->`.

  Raises:
    ValueError: if the document lacks a mark.
  """
  for name, text in parts.items():
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    document, count = re.subn(
      pattern,
      lambda match, text=text: f"{match[1]}{text}\n{match[2]}",
      document,
      flags=re.DOTALL,
    )
    if count != 1:
      raise ValueError(
        f"the document has the marks of {name!r} {count} times: write"
        f" <!-- {name} --> and <!-- end of {name} --> once"
      )
  return document


def draw(trials: Sequence[Trial]) -> figure.Figure:
  """Draws the best scores by size: a panel a task, and one of the means."""
  found, levels = by_cell(trials, which="best"), majorities(trials)
  picture = figure.Figure(figsize=(12, 5.6), layout="constrained")
  panels = picture.subplots(2, 4, sharex=True).flat
  for axes, task in zip(panels, (*TASKS, MEAN), strict=False):
    title, metric = TASKS.get(task, ("mean of the tasks", "default metric"))
    for method, name in METHODS.items():
      own = {
        SIZES[size]: spread(list(found[size, task, method].values()))
        for size in SIZES
        if (size, task, method) in found
      }
      means, sds = [x for x, _ in own.values()], [x for _, x in own.values()]
      axes.errorbar(
        list(own),
        means,
        yerr=sds,
        marker="o",
        capsize=3,
        color=COLOURS[method],
        label=name,
      )
    if task in levels:
      style = {"color": "#888888", "linestyle": "--", "label": "majority"}
      axes.axhline(levels[task], **style)
    axes.set(title=title, ylabel=f"{metric} (%)", xscale="log")
    axes.set_xticks(list(SIZES.values()), list(SIZES), minor=False)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
  *_, shown, empty = picture.axes
  empty.axis("off")
  handles, names = shown.get_legend_handles_labels()
  empty.legend(handles, names, loc="center", frameon=False)
  return picture


def main() -> None:
  """Reads the runs, if there are some, and writes what follows from them."""
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--runs", type=pathlib.Path)
  parser.add_argument("--docs", type=pathlib.Path, default=DOCS)
  args = parser.parse_args()
  records = args.docs / "results/runs.jsonl"
  if args.runs is not None:
    trials = [
      trial
      for cell in cells()
      if (args.runs.joinpath(*cell) / "results.json").exists()
      for trial in read_run(args.runs.joinpath(*cell), cell)
    ]
    lines = [f"{json.dumps(trial._asdict())}\n" for trial in trials]
    records.write_text("".join(lines))
  lines = records.read_text().splitlines()
  trials = [Trial(**json.loads(line)) for line in lines]
  draw(trials).savefig(args.docs / "results/real_tasks.png", dpi=120)
  page = args.docs / "results.md"
  parts = {
    "best": main_table(trials, which="best"),
    "last": main_table(trials, which="last"),
    "all runs": all_runs_table(trials),
  }
  page.write_text(refresh(page.read_text(), parts))
  done = {trial.cell for trial in trials}
  for cell in cells():
    if cell not in done:
      print(f"not run: {'/'.join(cell)}")
  print(parts["best"])


if __name__ == "__main__":
  main()
