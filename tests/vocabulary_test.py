# SPDX-License-Identifier: Apache-2.0
import pathlib

import numpy as np
import pytest

from prompt_tuning import vocabulary as vocabulary_lib

MODEL = pathlib.Path(__file__).parents[1] / "tasks" / "english_8k.model"
TEXTS = (
  "",
  "A walk home,  twice\nand back.",
  "caf\u00e9 \u4e16\u754c",
  "<extra_id_0> True",
)


def pairs():
  import seqio

  from prompt_tuning import data

  for theirs in (
    seqio.SentencePieceVocabulary(str(MODEL)),
    # The sentinels of T5's vocabulary are added to its model by seqio.
    seqio.SentencePieceVocabulary(str(MODEL), extra_ids=5),
    seqio.ByteVocabulary(),
    seqio.ByteVocabulary(extra_ids=3),
  ):
    yield theirs, data.without_tensorflow(theirs)


def test_ids_and_texts_are_those_of_seqio():
  rng = np.random.default_rng(0)
  for theirs, ours in pairs():
    assert ours.size == theirs.vocab_size
    for text in TEXTS:
      assert ours.encode(text) == list(theirs.encode(text))
    for _ in range(20):
      ids = rng.integers(0, ours.size, 12).tolist()
      # Beyond the vocabulary, as in a padded embedding table.
      ids += [ours.size - 1, ours.size, ours.size + 19]
      for row in (ids, [*ids[:5], 1, *ids[5:]], [7, 1, 0, 0]):
        assert ours.decode(row) == theirs.decode(row)


def test_sentinels_are_added_as_seqio_adds_them():
  import seqio

  theirs = seqio.SentencePieceVocabulary(str(MODEL), extra_ids=5)
  ours = vocabulary_lib.from_sentencepiece(MODEL.read_bytes(), extra_ids=5)
  assert ours.size == theirs.vocab_size
  for i in range(ours.size - 6, ours.size):
    assert ours.decode([i]) == theirs.decode([i])


def test_bytes_that_are_no_model_get_no_sentinels():
  with pytest.raises(ValueError, match="4 bytes are no SentencePiece model"):
    vocabulary_lib.from_sentencepiece(b"\xff\xff\xff\xff", extra_ids=1)


def test_another_kind_is_refused():
  import seqio

  from prompt_tuning import data

  with pytest.raises(ValueError, match="VOCABULARY is a PassThroughVocabulary"):
    data.without_tensorflow(seqio.PassThroughVocabulary(5))


def test_the_digest_tells_vocabularies_apart():
  model = MODEL.read_bytes()
  digests = {
    x.sha256
    for x in (
      vocabulary_lib.from_sentencepiece(model),
      vocabulary_lib.from_bytes(259),
      vocabulary_lib.from_bytes(260),
    )
  }
  assert len(digests) == 3


def test_a_broken_model_is_refused():
  with pytest.raises(ValueError, match="2 bytes are no SentencePiece model"):
    vocabulary_lib.from_sentencepiece(b"12")
