# SPDX-License-Identifier: Apache-2.0
"""A small task of our own for a first run: is a sentence glad or sad?

The sentences are made from hand-written words by a seeded script. A sentence
of the validation split never has a telling word of the train split.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import random

from prompt_tuning.tasks import registration, scores
import seqio
import tensorflow as tf

_SUBJECTS = (
  "the walk home",
  "our dinner",
  "this old song",
  "her letter",
  "the long journey",
  "that evening",
  "his story",
  "the garden",
  "the play",
  "my first day",
)
_FRAMES = (
  "{subject} was {word}",
  "we found {subject} {word}",
  "{subject} seemed rather {word}",
  "everyone said {subject} was {word}",
  "in the end {subject} proved {word}",
)
_WORDS: Mapping[str, Mapping[str, Sequence[str]]] = {
  "train": {
    "positive": ("beautiful", "delightful", "happy", "excellent", "charming"),
    "negative": ("terrible", "miserable", "ugly", "dreadful", "horrible"),
  },
  "validation": {
    "positive": ("wonderful", "pleasant", "lovely", "glorious"),
    "negative": ("awful", "wretched", "gloomy", "dismal"),
  },
}


def sentences(split: str) -> Iterator[tuple[str, str]]:
  """Yields `(sentence, label)` in a fixed random order."""
  rows = [
    (frame.format(subject=subject, word=word), label)
    for label, words in _WORDS[split].items()
    for word, subject, frame in itertools.product(words, _SUBJECTS, _FRAMES)
  ]
  random.Random(0).shuffle(rows)
  yield from rows


def _dataset(
  split: str, shuffle_files: bool, seed: int | None = None
) -> tf.data.Dataset:
  del shuffle_files, seed
  inputs, targets = zip(*sentences(split), strict=True)
  return tf.data.Dataset.from_tensor_slices(
    {"inputs": list(inputs), "targets": list(targets)}
  )


registration.add(
  "demo_sentiment",
  seqio.FunctionDataSource(
    _dataset,
    splits=("train", "validation"),
    num_input_examples={
      split: sum(1 for _ in sentences(split)) for split in _WORDS
    },
  ),
  [],
  scoring=scores.SCORINGS["demo_sentiment"],
)
