# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page, which needs no other file and no network."""

from collections.abc import Collection, Iterator, Sequence
import html

import numpy as np

from prompt_tuning.interpret import charts, style
from prompt_tuning.interpret.report import (
  Neighbour,
  Position,
  PromptReport,
  Report,
)
from prompt_tuning.interpret.text import describe

# The words come from files of others: whatever they say, nothing is loaded.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIMILARITIES = {
  "average_token": "Cosine of the mean positions",
  "per_token": "Mean cosine of all pairs of positions",
}
_SPACE = "\u2581"  # SentencePiece's mark of a word's beginning.


def render(report: Report) -> str:
  """Writes the page."""
  num_prompts = len(report.prompts)
  title = "What the prompt says" if num_prompts == 1 else "What prompts say"
  parts = [
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    f"<title>{title}</title><style>{style.CSS}</style></head><body>",
    f"<header><h1>{title}</h1>",
    f'<p class="soft">Base {_escape(report.base)}: {report.vocabulary_size:,}'
    f" tokens, mean norm {report.vocabulary_norm:.4g}. Nearest means by cosine"
    " in its embedding table.</p></header><main>",
  ]
  if num_prompts > 1:
    parts += _overview(report)
  for i, prompt in enumerate(report.prompts):
    parts += _section(prompt, report, f"prompt-{i}")
  return "".join([*parts, "</main></body></html>\n"])


def _escape(text: str) -> str:
  return html.escape(text)


def _overview(report: Report) -> Iterator[str]:
  """Yields links to the prompts, a line on each, and their similarities."""
  yield '<div class="scroll"><table><thead><tr><th>Prompt</th>'
  heads = ("positions", "norm", "nearest", "tightness", "duplicates", "drift")
  yield "".join(f'<th class="number">{x}</th>' for x in heads)
  yield "</tr></thead><tbody>"
  for i, prompt in enumerate(report.prompts):
    yield f'<tr><td><a href="#prompt-{i}">{_escape(prompt.name)}</a></td>'
    values = [str(len(prompt.positions)), *_averages(prompt)]
    yield "".join(f'<td class="number">{x}</td>' for x in values)
    yield "</tr>"
  yield "</tbody></table></div><h3>Similarity of the prompts</h3>"
  names = [prompt.name for prompt in report.prompts]
  for measure, matrix in report.similarities.items():
    yield f'<p class="soft">{_SIMILARITIES[measure]}</p>'
    yield from _matrix(names, matrix)


def _averages(prompt: PromptReport) -> list[str]:
  """Returns the numbers that stand for a prompt, in the overview's order."""
  drift = [x.drift for x in prompt.positions if x.drift is not None]
  return [
    f"{np.mean([x.norm for x in prompt.positions]):.4g}",
    f"{np.mean([x.neighbours[0].cosine for x in prompt.positions]):.3f}",
    f"{np.mean([x.tightness for x in prompt.positions]):.3f}",
    str(prompt.num_duplicates),
    f"{np.mean(drift):.3f}" if drift else "unknown",
  ]


def _matrix(
  names: Sequence[str], matrix: Sequence[Sequence[float]]
) -> Iterator[str]:
  limit = charts.heat_limit(matrix)
  yield '<div class="scroll"><table class="matrix"><tr><th></th>'
  yield "".join(f"<th>{_escape(name)}</th>" for name in names)
  yield "</tr>"
  for name, row in zip(names, matrix, strict=True):
    yield f"<tr><th>{_escape(name)}</th>"
    for value in row:
      red, green, blue, opacity = charts.colour(value, limit)
      shade = f"{red * 255:.0f},{green * 255:.0f},{blue * 255:.0f}"
      # Half as opaque as in a heat map, for the number must be read.
      yield (
        f'<td class="number" style="background:rgba({shade},'
        f'{opacity / 2:.2f})">{value:.3f}</td>'
      )
    yield "</tr>"
  yield "</table></div>"


def _section(
  prompt: PromptReport, report: Report, anchor: str
) -> Iterator[str]:
  """Yields all on one prompt."""
  yield f'<section id="{anchor}"><h2>{_escape(prompt.name)}</h2>'
  facts = [
    f"{name} {value}"
    for name, value in prompt.metadata.items()
    if name != "base_id"
  ]
  yield f'<p class="soft">{_escape(" · ".join(facts))}</p>'
  yield from _tiles(prompt, report)
  yield "<h3>In its nearest words</h3>"
  yield '<p class="words">'
  for i, position in enumerate(prompt.positions):
    yield _word(i, position)
  yield "</p>"
  yield from _labels(prompt)
  yield from _bars(prompt, report)
  yield from _history(prompt)
  yield from _cosines(prompt)
  yield from _duplicates(prompt)
  yield from _table(prompt)
  yield "</section>"


def _tiles(prompt: PromptReport, report: Report) -> Iterator[str]:
  """Yields the numbers to see first, each with what to compare it with."""
  norm, nearest, tight, duplicates, drift = _averages(prompt)
  length = len(prompt.positions)
  control = report.random
  tiles = [
    (norm, f"mean norm; {report.vocabulary_norm:.4g} in the vocabulary"),
    (nearest, f"cosine to the nearest; {control.nearest:.3f} at random"),
    (tight, f"tightness of clusters; {control.tightness:.3f} at random"),
    (
      f"{report.num_tight(prompt)}/{length}",
      "positions tighter than 95% of random vectors",
    ),
    (f"{duplicates}/{length}", "positions share their nearest word"),
  ]
  if prompt.since:
    tiles.append((drift, f"drift in norms, from {prompt.since}"))
  yield '<div class="tiles">'
  for value, caption in tiles:
    yield (
      f'<div class="tile"><b>{_escape(value)}</b>'
      f"<span>{_escape(caption)}</span></div>"
    )
  yield "</div>"


def _piece(piece: str, cosine: str, *, is_label: bool, title: str) -> str:
  """Writes a piece; its mark of a word's beginning is dim."""
  text = _escape(piece).replace(_SPACE, f"<i>{_SPACE}</i>")
  style_class = "piece label" if is_label else "piece"
  number = f"<small>{cosine}</small>" if cosine else ""
  hover = f' title="{_escape(title)}"' if title else ""
  return f'<span class="{style_class}"{hover}>{text}{number}</span>'


def _word(i: int, position: Position) -> str:
  near = ", ".join(f"{x.piece} {x.cosine:.2f}" for x in position.neighbours)
  return _piece(
    position.neighbours[0].piece,
    "",
    is_label=bool(position.labels),
    title=f"{i}: {near}",
  )


def _labels(prompt: PromptReport) -> Iterator[str]:
  if prompt.labels:
    yield "<h3>Class labels</h3><ul>"
    for label in prompt.labels:
      yield f"<li>{_escape(describe(label))}</li>"
    yield "</ul>"


def _figure(svg: str, caption: str, style_class: str = "") -> str:
  return (
    f'<figure class="{style_class}"><figcaption>{_escape(caption)}'
    f"</figcaption>{svg}</figure>"
  )


def _marked(prompt: PromptReport) -> Collection[int]:
  return {i for i, x in enumerate(prompt.positions) if x.labels}


def _bars(prompt: PromptReport, report: Report) -> Iterator[str]:
  """Yields norm, tightness and drift by position."""
  yield "<h3>By position</h3>"
  if prompt.labels:
    yield '<p class="soft">Positions near a class label are orange.</p>'
  vocabulary = (report.vocabulary_norm, "mean of the vocabulary")
  limit = (report.random.tightness_95, "95% of random vectors are below")
  rows = [
    ("Norm; the dashed line is the vocabulary's mean", "norm", vocabulary),
    (
      "Tightness: mean cosine between the neighbours; 95% of random vectors are"
      " below the dashed line",
      "tightness",
      limit,
    ),
    (f"Drift from {prompt.since}, in norms of that", "drift", None),
  ]
  for caption, name, reference in rows:
    values = [getattr(x, name) for x in prompt.positions]
    if None not in values:
      chart = charts.bars(
        values, label=caption, reference=reference, marked=_marked(prompt)
      )
      yield _figure(chart, caption)


def _history(prompt: PromptReport) -> Iterator[str]:
  """Yields drift and norm over the steps that were saved."""
  if len(prompt.history) < 2:
    return
  steps = [x.step for x in prompt.history]
  yield "<h3>During training</h3>"
  drift = [x.drift for x in prompt.history]
  caption = f"Mean drift from {prompt.since}, in norms of that"
  yield _figure(charts.line(steps, drift, label=caption), caption)
  norm = [x.norm for x in prompt.history]
  yield _figure(charts.line(steps, norm, label="Mean norm"), "Mean norm")


def _cosines(prompt: PromptReport) -> Iterator[str]:
  if len(prompt.positions) > 1:
    caption = "Cosine between positions; full colour is the largest of a pair"
    yield "<h3>Similarity of the positions</h3>"
    chart = charts.heat_map(prompt.cosines, label=caption)
    yield _figure(chart, caption, "square")


def _duplicates(prompt: PromptReport) -> Iterator[str]:
  if not prompt.duplicates:
    return
  yield "<h3>Duplicates</h3>"
  yield (
    '<p class="soft">Nearest words that several positions share: room to'
    " spare, or no order of the positions (Lester et al., 2021, sec. 7).</p>"
  )
  yield '<div class="scroll"><table>'
  for piece, positions in prompt.duplicates.items():
    word = _piece(piece, "", is_label=False, title="")
    where = ", ".join(map(str, positions))
    yield (
      f'<tr><td>{word}</td><td class="number">{len(positions)} times</td>'
      f'<td class="soft">{where}</td></tr>'
    )
  yield "</table></div>"


def _table(prompt: PromptReport) -> Iterator[str]:
  """Yields a row for each position."""
  yield '<h3>All positions</h3><table class="positions"><thead><tr><th>#</th>'
  yield '<th class="number">norm</th>'
  has_drift = prompt.positions[0].drift is not None
  if has_drift:
    yield '<th class="number">drift</th>'
  yield '<th class="number">tightness</th><th>nearest, with cosine</th>'
  yield "</tr></thead><tbody>"
  for i, x in enumerate(prompt.positions):
    numbers = [f"{x.norm:.4g}", f"{x.tightness:.3f}"]
    if has_drift:
      numbers.insert(1, f"{x.drift:.3f}")
    cells = "".join(f'<td class="number">{n}</td>' for n in numbers)
    row_class = ' class="label"' if x.labels else ""
    yield f"<tr{row_class}><td>{i}</td>{cells}<td>{_neighbours(x)}</td></tr>"
  yield "</tbody></table>"


def _neighbours(position: Position) -> str:
  bare = {label.casefold() for label in position.labels}

  def is_label(neighbour: Neighbour) -> bool:
    return neighbour.piece.strip(_SPACE).casefold() in bare

  return "".join(
    _piece(x.piece, f"{x.cosine:.2f}", is_label=is_label(x), title="")
    for x in position.neighbours
  )
