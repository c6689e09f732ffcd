# SPDX-License-Identifier: Apache-2.0
"""What is wrong with predicted texts that are no label.

What a base answers that has only learnt span corruption is empty, a piece of
the input, or begins with a sentinel (Lester et al., 2021, sec. 3.2).
"""

from collections import Counter
from collections.abc import Sequence

KINDS = ("empty", "sentinel", "cut", "copied", "other")


def kind(text: str, *, source: str, labels: Sequence[str]) -> str | None:
  """Names the fault of a predicted text; None if it is a label.

  Of several faults the first in the order of `KINDS` counts.

  Args:
    text: the prediction.
    source: the input.
    labels: the legal texts.

  Returns:
    "empty"; "sentinel", which begins with one; "cut", the beginning of a label
    (`not_entail`); "copied", a piece of the input; or "other".
  """
  if text in labels:
    return None
  words = _normalise(text)
  if not words:
    return "empty"
  if words.startswith("<extra_id_"):
    return "sentinel"
  if any(_normalise(label).startswith(words) for label in labels):
    return "cut"
  return "copied" if words in _normalise(source) else "other"


def _normalise(text: str) -> str:
  return " ".join(text.split()).casefold()


def shares(
  sources: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
  """Returns the share of each fault, in percent, as `outputs/<kind>`.

  Args:
    sources: the inputs.
    predictions: what was predicted for them.
    labels: the legal texts; without there is nothing to compare with.
  """
  found = Counter(
    kind(text, source=source, labels=labels)
    for source, text in zip(sources, predictions, strict=True)
  )
  return {
    f"outputs/{name}": 100 * found[name] / len(predictions) for name in KINDS
  }
