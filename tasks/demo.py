# SPDX-License-Identifier: Apache-2.0
"""A small task of our own for a first run: is a sentence glad or sad?

The sentences are made from hand-written words by a seeded script. A sentence
of the validation split never has a telling word of the train split.
"""

from collections.abc import Iterator, Mapping
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
_WORDS: Mapping[str, Mapping[str, str]] = {
  "train": {
    "positive": (
      "beautiful delightful happy excellent charming pleasant good fine "
      "splendid brilliant perfect cheerful sweet magnificent noble bright "
      "admirable agreeable comfortable successful elegant exquisite "
      "welcome warm"
    ),
    "negative": (
      "terrible miserable ugly dreadful horrible bad wicked cruel painful "
      "sad bitter poor unhappy dark cold dull foolish stupid fearful "
      "unpleasant dangerous wrong weak angry"
    ),
  },
  "validation": {
    "positive": (
      "wonderful lovely glorious great superb joyful merry graceful kind "
      "gentle fair fortunate generous divine loving grand"
    ),
    "negative": (
      "awful wretched gloomy dismal evil false vile hideous frightful "
      "melancholy tragic dirty sick savage harsh grim"
    ),
  },
}
# Sentences with each word.
_NUM_SENTENCES = 10


def sentences(split: str) -> Iterator[tuple[str, str]]:
  """Yields `(sentence, label)` in a fixed random order."""
  rng = random.Random(0)
  pairs = list(itertools.product(_SUBJECTS, _FRAMES))
  rows = [
    (frame.format(subject=subject, word=word), label)
    for label, words in _WORDS[split].items()
    for word in words.split()
    for subject, frame in rng.sample(pairs, _NUM_SENTENCES)
  ]
  rng.shuffle(rows)
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
