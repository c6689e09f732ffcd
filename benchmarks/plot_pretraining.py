# SPDX-License-Identifier: Apache-2.0
"""Draws the validation losses of the family that docs/pretraining.md is about.

    python benchmarks/plot_pretraining.py

Reads `docs/pretraining/<size>_<stage>.jsonl`, the `metrics.jsonl` of each run,
and writes `docs/pretraining/curves.png`.
"""

import json
import pathlib

from matplotlib import figure

FOLDER = pathlib.Path(__file__).parents[1] / "docs/pretraining"
STAGES = {"span": "span corruption", "lm": "LM adaptation"}


def validation_losses(path: pathlib.Path) -> list[tuple[int, float]]:
  """Returns step and loss per target token of each evaluation."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    (line["step"], value)
    for line in lines
    if line["split"] == "eval"
    for name, value in line.items()
    if name.endswith("/loss")
  ]


def main() -> None:
  """Draws both stages of all sizes and prints the last losses."""
  sizes = sorted(
    {path.stem.split("_")[0] for path in FOLDER.glob("*_span.jsonl")},
    key=lambda size: int(size[:-1]),
  )
  picture = figure.Figure(figsize=(8, 4), layout="constrained")
  axes = picture.subplots()
  for i, size in enumerate(sizes):
    for stage, style in zip(STAGES, ("-", ":o"), strict=True):
      points = validation_losses(FOLDER / f"{size}_{stage}.jsonl")
      label = f"{size}, {STAGES[stage]}"
      axes.plot(*zip(*points, strict=True), style, color=f"C{i}", label=label)
      print(f"{label}: {points[-1][1]:.3f} at step {points[-1][0]}")
  axes.set(xlabel="step", ylabel="validation loss per target token")
  axes.legend(fontsize=8, frameon=False)
  axes.spines[["top", "right"]].set_visible(False)
  picture.savefig(FOLDER / "curves.png", dpi=120)


if __name__ == "__main__":
  main()
