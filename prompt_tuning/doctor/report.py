# SPDX-License-Identifier: Apache-2.0
"""The doctor's report, for a terminal."""

from collections.abc import Iterator, Mapping

from prompt_tuning import doctor
from prompt_tuning.doctor import evidence
from prompt_tuning.doctor.evidence import Answers, Line, Run


def render(run: Run) -> str:
  """Writes the verdict, the numbers that it rests on, and what to change."""
  causes = doctor.find_causes(run)
  symptoms = doctor.find_symptoms(run)
  findings = [*causes, *symptoms]
  names = [x.name for x in causes or symptoms]
  lines = [_verdict(run, names), *_signs(run)]
  for finding in findings:
    lines += [
      "",
      finding.name,
      f"  found   {finding.evidence}",
      f"  change  {finding.advice}",
    ]
  return "\n".join(lines)


def _verdict(run: Run, names: list[str]) -> str:
  if evidence.is_learned(run):
    noted = f" Noted: {', '.join(names)}." if names else ""
    return f"The prompt has learned.{noted}"
  if not doctor.find_causes(run):
    return "The prompt has not learned, and no known cause fits."
  others = f" (or: {', '.join(names[1:])})" if len(names) > 1 else ""
  return f"The prompt has not learned: {names[0]}{others}."


def _signs(run: Run) -> Iterator[str]:
  """Yields the numbers to look at, of the best evaluation and of training."""
  best = evidence.best(run)
  yield f"  step      {evidence.step(run.train[-1])} of {run.end}"
  for answers in evidence.answers(best):
    yield from _answers(answers)
  for title, name in (
    ("loss", evidence.LOSS),
    ("gradient", "grad_rms"),
    ("prompt", "trainable_rms"),
    ("clipped", "clipped"),
  ):
    if name in run.train[0]:
      before, after = (evidence.number(run.train[i], name) for i in (0, -1))
      yield f"  {title:<9} {before:.3g} at first, {after:.3g} at last"
  yield from _base(run.base)


def _answers(answers: Answers) -> Iterator[str]:
  yield f"  task      {answers.task}, at step {answers.step}"
  yield (
    f"  accuracy  {answers.accuracy:.1f}% of {answers.num_rows:.0f} rows;"
    f" always the most frequent label: {answers.majority:.1f}%"
  )
  yield f"  legal     {answers.legal:.1f}% of the outputs are labels"
  yield f"  gold      {_counts(answers.gold)}"
  yield f"  predicted {_counts(answers.predicted)}"
  if answers.outputs:
    yield f"  illegal   {_counts(answers.outputs, '%')}"


def _counts(values: Mapping[str, float], unit: str = "") -> str:
  return ", ".join(f"{name} {x:.0f}{unit}" for name, x in values.items())


def _base(line: Line) -> Iterator[str]:
  """Yields what `base_probe` has found, if it was asked."""
  for form in ("continue", "fill_in"):
    loss = evidence.number(line, f"base/{form}")
    if f"base/{form}" in line:
      exchanged = evidence.number(line, f"base/{form}_exchanged")
      yield (
        f"  base      {form.replace('_', ' ')}: {loss:.2f} nats a token,"
        f" {exchanged:.2f} with words exchanged"
      )
  if "base/sentinel" in line:
    share = evidence.number(line, "base/sentinel")
    yield f"  base      begins with <extra_id_0> with probability {share:.2f}"
