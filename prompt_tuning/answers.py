# SPDX-License-Identifier: Apache-2.0
"""Answers to a batch of inputs: texts with their scores, best first."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key
import numpy as np

from prompt_tuning import decoding, evaluate, partitioning, t5
from prompt_tuning import vocabulary as vocabulary_lib


@dataclasses.dataclass(frozen=True)
class Labels:
  """Rank classification: the likeliest of some texts is the answer.

  Attributes:
    texts: the candidates.
    per_token: compare log-probabilities per token instead of their sums.

  Raises:
    ValueError: if there are none.
  """

  texts: Sequence[str]
  per_token: bool = False

  def __post_init__(self) -> None:
    if isinstance(self.texts, str) or not self.texts:
      raise ValueError(
        f"Labels.texts={self.texts!r} must be a list of texts such as"
        " ['entailment', 'not_entailment']"
      )


Generator = decoding.SamplingConfig | decoding.BeamConfig
Decoder = Generator | Labels


class Prediction(NamedTuple):
  """What the model answers to one input, and how likely that is.

  Attributes:
    texts: best first: the results of several beams or draws, all labels of
      rank classification, or one.
    scores: their log-probabilities, as the decoder defines them.
  """

  texts: tuple[str, ...]
  scores: tuple[float, ...]

  @property
  def text(self) -> str:
    """The best text."""
    return self.texts[0]

  @property
  def score(self) -> float:
    """Its score."""
    return self.scores[0]


class Batch(NamedTuple):
  """What is answered, still on the host or placed.

  Attributes:
    tokens: the inputs; 0 is padding.
    prompt_lengths: see `t5.Transformer.encode`.
  """

  tokens: Int[Array | np.ndarray, "B T"]
  prompt_lengths: Int[Array | np.ndarray, " B"] | None


def generate(
  params: dict[str, Array],
  batch: Batch,
  rng: Key[Array, ""],
  *,
  network: t5.Transformer,
  decoder: Generator,
  max_decode_length: int,
  vocabulary: vocabulary_lib.Vocabulary,
) -> list[Prediction]:
  """Generates texts.

  Args:
    params: all parameters, by path.
    batch: the inputs.
    rng: of what is drawn.
    network: the network.
    decoder: how to search or draw.
    max_decode_length: number of positions, U.
    vocabulary: to read the results with.
  """
  found = _generate(
    params,
    batch.tokens,
    rng,
    batch.prompt_lengths,
    model=network,
    config=decoder,
    max_decode_length=max_decode_length,
  )
  tokens, scores = jax.device_get(partitioning.gather(found))
  # Best last, as T5X has them.
  pairs = zip(tokens[:, ::-1], scores[:, ::-1], strict=True)
  return [_decode(*pair, vocabulary) for pair in pairs]


@functools.partial(
  jax.jit, static_argnames=("model", "config", "max_decode_length")
)
def _generate(
  params: dict[str, Array],
  tokens: Int[Array, "B T"],
  rng: Key[Array, ""],
  prompt_lengths: Int[Array, " B"] | None,
  *,
  model: t5.Transformer,
  config: Generator,
  max_decode_length: int,
) -> tuple[Int[Array, "B N U"], Float[Array, "B N"]]:
  if isinstance(config, decoding.BeamConfig):
    return decoding.beam(
      params,
      tokens,
      prompt_lengths=prompt_lengths,
      model=model,
      max_decode_length=max_decode_length,
      config=config,
    )
  return decoding.sample(
    params,
    tokens,
    rng,
    prompt_lengths=prompt_lengths,
    model=model,
    max_decode_length=max_decode_length,
    config=config,
  )


def _decode(
  tokens: Int[np.ndarray, "N U"],
  scores: Float[np.ndarray, " N"],
  vocabulary: vocabulary_lib.Vocabulary,
) -> Prediction:
  """Decodes the results of a row; places that no beam took are left out."""
  num_found = max(int(np.sum(scores > decoding.NO_HYPOTHESIS)), 1)
  texts = tuple(vocabulary.decode(row) for row in tokens[:num_found].tolist())
  return Prediction(texts, tuple(scores[:num_found].tolist()))


def rank(
  params: dict[str, Array],
  batch: Batch,
  *,
  network: t5.Transformer,
  labels: Labels,
  vocabulary: vocabulary_lib.Vocabulary,
) -> list[Prediction]:
  """Orders the labels by their scores; of equal ones the first is better.

  Args:
    params: all parameters, by path.
    batch: the inputs.
    network: the network.
    labels: the candidates.
    vocabulary: to write them with.
  """
  scores = _score_labels(
    params,
    batch.tokens,
    evaluate.label_tokens(labels.texts, vocabulary),
    batch.prompt_lengths,
    model=network,
    per_token=labels.per_token,
  )
  result = []
  for row in jax.device_get(partitioning.gather(scores)):
    order = np.argsort(-row, kind="stable").tolist()
    texts = tuple(labels.texts[i] for i in order)
    result.append(Prediction(texts, tuple(row[order].tolist())))
  return result


_score_labels = jax.jit(
  decoding.score_labels, static_argnames=("model", "per_token")
)
