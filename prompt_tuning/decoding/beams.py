# SPDX-License-Identifier: Apache-2.0
"""Beam search with T5X's scores, order and end."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from prompt_tuning import t5
from prompt_tuning.decoding import steps

# The score of a place that no finished hypothesis holds, as T5X reports it,
# and the sum of a live one that must not be chosen.
NO_HYPOTHESIS = -1e7


@dataclasses.dataclass(frozen=True)
class BeamConfig:
  """How wide to search and how to compare lengths.

  Attributes:
    num_decodes: hypotheses that are kept, and results, per row, N.
    alpha: exponent of the brevity penalty; 0 compares sums of
      log-probabilities, 1 nearly their means.

  Raises:
    ValueError: for a value out of its range.
  """

  num_decodes: int = 4
  alpha: float = 0.6

  def __post_init__(self) -> None:
    steps.check_num_decodes(self.num_decodes)
    if self.alpha < 0:
      raise ValueError(f"alpha={self.alpha} must be 0 or more")


class _Beams(NamedTuple):
  """The hypotheses after a step, best first.

  Attributes:
    position: number of tokens that the live ones have.
    newest: the last of these, one row per hypothesis.
    tokens: the live ones.
    sums: their log-probabilities.
    finished: those that ended in EOS.
    scores: of the finished ones, or NO_HYPOTHESIS.
    cache: of the live ones.
  """

  position: Int[Array, ""]
  newest: Int[Array, " _"]
  tokens: Int[Array, "B N U"]
  sums: Float[Array, "B N"]
  finished: Int[Array, "B N U"]
  scores: Float[Array, "B N"]
  cache: PyTree[Array]


def _brevity_penalty(
  length: int | Int[Array, ""], *, alpha: float
) -> Float[Array, ""]:
  """Wu et al. (2016), equation 14; `length` counts the EOS."""
  return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def _take(x: PyTree[Array], index: Int[Array, "B M"]) -> PyTree[Array]:
  """Picks hypotheses, from `[B, N, ...]`, row by row."""
  pick = jax.vmap(lambda row, i: row[i])
  return jax.tree.map(lambda x: pick(x, index), x)


def _take_cache(
  cache: PyTree[Array], index: Int[Array, "B N"]
) -> PyTree[Array]:
  if index.size == 1:  # It continues itself, and may have two rows.
    return cache

  def take(x: Array) -> Array:
    if x.ndim == 0:
      return x
    return _take(x.reshape(*index.shape, *x.shape[1:]), index).reshape(x.shape)

  return jax.tree.map(take, cache)


def _extend(
  beams: _Beams, logits: Float[Array, "_ V"], alpha: float
) -> tuple[_Beams, Int[Array, "B N"]]:
  """Goes one token on; returns which live hypothesis each one continues."""
  batch_size, num_decodes, _ = beams.tokens.shape
  vocab_size = logits.shape[1]
  log_probs = jax.nn.log_softmax(logits, axis=1)
  sums = beams.sums[:, :, None] + log_probs.reshape(
    batch_size, num_decodes, vocab_size
  )
  # Even if half of them end at once, enough live ones are left.
  sums, index = jax.lax.top_k(sums.reshape(batch_size, -1), 2 * num_decodes)
  parents, newest = index // vocab_size, index % vocab_size
  tokens = jax.lax.dynamic_update_slice(
    _take(beams.tokens, parents), newest[:, :, None], (0, 0, beams.position)
  )
  position = beams.position + 1
  is_end = newest == steps.EOS

  _, live = jax.lax.top_k(sums + is_end * NO_HYPOTHESIS, num_decodes)
  scores = jnp.where(
    is_end, sums / _brevity_penalty(position, alpha=alpha), -jnp.inf
  )
  scores = jnp.concatenate([beams.scores, scores], axis=1)
  scores, finished = jax.lax.top_k(scores, num_decodes)
  both = jnp.concatenate([beams.finished, tokens], axis=1)
  beams = beams._replace(
    position=position,
    newest=_take(newest, live).reshape(-1),
    tokens=_take(tokens, live),
    sums=_take(sums + is_end * NO_HYPOTHESIS, live),
    finished=_take(both, finished),
    scores=scores,
  )
  return beams, _take(parents, live)


def beam_search(
  start: steps.Start, config: BeamConfig
) -> tuple[Int[Array, "B N U"], Float[Array, "B N"]]:
  """Searches for the hypotheses with the highest scores.

  A search ends at the last position, or when no row's best live hypothesis,
  even with the highest penalty, could beat its worst finished one.

  Args:
    start: what to begin with, for `config.num_decodes` hypotheses a row.
    config: how wide to search and how to compare lengths.

  Returns:
    Tokens, EOS included, with 0 behind it, and scores; by ascending score, the
    best last. A row with any finished hypothesis has finished ones only, whose
    score is the sum of log-probabilities over the brevity penalty; places
    without one are zeros and score NO_HYPOTHESIS. Otherwise the live ones, with
    their plain sums.
  """
  num_decodes, alpha = config.num_decodes, config.alpha
  batch_size, max_decode_length = start.forced_tokens.shape
  # T5X counts the 0 in front into the length here.
  highest_penalty = _brevity_penalty(max_decode_length + 1, alpha=alpha)

  def step(beams: _Beams) -> _Beams:
    logits, cache = start.step_fn(beams.newest, beams.cache)
    forced = start.forced_tokens[:, beams.position]
    logits = steps.force(logits, jnp.repeat(forced, num_decodes))
    beams, parents = _extend(beams, logits, alpha)
    return beams._replace(cache=_take_cache(cache, parents))

  def is_running(beams: _Beams) -> Array:
    best_live = beams.sums[:, 0] / highest_penalty
    has_ended = (start.lengths == 0) | (beams.scores[:, -1] > best_live)
    return (beams.position < max_decode_length) & ~jnp.all(has_ended)

  zeros = jnp.zeros((batch_size, num_decodes, max_decode_length), jnp.int32)
  none = jnp.full((batch_size, num_decodes), NO_HYPOTHESIS)
  first = _Beams(
    position=jnp.int32(0),
    newest=jnp.repeat(start.first_tokens, num_decodes),
    tokens=zeros,
    sums=none.at[:, 0].set(0.0),  # All are alike at first: one is enough.
    finished=zeros,
    scores=none,
    cache=start.cache,
  )
  last = jax.lax.while_loop(is_running, step, first)
  is_finished = last.scores[:, :1] > NO_HYPOTHESIS
  scores = jnp.where(is_finished, last.scores, last.sums)
  tokens = jnp.where(is_finished[:, :, None], last.finished, last.tokens)
  return tokens[:, ::-1], scores[:, ::-1]


def beam(
  params: dict[str, Array],
  encoder_input_tokens: Int[Array, "B T"],
  forced_tokens: Int[Array, "B W"] | None = None,
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
  max_decode_length: int,
  config: BeamConfig,
) -> tuple[
  Int[Array, "B {config.num_decodes} {max_decode_length}"],
  Float[Array, "B {config.num_decodes}"],
]:
  """Searches for the best continuations; see `beam_search` for the results.

  Args:
    params: all parameters, by path.
    encoder_input_tokens: 0 is padding; a row of padding alone gives zeros.
    forced_tokens: the beginning of every result; 0 is free, EOS is left out.
    prompt_lengths: see `t5.Transformer.encode`.
    model: the network.
    max_decode_length: number of positions, U.
    config: how wide to search and how to compare lengths.

  Raises:
    ValueError: for a max_decode_length below 1 or below that of
      `forced_tokens`.
  """
  start = steps.start(
    params,
    encoder_input_tokens,
    forced_tokens,
    prompt_lengths,
    model=model,
    max_decode_length=max_decode_length,
    num_decodes=config.num_decodes,
  )
  tokens, scores = beam_search(start, config)
  is_empty = (start.lengths == 0)[:, None]
  return (
    jnp.where(is_empty[:, :, None], 0, tokens),
    jnp.where(is_empty, 0.0, scores),
  )
