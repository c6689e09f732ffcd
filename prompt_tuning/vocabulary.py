# SPDX-License-Identifier: Apache-2.0
"""Vocabularies without TensorFlow: a SentencePiece model, or bytes.

Encoding and decoding are those of seqio's vocabularies, id by id.
"""

from collections.abc import Callable, Sequence
import hashlib
from typing import Any, NamedTuple

from google.protobuf import message
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

# Its classes are made when it is imported, so that mypy sees none.
_model_pb2: Any = sentencepiece_model_pb2

EOS = 1
_UNKNOWN = 2
_NUM_SPECIAL = 3  # Padding, EOS and unknown go before the bytes.


class Vocabulary(NamedTuple):
  """A vocabulary.

  Attributes:
    size: number of ids.
    encode: text to ids, without EOS.
    decode: ids to text, up to EOS.
    model: the serialized SentencePiece model, its sentinels among the pieces;
      empty for the vocabulary of bytes.
  """

  size: int
  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  model: bytes

  @property
  def sha256(self) -> str:
    """The hexadecimal digest of all that the ids depend on."""
    return hashlib.sha256(b"%d:%b" % (self.size, self.model)).hexdigest()


def from_sentencepiece(model: bytes, *, extra_ids: int = 0) -> Vocabulary:
  """Opens a serialized SentencePiece model.

  Args:
    model: the content of a model file.
    extra_ids: sentinels to add behind its pieces: 100 for the `spiece.model` of
      a T5 from Hugging Face; 0 where they are in the file, as in T5X's, mT5's
      and our own.

  Raises:
    ValueError: if it is none.
  """
  if extra_ids:
    model = _with_sentinels(model, extra_ids)
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(model)
  except RuntimeError as error:
    raise ValueError(
      f"{len(model)} bytes are no SentencePiece model: {error}"
    ) from error
  size = processor.GetPieceSize()

  def decode(ids: Sequence[int]) -> str:
    known = [i if i < size else _UNKNOWN for i in until_eos(ids)]
    return processor.DecodeIds(known)

  return Vocabulary(size, processor.EncodeAsIds, decode, model)


def _with_sentinels(model: bytes, extra_ids: int) -> bytes:
  """Adds `<extra_id_0>` and so on in falling order: the first has the last id.

  Raises:
    ValueError: if `model` is no SentencePiece model.
  """
  proto = _model_pb2.ModelProto()
  try:
    proto.ParseFromString(model)
  except message.DecodeError as error:
    raise ValueError(
      f"{len(model)} bytes are no SentencePiece model: {error}"
    ) from error
  for i in reversed(range(extra_ids)):
    proto.pieces.add(
      piece=f"\u2581<extra_id_{i}>",  # As seqio names them.
      score=0.0,
      type=_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
    )
  return proto.SerializeToString()


def from_bytes(size: int) -> Vocabulary:
  """Returns ByT5's vocabulary: each byte of UTF-8 is an id.

  Args:
    size: number of ids; those behind the bytes are sentinels.
  """
  encode = lambda text: [i + _NUM_SPECIAL for i in text.encode()]

  def decode(ids: Sequence[int]) -> str:
    shifted = [i - _NUM_SPECIAL for i in until_eos(ids)]
    return bytes(i for i in shifted if 0 <= i < 256).decode(errors="ignore")

  return Vocabulary(size, encode, decode, b"")


def until_eos(ids: Sequence[int]) -> list[int]:
  """Cuts ids behind the first EOS."""
  ids = list(ids)
  return ids[: ids.index(EOS) + 1] if EOS in ids else ids
