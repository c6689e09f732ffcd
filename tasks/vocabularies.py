# SPDX-License-Identifier: Apache-2.0
"""Vocabularies.

Every task is registered with T5's vocabulary, which is opened only when a task
is read; `data.from_seqio` can read it with another. All share T5's layout: 0
is padding, 1 ends a sequence, and sentinel i (`<extra_id_i>`) is id
`vocab_size - 1 - i`.
"""

import pathlib

import seqio

_BUCKET = "gs://t5-data/vocabs"


def sentencepiece(path: str, extra_ids: int = 0) -> seqio.Vocabulary:
  """Opens a SentencePiece model, lazily.

  Args:
    path: file or gs:// URI of the model.
    extra_ids: sentinels to add behind the model's pieces; 0 if the model has
      them already.
  """
  return seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)


def t5() -> seqio.Vocabulary:
  """Returns T5's vocabulary: 32,100 pieces, its 100 sentinels among them."""
  return sentencepiece(f"{_BUCKET}/cc_all.32000.100extra/sentencepiece.model")


def mt5() -> seqio.Vocabulary:
  """Returns mT5's vocabulary: 250,100 pieces, its sentinels among them."""
  return sentencepiece(f"{_BUCKET}/mc4.250000.100extra/sentencepiece.model")


def byt5() -> seqio.Vocabulary:
  """Returns ByT5's 256 bytes behind 3 special ids.

  Its sentinels are the last byte values, which UTF-8 text hardly ever uses
  (Xue et al., 2022, sec. 3.1).
  """
  return seqio.ByteVocabulary()


def english_8k() -> seqio.Vocabulary:
  """Returns this project's own vocabulary: 8,192 ids, 100 sentinels included.

  `train_vocabulary.py` made the model file, which is shipped with the package.
  """
  return sentencepiece(str(pathlib.Path(__file__).parent / "english_8k.model"))
