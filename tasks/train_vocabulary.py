# SPDX-License-Identifier: Apache-2.0
r"""Trains the project's own SentencePiece vocabulary on plain text.

    python -m prompt_tuning.tasks.train_vocabulary \
      --corpus='text/*.txt.xz' --output=english_8k.model

The layout is T5's: pad 0, EOS 1, unknown 2, no BOS, unigram pieces, and 100
sentinels at the end in falling order, so that `<extra_id_0>` is the last id.
The defaults make 8,192 ids in all, which is the number of rows of the
embedding table: no row is left unused.
"""

from collections.abc import Iterator, Sequence
import glob
import io
import lzma
import string
from typing import Any

from absl import app, flags
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2

# Its classes are made when it is imported, so that mypy sees none.
_model_pb2: Any = sentencepiece_model_pb2

_CORPUS = flags.DEFINE_string(
  "corpus", None, "Glob of UTF-8 text files, plain or .xz.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Model file to write.", required=True
)
_SIZE = flags.DEFINE_integer("size", 8192, "Number of ids, sentinels included.")
_SENTENCES = flags.DEFINE_integer(
  "sentences", 1_000_000, "Paragraphs sampled from the corpus."
)
NUM_SENTINELS = 100


def paragraphs(paths: Sequence[str]) -> Iterator[str]:
  """Yields the non-empty lines of plain or xz-compressed text files."""
  for path in paths:
    open_fn = lzma.open if path.endswith(".xz") else open
    with open_fn(path, "rt", encoding="utf-8") as lines:
      yield from (line.strip() for line in lines if line.strip())


def train(paths: Sequence[str], *, size: int, num_sentences: int) -> bytes:
  """Trains a unigram model and appends the sentinels.

  Args:
    paths: the text files, one paragraph a line.
    size: number of ids of the result, sentinels included.
    num_sentences: how many paragraphs are sampled for training.

  Returns:
    The serialised SentencePiece model.
  """
  spm.set_random_generator_seed(0)
  model = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=paragraphs(paths),
    model_writer=model,
    model_type="unigram",
    vocab_size=size - NUM_SENTINELS,
    input_sentence_size=num_sentences,
    shuffle_input_sentence=True,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    # Labels such as not_entailment must never hold an unknown piece.
    required_chars=string.digits + string.ascii_letters + string.punctuation,
    num_threads=2,
    minloglevel=1,
  )
  proto = _model_pb2.ModelProto.FromString(model.getvalue())
  for i in reversed(range(NUM_SENTINELS)):
    proto.pieces.add(
      piece=f"<extra_id_{i}>",
      score=0.0,
      type=_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
    )
  proto.trainer_spec.vocab_size = len(proto.pieces)
  return proto.SerializeToString()


def main(argv: Sequence[str]) -> None:
  """Writes the model of the flags."""
  del argv
  paths = sorted(glob.glob(_CORPUS.value))
  if not paths:
    raise app.UsageError(f"--corpus={_CORPUS.value} matches no file")
  model = train(paths, size=_SIZE.value, num_sentences=_SENTENCES.value)
  with open(_OUTPUT.value, "wb") as output:
    output.write(model)
  print(f"{_OUTPUT.value}: {len(model):,} bytes, {_SIZE.value:,} ids")


if __name__ == "__main__":
  app.run(main)
