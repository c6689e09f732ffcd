# SPDX-License-Identifier: Apache-2.0
"""The report as text, for a terminal."""

from collections.abc import Iterator, Sequence

import numpy as np

from prompt_tuning.interpret.report import Label, PromptReport, Report


def render(report: Report) -> str:
  """Writes the report, one block of lines for each prompt."""
  lines = [
    f"base {report.base}: {report.vocabulary_size:,} tokens, mean norm"
    f" {report.vocabulary_norm:.4g}"
  ]
  for prompt in report.prompts:
    lines += ["", *_summary(prompt, report), "", *_positions(prompt)]
  if len(report.prompts) > 1:
    lines += ["", *_similarities(report)]
  return "\n".join(lines)


def _summary(prompt: PromptReport, report: Report) -> Iterator[str]:
  """Yields what there is to say of the whole prompt."""
  length = len(prompt.positions)
  norms = [x.norm for x in prompt.positions]
  nearest = np.mean([x.neighbours[0].cosine for x in prompt.positions])
  tight = np.mean([x.tightness for x in prompt.positions])
  control = report.random
  yield f"{prompt.name}: {length} positions"
  for name, value in prompt.metadata.items():
    yield f"  {name:<11} {value}"
  yield (
    f"  norm        {np.mean(norms):.4g} on average, {min(norms):.4g} to"
    f" {max(norms):.4g}"
  )
  yield (
    f"  nearest     cosine {nearest:.3f} on average, {control.nearest:.3f} for"
    " random vectors"
  )
  yield (
    f"  tightness   {tight:.3f} on average, {control.tightness:.3f} for random"
    f" vectors; {report.num_tight(prompt)} positions above 95% of these"
  )
  yield f"  duplicates  {prompt.num_duplicates} positions{_shared(prompt)}"
  drift = [x.drift for x in prompt.positions if x.drift is not None]
  if drift:
    yield f"  drift       {np.mean(drift):.3f} norms from {prompt.since}"
  for x in prompt.history:
    yield f"  step {x.step:<6} norm {x.norm:.4g}, drift {x.drift:.3f}"
  for label in prompt.labels:
    yield f"  label       {describe(label)}"


def _shared(prompt: PromptReport) -> str:
  words = [
    f"{piece} at {_join(where)}"
    for piece, where in list(prompt.duplicates.items())[:5]
  ]
  rest = len(prompt.duplicates) - len(words)
  return (
    f": {'; '.join(words)}{f'; {rest} more' if rest else ''}" if words else ""
  )


def describe(label: Label) -> str:
  """Says in words where a label is found."""
  where = (
    f"found at {_join(label.positions)}" if label.positions else "not found"
  )
  best = (
    f"most similar position {label.best_position}"
    f" (cosine {label.best_cosine:.3f})"
  )
  text = f"{label.label}: {where}, {best}"
  if not label.started:
    return text
  fate = "persists" if label.persists else "is lost"
  return f"{text}; it began at {_join(label.started)} and {fate}"


def _join(positions: Sequence[int]) -> str:
  return ", ".join(map(str, positions))


def _positions(prompt: PromptReport) -> Iterator[str]:
  has_drift = prompt.positions[0].drift is not None
  yield f"{'':>4} {'norm':>8} {'drift':>6} {'tight':>6}  nearest"
  for i, position in enumerate(prompt.positions):
    drift = f"{position.drift:6.3f}" if has_drift else f"{'':6}"
    pieces = "  ".join(f"{x.piece} {x.cosine:.2f}" for x in position.neighbours)
    marks = f"  <- {', '.join(position.labels)}" if position.labels else ""
    yield (
      f"{i:>4} {position.norm:>8.4g} {drift} {position.tightness:6.3f} "
      f" {pieces}{marks}"
    )


def _similarities(report: Report) -> Iterator[str]:
  names = [prompt.name for prompt in report.prompts]
  width = max(map(len, names))
  for measure, matrix in report.similarities.items():
    yield f"similarity of prompts, {measure.replace('_', ' ')} cosine"
    for name, row in zip(names, matrix, strict=True):
      yield f"  {name:<{width}} {' '.join(f'{x:6.3f}' for x in row)}"
