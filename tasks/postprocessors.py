# SPDX-License-Identifier: Apache-2.0
"""From decoded text to the values that metrics compare.

Each function takes the decoded text of a target or a prediction, the example it
belongs to (a flat dict of numpy values, as seqio hands it over), and whether it
is the target. Nothing here needs TensorFlow.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Example = Mapping[str, Any]

# Words that change a referent's text but not whom it means.
_DETERMINERS = frozenset(
  {"a", "an", "each", "every", "few", "her", "his", "many", "much", "my", "our"}
  | {"some", "that", "the", "their", "these", "this", "those", "which"}
  | {"whose", "your"}
)


class Logged(NamedTuple):
  """A value to be scored, with the texts a reader wants to see beside it."""

  value: Any
  text: str
  inputs: str


def as_text(value: Any) -> str:
  """Decodes bytes (what TensorFlow yields); text passes through."""
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def identity(output: str, **unused: Any) -> str:
  """Returns the text as it is."""
  del unused
  return output


def label_id(output: str, *, labels: Sequence[str], **unused: Any) -> int:
  """Returns the number of a label's text, -1 for any other text."""
  del unused
  return labels.index(output) if output in labels else -1


def translated_label_id(
  output: str,
  *,
  labels: Sequence[str],
  translation: Mapping[str, str],
  **unused: Any,
) -> int:
  """As `label_id`, for a model that learnt another task's label texts.

  Args:
    output: a label in the words of either task.
    labels: label texts of the task that is evaluated.
    translation: trained label text -> evaluated label text.
    **unused: what seqio passes besides.
  """
  del unused
  return label_id(translation.get(output, output), labels=labels)


def number(output: str, **unused: Any) -> float:
  """Returns the number that the text spells, -1 if it spells none."""
  del unused
  try:
    return float(output)
  except ValueError:
    return -1.0


def multirc(
  output: str, *, labels: Sequence[str], example: Example, is_target: bool
) -> dict[str, int]:
  """Returns the label, and for a target the question it is grouped by."""
  value = {"value": label_id(output, labels=labels)}
  # The question's index alone: it is unique over all paragraphs.
  return value | ({"group": int(example["idx/question"])} if is_target else {})


def record(output: str, *, example: Example, is_target: bool) -> dict[str, Any]:
  """Returns the answer; for a target all answers, grouped by the query."""
  if not is_target:
    return {"value": output}
  return {
    "value": [as_text(answer) for answer in example["answers"]],
    "group": (int(example["idx/passage"]), int(example["idx/query"])),
  }


def answers(
  output: str, *, example: Example, is_target: bool
) -> str | list[str]:
  """Returns the predicted answer, or every accepted one for a target."""
  if not is_target:
    return output
  return [as_text(answer) for answer in example["answers"]]


def wsc(output: str, *, example: Example, is_target: bool) -> int:
  """Judges whether a generated referent is the one in the example.

  Args:
    output: the generated text.
    example: has `label` and, as `targets_pretokenized`, the candidate referent.
    is_target: whether the label itself is asked for.

  Returns:
    1 if the words of one contain those of the other, determiners aside, 0 if
    they do not, -1 if nothing was generated. "Bob" is not "Bob's dog": either
    both or none must hold an apostrophe.
  """
  if is_target:
    return int(example["label"])
  predicted = _content_words(output)
  candidate = _content_words(as_text(example["targets_pretokenized"]))
  if not predicted:
    return -1
  if _has_apostrophe(predicted) != _has_apostrophe(candidate):
    return 0
  return int(predicted <= candidate or candidate <= predicted)


def behind_sentinel(output: str, *, postprocess_fn: Any, **kwargs: Any) -> Any:
  """Applies `postprocess_fn` to what stands behind `<extra_id_0>`, if it does.

  A model that leaves the sentinel out is not punished for it.
  """
  return postprocess_fn(output.removeprefix("<extra_id_0>").lstrip(), **kwargs)


def with_texts(
  output: str,
  *,
  postprocess_fn: Any,
  example: Example,
  is_target: bool,
) -> Logged:
  """Applies `postprocess_fn` and keeps the texts for the log."""
  value = postprocess_fn(output, example=example, is_target=is_target)
  inputs = as_text(example.get("inputs_pretokenized", ""))
  return Logged(value=value, text=output, inputs=inputs)


def _content_words(text: str) -> set[str]:
  return set(text.lower().split()) - _DETERMINERS


def _has_apostrophe(words: set[str]) -> bool:
  return any("'" in word for word in words)
