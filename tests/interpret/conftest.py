# SPDX-License-Identifier: Apache-2.0
"""A base of a few words in four directions, and prompts for it."""

import numpy as np
import pytest
import sentencepiece


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory):
  """Trains a small SentencePiece model; returns its path."""
  folder = tmp_path_factory.mktemp("vocabulary")
  words = ["good", "fine", "bad", "poor", "film", "<b>"]
  sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=iter(20 * [f"{' '.join(words)} and other text"]),
    model_prefix=str(folder / "small"),
    vocab_size=24,
    hard_vocab_limit=False,
    user_defined_symbols=[f"\u2581{word}" for word in words],
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return str(folder / "small.model")


@pytest.fixture
def ids(vocabulary_file):
  """The ids of the words, by word."""
  processor = sentencepiece.SentencePieceProcessor(model_file=vocabulary_file)
  words = ["good", "fine", "bad", "poor", "film", "<b>"]
  return {word: processor.PieceToId(f"\u2581{word}") for word in words}


@pytest.fixture
def table(ids):
  """Embeddings: good and fine are alike, so are bad and poor."""
  rng = np.random.default_rng(0)
  rows = rng.standard_normal((40, 16)).astype(np.float32)
  east, north, up = np.eye(16, dtype=np.float32)[:3]
  rows[ids["good"]], rows[ids["fine"]] = 2 * east, east + 0.1 * north
  rows[ids["bad"]], rows[ids["poor"]] = 2 * north, north + 0.1 * east
  rows[ids["<b>"]] = up
  return rows


@pytest.fixture
def base(tmp_path, table):
  """A base of nothing but an embedding table; returns its path."""
  import jax.numpy as jnp

  from prompt_tuning import pretrained

  params = {"token_embedder/embedding": jnp.asarray(table)}
  pretrained.save(f"{tmp_path}/base.safetensors", params, 0, {})
  return f"{tmp_path}/base.safetensors"
