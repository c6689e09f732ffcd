# SPDX-License-Identifier: Apache-2.0
"""The prompt doctor: says whether a run has learned and, if not, why.

    python -m prompt_tuning.doctor MODEL_DIR

It reads nothing but `metrics.jsonl`. The loop asks `warning` for a line while
the run goes on.
"""

from collections.abc import Iterator, Sequence

from prompt_tuning.doctor import causes, evidence, symptoms
from prompt_tuning.doctor.causes import Check
from prompt_tuning.doctor.evidence import Finding, Run

__all__ = ["Finding", "Run", "find_causes", "find_symptoms", "warning"]


def _found(checks: Sequence[Check], run: Run) -> Iterator[Finding]:
  for check in checks:
    finding = check(run)
    if finding is not None:
      yield finding


def find_causes(run: Run) -> list[Finding]:
  """Says why a run has not learned, the surest first; none if it has."""
  if evidence.is_learned(run):
    return []
  return list(_found(causes.CAUSES, run))


def find_symptoms(run: Run) -> list[Finding]:
  """Says what else is remarkable, whether it has learned or not."""
  # A prompt may learn in spite of these.
  checks: Sequence[Check] = ()
  if evidence.is_learned(run):
    checks = (causes.rate_too_high, causes.span_corruption)
  return list(_found([*checks, *symptoms.SYMPTOMS], run))


def warning(run: Run) -> str | None:
  """Says in one line what is likely to go wrong with a run under way.

  In its first half only what does not depend on how far it has come.

  Args:
    run: the lines so far, and the step at which it will end.
  """
  if not (run.train and run.evals) or evidence.is_learned(run):
    return None
  start = evidence.first_step(run)
  is_late = 2 * (evidence.step(run.train[-1]) - start) > run.end - start
  checks = causes.CAUSES if is_late else causes.EARLY
  finding = next(_found(checks, run), None)
  if finding is None:
    return None
  return f"{finding.name}? {finding.evidence}: {finding.advice}"
