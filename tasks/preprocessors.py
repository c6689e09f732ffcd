# SPDX-License-Identifier: Apache-2.0
"""From rows to text pairs `inputs`, `targets`, as T5 was taught to read them.

Each function maps a data set of rows to one of text. A label that is not public
(-1) becomes the target "<unk>". What metrics need besides stays in the row.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import seqio
import tensorflow as tf

Row = Mapping[str, Any]
OutputFeatures = Mapping[str, seqio.Feature]

_UNKNOWN = "<unk>"


def _map(row_fn: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
  """Lifts a function of one row to data sets; keywords are bound first."""

  @functools.wraps(row_fn)
  def map_rows(dataset: tf.data.Dataset, **kwargs: Any) -> tf.data.Dataset:
    return dataset.map(
      functools.partial(row_fn, **kwargs), num_parallel_calls=tf.data.AUTOTUNE
    )

  return map_rows


@_map
def classification(
  row: Row, *, name: str, features: Sequence[str], labels: Sequence[str]
) -> dict[str, Any]:
  """Joins the named features to "name feature: text feature: text ...".

  Line breaks written as HTML become spaces, bold marks vanish (MultiRC).

  Args:
    row: has the features, `label` and `idx`.
    name: the word that tells the model which task it is.
    features: which features are read, in this order.
    labels: text of each label number.
  """
  parts = [name]
  for feature in features:
    parts += [f"{feature}:", row[feature]]
  inputs = tf.strings.join(parts, separator=" ")
  inputs = tf.strings.regex_replace(inputs, "<br>", " ")
  inputs = tf.strings.regex_replace(inputs, "</?b>", "")
  # Label -1 picks the first text.
  texts = tf.constant([_UNKNOWN, *labels])
  return _index(row) | {"inputs": inputs, "targets": texts[row["label"] + 1]}


@_map
def similarity(row: Row, *, name: str) -> dict[str, Any]:
  """Writes STS-B's score, 0 to 5, rounded to the nearest 0.2."""
  parts = [name, "sentence1:", row["sentence1"], "sentence2:", row["sentence2"]]
  score = tf.as_string(tf.round(row["label"] * 5) / 5, precision=1)
  return _index(row) | {
    "inputs": tf.strings.join(parts, separator=" "),
    "targets": score,
  }


@_map
def rename(row: Row, *, names: Mapping[str, str]) -> dict[str, Any]:
  """Renames features; `names` is new -> old, the rest stays."""
  kept = {k: v for k, v in row.items() if k not in names.values()}
  return kept | {new: row[old] for new, old in names.items()}


@_map
def remove_task_name(row: Row) -> dict[str, Any]:
  """Drops the first word of the inputs and the space behind it."""
  inputs = tf.strings.regex_replace(row["inputs"], r"^[^ ]* ", "")
  return dict(row) | {"inputs": inputs}


def prepend_sentinel(
  dataset: tf.data.Dataset,
  output_features: OutputFeatures,
  *,
  feature: str,
  index: int,
) -> tf.data.Dataset:
  """Puts sentinel `index` in front of the tokens of `feature`.

  In the inputs it tells a multi-task prompt which task the row belongs to.
  """
  sentinel = output_features[feature].vocabulary.vocab_size - 1 - index

  def prepend(row: Row) -> dict[str, Any]:
    tokens = row[feature]
    first = tf.constant([sentinel], tokens.dtype)
    return dict(row) | {feature: tf.concat([first, tokens], axis=0)}

  return dataset.map(prepend, num_parallel_calls=tf.data.AUTOTUNE)


def _index(row: Row) -> dict[str, Any]:
  """Flattens `idx`: {"paragraph": 0, ...} becomes "idx/paragraph": 0, ..."""
  if isinstance(row["idx"], Mapping):
    return {f"idx/{name}": value for name, value in row["idx"].items()}
  return {"idx": row["idx"]}


@_map
def wsc(row: Row, *, name: str = "wsc:") -> dict[str, Any]:
  """Marks the pronoun, `*he*`; the target is the candidate referent.

  The label stays in the row, for the metric. `span2_index` counts words split
  at single spaces. Where the pronoun is not a word of its own there (one row of
  the data set), or the index is one too low (another), the next place where it
  stands is marked.
  """
  words = tf.strings.split(row["text"], " ")
  index = row["span2_index"]
  before = tf.strings.reduce_join(words[:index], separator=" ")
  rest = tf.strings.reduce_join(words[index:], separator=" ")
  marked = _mark_pronoun(rest, row["span2_text"])
  return {
    "inputs": tf.strings.join([name, before, marked], separator=" "),
    "targets": row["span1_text"],
    "label": row["label"],
    "idx": row["idx"],
  }


@_map
def pronoun_resolution(row: Row, *, name: str = "wsc:") -> dict[str, Any]:
  """Writes a row of Definite Pronoun Resolution as `wsc` does.

  Marked is the first place where the pronoun stands between a space and a
  space, comma or full stop.
  """
  pattern = tf.strings.join([r" (\Q", row["pronoun"], r"\E)([ .,])"])
  marked = tf.strings.regex_replace(
    row["sentence"], pattern, r" *\1*\2", replace_global=False
  )
  # Label -1 picks the first text.
  texts = tf.concat([[_UNKNOWN], row["candidates"]], axis=0)
  return {
    "inputs": tf.strings.join([name, marked], separator=" "),
    "targets": texts[row["label"] + 1],
  }


def only_true_referents(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Keeps the rows of `wsc` whose candidate is the referent.

  On purpose, and the only filter here: 259 of WSC's 554 training rows stay
  (Lester et al., 2021, table 7), since a wrong referent teaches nothing to a
  model that generates the right one.
  """
  return dataset.filter(lambda row: row["label"] == 1)


def record(
  dataset: tf.data.Dataset, *, name: str = "record"
) -> tf.data.Dataset:
  """Writes ReCoRD: one row for each answer of a query.

  A query without answers gives one row with the target "<unk>". Highlights,
  each on a line behind "@highlight", become sentences of the passage.
  """

  def rows_of(row: Row) -> tf.data.Dataset:
    passage = tf.strings.regex_replace(
      row["passage"], r"(\.|\?|\!|\"|\')\n@highlight\n", r"\1 "
    )
    passage = tf.strings.regex_replace(passage, r"\n@highlight\n", ". ")
    entities = tf.strings.reduce_join(row["entities"], separator=", ")
    parts = [name, "query:", row["query"], "entities:", entities]
    inputs = tf.strings.join([*parts, "passage:", passage], separator=" ")
    answers = row["answers"]
    unknown = tf.constant([_UNKNOWN])
    targets = tf.cond(tf.size(answers) > 0, lambda: answers, lambda: unknown)
    shared = _index(row) | {"inputs": inputs, "answers": answers}
    return tf.data.Dataset.from_tensor_slices(targets).map(
      lambda target: shared | {"targets": target}
    )

  return dataset.flat_map(rows_of)


@_map
def question_answering(row: Row) -> dict[str, Any]:
  """Writes SQuAD and MRQA: "question: ... context: ...".

  The target is the first answer; all answers stay in the row. Punctuation is
  set off by spaces, in the answers too, and runs of blanks become one.
  """
  answers = row["answers"]
  answers = answers["text"] if isinstance(answers, Mapping) else answers
  answers = _space_punctuation(answers)
  question = _space_punctuation(row["question"])
  context = _space_punctuation(row["context"])
  parts = ["question:", question, "context:", context]
  return {
    "inputs": _collapse_blanks(tf.strings.join(parts, separator=" ")),
    "targets": tf.concat([answers, [_UNKNOWN]], axis=0)[0],
    "question": question,
    "context": context,
    "answers": answers,
  }


@_map
def summarization(row: Row, *, article: str, summary: str) -> dict[str, Any]:
  """Writes "summarize: ..." from the features of article and summary."""
  inputs = tf.strings.join(["summarize:", row[article]], separator=" ")
  return {"inputs": inputs, "targets": row[summary]}


def _mark_pronoun(text: tf.Tensor, pronoun: tf.Tensor) -> tf.Tensor:
  # Some pronouns end with a comma, which no \b would follow.
  word = tf.strings.join([r"\b(\Q", pronoun, r"\E)(\W|$)"])
  return tf.strings.regex_replace(text, word, r"*\1*\2", replace_global=False)


def _space_punctuation(text: tf.Tensor) -> tf.Tensor:
  return _collapse_blanks(
    tf.strings.regex_replace(text, r"([[:punct:]])", r" \1 ")
  )


def _collapse_blanks(text: tf.Tensor) -> tf.Tensor:
  return tf.strings.regex_replace(text, r"\s+", " ")
