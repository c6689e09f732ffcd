# SPDX-License-Identifier: Apache-2.0
"""Shows that a prompt learns, and that what the frozen model knows matters.

    python -m prompt_tuning.demo

The same prompts, of three seeds, are tuned on a small pretrained T5 and, as a
control, on the same network with random weights. The validation sentences are
told by words that training never shows, so that a prompt can carry them over
only by what the frozen model knows of words. `demo.png` in MODEL_DIR shows
both beside the pretrained model without a prompt. All choose among the labels.
"""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import NamedTuple

from etils import epath
from matplotlib import figure

from prompt_tuning import configuration, evaluation_report, trials

_PLAIN, _PRETRAINED, _RANDOM = (
  "no prompt",
  "prompt, pretrained",
  "prompt, random",
)
_COLOURS = {_PLAIN: "#888888", _PRETRAINED: "#2166ac", _RANDOM: "#b2182b"}


class Point(NamedTuple):
  """Accuracy at a step, in percent.

  Attributes:
    step: which.
    mean: over the seeds.
    sd: sample standard deviation over the seeds; None of one.
  """

  step: int
  mean: float
  sd: float | None


def demo(
  *,
  model_dir: str,
  base: str,
  train_steps: int,
  train_fn: Callable[..., trials.State],
  evaluate_fn: Callable[..., Mapping[str, evaluation_report.Scores]],
) -> None:
  """Tunes, compares and draws; ends early if SIGTERM ends a training.

  Args:
    model_dir: gets the runs `pretrained`, `random` and `no_prompt`, and
      `demo.png`.
    base: the pretrained base.
    train_steps: of each training.
    train_fn: `train.train`, which is called with folder and base.
    evaluate_fn: `eval.evaluate`, which is called with folder, base and prompt.
  """
  print("1/3  the pretrained model without a prompt", flush=True)
  (plain,) = evaluate_fn(
    eval_output_dir=f"{model_dir}/no_prompt",
    checkpoint_path=base,
    prompt_file=None,
  ).values()
  for title, name, path in (
    ("2/3  prompts on the pretrained model", "pretrained", base),
    ("3/3  the control: prompts on random weights", "random", None),
  ):
    print(title, flush=True)
    state = train_fn(
      model_dir=f"{model_dir}/{name}", initial_checkpoint_path=path
    )
    if int(state.step) < train_steps:
      print("the same command goes on from here", flush=True)
      return
  curves = {
    _PRETRAINED: read_curve(epath.Path(model_dir) / "pretrained"),
    _RANDOM: read_curve(epath.Path(model_dir) / "random"),
  }
  path = epath.Path(model_dir) / "demo.png"
  with path.open("wb") as file:
    draw(plain["score"], curves).savefig(file, dpi=150, format="png")
  print(summary(plain["score"], curves))
  print(f"{path} shows it")


def read_curve(folder: epath.Path) -> list[Point]:
  """Reads the scores of a run, of one seed or several, from its log."""
  text = (folder / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [
    Point(
      line["step"],
      line.get("mean/score", line.get("score")),
      line.get("sd/score"),
    )
    for line in lines
    if "mean/score" in line or "score" in line
  ]


def summary(plain: float, curves: Mapping[str, Sequence[Point]]) -> str:
  """Writes the accuracies at the end.

  accuracy on sentences with words that training never shows:
    no prompt            50.0 %
    prompt, pretrained   82.1 % +- 1.5
    prompt, random       49.8 % +- 0.4

  The deviation of one seed is left out.
  """
  rows = [
    "accuracy on sentences with words that training never shows:",
    f"  {_PLAIN:<19} {plain:5.1f} %",
  ]
  for name, points in curves.items():
    last = points[-1]
    deviation = "" if last.sd is None else f" +- {last.sd:.1f}"
    rows.append(f"  {name:<19} {last.mean:5.1f} %{deviation}")
  return "\n".join(rows)


def draw(plain: float, curves: Mapping[str, Sequence[Point]]) -> figure.Figure:
  """Draws the accuracies at the end beside their way there."""
  picture = figure.Figure(figsize=(9, 3.8), layout="constrained")
  bars, lines = picture.subplots(1, 2, width_ratios=(1, 1.6), sharey=True)
  heights: dict[str, tuple[float, float | None]] = {_PLAIN: (plain, None)} | {
    name: (points[-1].mean, points[-1].sd) for name, points in curves.items()
  }
  for i, (name, (mean, sd)) in enumerate(heights.items()):
    bars.bar(i, mean, yerr=sd, color=_COLOURS[name], capsize=4)
    bars.text(i, 3, f"{mean:.0f}", ha="center", color="white", size=14)
  names = [name.replace(", ", "\n") for name in heights]
  bars.set_xticks(range(len(heights)), names)
  bars.set_ylabel("accuracy on unseen words (%)")
  for name, points in curves.items():
    steps = [point.step for point in points]
    means = [point.mean for point in points]
    lines.plot(steps, means, color=_COLOURS[name], label=name)
    low, high = (
      [point.mean + sign * (point.sd or 0) for point in points]
      for sign in (-1, 1)
    )
    lines.fill_between(steps, low, high, color=_COLOURS[name], alpha=0.2)
  lines.axhline(plain, color=_COLOURS[_PLAIN], linestyle="--", label=_PLAIN)
  lines.set(xlabel="steps", ylim=(0, 100))
  lines.legend(loc="lower right", fontsize=8, frameon=False)
  for axes in (bars, lines):
    axes.spines[["top", "right"]].set_visible(False)
  return picture


if __name__ == "__main__":
  configuration.run("prompt_tuning.demo.demo", default_file="gin/runs/demo.gin")
