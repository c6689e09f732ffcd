# SPDX-License-Identifier: Apache-2.0
"""Several prompts of a task on one frozen model, in one pass, and their vote.

Lester et al. (2021), sec. 6: the ensemble needs one model, and one forward pass
with a batch in which each input stands once per prompt. Letters beyond those of
the package: E prompts, N labels, R rows of a task.

All parameters are a dict by path, whose prompt is `[E, P, D]`; with a prompt
`[P, D]`, or none, E is 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
import numpy as np

from prompt_tuning import decoding, prompt_files, t5, trainer

_PROMPT = prompt_files.NAME


def num_prompts(params: trainer.Params) -> int:
  """Returns the number of prompts, E."""
  return params[_PROMPT].shape[0] if _is_ensemble(params) else 1


def _is_ensemble(params: trainer.Params) -> bool:
  return _PROMPT in params and params[_PROMPT].ndim == 3


def score_labels(
  params: trainer.Params,
  encoder_input_tokens: Int[Array, "B T"],
  label_tokens: Int[Array, "N U"],
  *,
  model: t5.Transformer,
) -> Float[Array, "B E N"]:
  """Returns the log-probability of every label under every prompt.

  What does not depend on the prompt is computed once for all of them: the
  embedded input, masks and position biases, and the decoder up to its first
  look at the encoded input. The encoder depends on it from its first layer on.

  Args:
    params: see the head of this module.
    encoder_input_tokens: 0 is padding.
    label_tokens: see `decoding.score_labels`.
    model: the network.
  """
  score_fn = functools.partial(decoding.score_labels, model=model)
  if not _is_ensemble(params):
    return score_fn(params, encoder_input_tokens, label_tokens)[:, None]
  axes = {name: 0 if name == _PROMPT else None for name in params}
  return jax.vmap(score_fn, in_axes=(axes, None, None), out_axes=1)(
    params, encoder_input_tokens, label_tokens
  )


def generate(
  params: trainer.Params,
  encoder_input_tokens: Int[Array, "B T"],
  *,
  model: t5.Transformer,
  max_decode_length: int,
) -> tuple[Int[Array, "B E {max_decode_length}"], Float[Array, "B E"]]:
  """Generates the likeliest token at each position, under every prompt.

  Each input is repeated, once per prompt, as rows of one batch: they end one by
  one, and share the loop over positions.

  Args:
    params: see the head of this module.
    encoder_input_tokens: 0 is padding.
    model: the network.
    max_decode_length: number of positions, U.

  Returns:
    The tokens, EOS included, with 0 behind it, and their log-probabilities.
  """
  batch_size = encoder_input_tokens.shape[0]
  size = num_prompts(params)
  if _is_ensemble(params):
    rows = jnp.tile(params[_PROMPT], (batch_size, 1, 1))
    params = params | {_PROMPT: rows}
  tokens, scores = decoding.sample(
    params,
    jnp.repeat(encoder_input_tokens, size, axis=0),
    jax.random.key(0),  # Nothing is drawn.
    model=model,
    max_decode_length=max_decode_length,
    config=decoding.SCORED_GREEDY,
  )
  return tokens.reshape(batch_size, size, -1), scores.reshape(batch_size, size)


class Vote(NamedTuple):
  """The majority's answers to the rows of a task.

  Attributes:
    winners: a prompt that gave the answer, the first one that did.
    dissent: the share of the prompts that gave another.
  """

  winners: Int[np.ndarray, " R"]
  dissent: Float[np.ndarray, " R"]


def majority_vote(
  answers: Shaped[np.ndarray, "E R"], probabilities: Float[np.ndarray, "E R"]
) -> Vote:
  """Finds the answer that most prompts give (Lester et al., 2021, sec. 6).

  The paper does not speak of ties. Here the answer wins whose voters give it
  the highest sum of probabilities, and then that of the first prompt:

      answers [a, b, b, a, c], probabilities [.5, .9, .2, .5, 1.]
      two votes for a and b each; a has 1.0, b has 1.1: the winner is prompt 1

  Args:
    answers: of each prompt, of any type that can be compared.
    probabilities: that each prompt gives its own answer.
  """
  is_same = answers[:, None] == answers[None]
  votes = np.sum(is_same, axis=1)
  support = np.sum(is_same * probabilities[None], axis=1)
  highest = np.max(votes, axis=0)
  winners = np.argmax(np.where(votes == highest, support, -1.0), axis=0)
  return Vote(winners, 1.0 - highest / len(answers))


class Average(NamedTuple):
  """The mean of the prompts' label probabilities, for the rows of a task.

  Attributes:
    labels: number of the likeliest label; the first of several.
    probabilities: of all labels, which sum to 1.
    spread: the standard deviation, over the prompts, of the probability of
      that likeliest label: 0 if they all agree, at most 0.5.
  """

  labels: Int[np.ndarray, " R"]
  probabilities: Float[np.ndarray, "R N"]
  spread: Float[np.ndarray, " R"]


def label_probabilities(
  scores: Float[np.ndarray, "*_ N"],
) -> Float[np.ndarray, "*_ N"]:
  """Returns the probabilities of the labels, as if there were no other text."""
  return np.asarray(jax.nn.softmax(scores))


def average_probabilities(scores: Float[np.ndarray, "E R N"]) -> Average:
  """Averages the probabilities that the prompts give to the labels.

  Args:
    scores: log-probabilities of the labels under each prompt.
  """
  probabilities = label_probabilities(scores)
  mean = np.mean(probabilities, axis=0)
  labels = np.argmax(mean, axis=1)
  deviations = np.std(probabilities, axis=0)
  spread = np.take_along_axis(deviations, labels[:, None], axis=1)[:, 0]
  return Average(labels, mean, spread)
