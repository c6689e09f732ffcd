# SPDX-License-Identifier: Apache-2.0
"""Self-supervised objectives: from the tokens of documents to text pairs.

Each takes rows with the tokens of a document in `targets`, joins documents,
cuts them to the length of the inputs, and makes both features from each piece:

    tokens            a b c d e f g h
    span corruption   a b <0> e f g <1>    ->  <0> c d <1> h
    prefix LM         a b c                ->  d e f g h
    text infilling    a b <0> e f g <1>    ->  a b c d e f g h
    token deletion    a b d e g h          ->  a b c d e f g h

No token is lost: the last piece of a group of documents may be short, and holds
at least one token to predict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.tasks import preprocessors
import seqio
import tensorflow as tf

from prompt_tuning import corpus

Lengths = Mapping[str, int]
Row = dict[str, Any]
Seed = Any  # Two numbers, as tf.random.stateless_uniform takes them.

# Documents joined before they are cut, so that few pieces are short.
_GROUP = 128


def span_corruption(
  dataset: tf.data.Dataset,
  sequence_length: Lengths,
  output_features: preprocessors.OutputFeatures,
) -> tf.data.Dataset:
  """Replaces spans by sentinels; the targets spell them out (T5)."""
  size = output_features["targets"].vocabulary.vocab_size
  length = corpus.uncorrupted_length(sequence_length["inputs"])

  @seqio.map_over_dataset(num_seeds=2)
  def corrupt(row: Row, seeds: Sequence[Seed]) -> Row:
    tokens = row["targets"]
    mask = _span_mask(tf.size(tokens), length, seeds)
    return {
      "inputs": _spans_to_sentinels(tokens, mask, size),
      "targets": _spans_to_sentinels(tokens, ~mask, size),
    }

  return corrupt(_pieces(dataset, length))


def text_infilling(
  dataset: tf.data.Dataset,
  sequence_length: Lengths,
  output_features: preprocessors.OutputFeatures,
) -> tf.data.Dataset:
  """Replaces spans by sentinels; the targets are the whole text (BART).

  The sentinels differ from each other, unlike BART's one mask token, so that
  the inputs look as in span corruption.
  """
  size = output_features["targets"].vocabulary.vocab_size
  length = sequence_length["inputs"] - 1  # EOS.
  corpus.require_sentinels(length)

  @seqio.map_over_dataset(num_seeds=2)
  def corrupt(row: Row, seeds: Sequence[Seed]) -> Row:
    tokens = row["targets"]
    mask = _span_mask(tf.size(tokens), length, seeds)
    inputs = _spans_to_sentinels(tokens, mask, size)
    return {"inputs": inputs, "targets": tokens}

  return corrupt(_pieces(dataset, length))


def token_deletion(
  dataset: tf.data.Dataset, sequence_length: Lengths
) -> tf.data.Dataset:
  """Deletes each token with the noise density; the targets are all (BART)."""

  @seqio.map_over_dataset(num_seeds=1)
  def corrupt(row: Row, seed: Seed) -> Row:
    tokens = row["targets"]
    noise = tf.random.stateless_uniform(tf.shape(tokens), seed)
    inputs = tf.boolean_mask(tokens, noise >= corpus.NOISE_DENSITY)
    return {"inputs": inputs, "targets": tokens}

  return corrupt(_pieces(dataset, sequence_length["inputs"] - 1))


def prefix_lm(
  dataset: tf.data.Dataset, sequence_length: Lengths
) -> tf.data.Dataset:
  """Cuts a piece in two at a random place: LM adaptation's objective."""

  @seqio.map_over_dataset(num_seeds=1)
  def cut(row: Row, seed: Seed) -> Row:
    tokens = row["targets"]
    # Both parts hold a token, but for a piece of one, which is all target.
    last = tf.maximum(tf.size(tokens), 2)
    at = tf.random.stateless_uniform([], seed, 1, last, tf.int32)
    at = tf.minimum(at, tf.size(tokens) - 1)
    return {"inputs": tokens[:at], "targets": tokens[at:]}

  return cut(_pieces(dataset, sequence_length["inputs"] - 1))


def _pieces(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
  """Joins the tokens of a group of documents and cuts them to `length`."""

  def cut(group: tf.RaggedTensor) -> tf.data.Dataset:
    tokens = tf.data.Dataset.from_tensor_slices(group.flat_values)
    return tokens.batch(length).map(lambda piece: {"targets": piece})

  tokens = dataset.map(lambda row: row["targets"])
  return tokens.ragged_batch(_GROUP).flat_map(cut)


def _span_mask(
  length: tf.Tensor, max_length: int, seeds: Sequence[Seed]
) -> tf.Tensor:
  """Returns bool[length], True where noise is: text and noise in turn."""
  table = tf.constant([corpus.num_noise(n) for n in range(max_length + 1)])
  noise, spans = tf.unstack(table[length])
  noise_lengths = _partition(noise, spans, seeds[0])
  text_lengths = _partition(length - noise, spans, seeds[1])
  lengths = tf.reshape(tf.stack([text_lengths, noise_lengths], axis=1), [-1])
  return tf.repeat(tf.tile([False, True], [spans]), lengths)


def _partition(
  num_items: tf.Tensor, num_parts: tf.Tensor, seed: Seed
) -> tf.Tensor:
  """Splits items into parts of at least one, all partitions alike likely.

  Without any item all parts are empty.
  """
  places = tf.range(tf.maximum(num_items - 1, 0))
  is_start = tf.random.experimental.stateless_shuffle(
    tf.cast(places < num_parts - 1, tf.int32), seed
  )
  part = tf.concat([[0], tf.cumsum(is_start)], axis=0)[:num_items]
  return tf.math.bincount(part, minlength=num_parts, maxlength=num_parts)


def _spans_to_sentinels(
  tokens: tf.Tensor, mask: tf.Tensor, vocab_size: int
) -> tf.Tensor:
  """Puts sentinel 0, 1, ... in the place of each run where `mask` is True."""
  before = tf.concat([[False], mask[:-1]], axis=0)
  is_first = mask & ~before
  sentinels = vocab_size - tf.cumsum(tf.cast(is_first, tokens.dtype))
  replaced = tf.where(is_first, sentinels, tokens)
  return tf.boolean_mask(replaced, ~mask | is_first)
