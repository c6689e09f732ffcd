# SPDX-License-Identifier: Apache-2.0
"""Greedy generation, and sampling with temperature, top-k or top-p."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from prompt_tuning import t5
from prompt_tuning.decoding import steps


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How a token is drawn.

  Attributes:
    num_decodes: results per row, N, drawn independently.
    temperature: what the logits are divided by; 0 is greedy, whatever the rest.
    top_k: draw from the likeliest k tokens only; 0 is off. (T5X's default, 1,
      makes every temperature greedy.)
    top_p: draw from the fewest likeliest tokens that have this probability
      together (Holtzman et al., 2020); 0 is off.
    rescale_log_probs: score by the distribution that is drawn from, as T5X
      does, so that a greedy choice scores 0; by the model's own otherwise.

  Raises:
    ValueError: for a value out of its range, or both top_k and top_p.
  """

  num_decodes: int = 1
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 0.0
  rescale_log_probs: bool = True

  def __post_init__(self) -> None:
    steps.check_num_decodes(self.num_decodes)
    if self.temperature < 0:
      raise ValueError(f"temperature={self.temperature} must be 0 or more")
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
    if not 0 <= self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be between 0 (off) and 1")
    if self.top_k and self.top_p:
      raise ValueError(
        f"top_k={self.top_k} and top_p={self.top_p} exclude each other: set"
        " one of them to 0"
      )


# As in T5X every score is 0; SCORED_GREEDY has the model's log-probabilities.
GREEDY = SamplingConfig(temperature=0.0)
SCORED_GREEDY = SamplingConfig(temperature=0.0, rescale_log_probs=False)


class _Loop(NamedTuple):
  """What one step of the loop hands to the next."""

  position: Int[Array, ""]
  newest: Int[Array, " N"]
  tokens: Int[Array, "N U"]
  scores: Float[Array, " N"]
  has_ended: Bool[Array, " N"]
  cache: PyTree[Array]
  rng: Key[Array, ""] | UInt32[Array, "2"]


def _restrict(
  logits: Float[Array, "N V"], config: SamplingConfig
) -> Float[Array, "N V"]:
  """Applies the temperature and bars the tokens that may not be drawn."""
  logits = logits / config.temperature
  if config.top_k:
    lowest = jax.lax.top_k(logits, config.top_k)[0][:, -1:]
  elif config.top_p:
    ordered = jnp.sort(logits, axis=1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=1)
    # A token counts if those before it have less than top_p together.
    before = jnp.cumsum(probabilities, axis=1) - probabilities
    counted = jnp.where(before < config.top_p, ordered, jnp.inf)
    lowest = jnp.min(counted, axis=1, keepdims=True)
  else:
    return logits
  return jnp.where(logits < lowest, -jnp.inf, logits)


def _choose(
  rng: Key[Array, ""] | UInt32[Array, "2"],
  logits: Float[Array, "N V"],
  config: SamplingConfig,
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
  """Returns the next tokens and their log-probabilities."""
  if config.temperature == 0:
    tokens = jnp.argmax(logits, axis=1).astype(jnp.int32)
    if config.rescale_log_probs:
      return tokens, jnp.zeros(tokens.shape, jnp.float32)
    drawn_from = logits
  else:
    drawn_from = _restrict(logits, config)
    tokens = jax.random.categorical(rng, drawn_from).astype(jnp.int32)
  scored = drawn_from if config.rescale_log_probs else logits
  log_probs = jax.nn.log_softmax(scored, axis=1)
  return tokens, jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]


def _advance(loop: _Loop, start: steps.Start, config: SamplingConfig) -> _Loop:
  """Draws the next token of every hypothesis."""
  repeat = lambda x: jnp.repeat(x, config.num_decodes)
  now, later = jax.random.split(loop.rng)
  logits, cache = start.step_fn(loop.newest, loop.cache)
  logits = steps.force(logits, repeat(start.forced_tokens[:, loop.position]))
  newest, log_probs = _choose(now, logits, config)
  newest = jnp.where(loop.has_ended, 0, newest)
  position = loop.position + 1
  is_last = (newest == steps.EOS) | (position >= repeat(start.lengths))
  return _Loop(
    position,
    newest,
    jax.lax.dynamic_update_slice(
      loop.tokens, newest[:, None], (0, loop.position)
    ),
    loop.scores + jnp.where(loop.has_ended, 0.0, log_probs),
    loop.has_ended | is_last,
    cache,
    later,
  )


def generate(
  start: steps.Start,
  rng: Key[Array, ""] | UInt32[Array, "2"],
  config: SamplingConfig,
) -> tuple[Int[Array, "B N U"], Float[Array, "B N"]]:
  """Draws token by token until every row has ended.

  The rng is split once a step, and its first half drawn with, as in T5X: the
  same rng gives T5X's tokens.

  Args:
    start: what to begin with, for `config.num_decodes` hypotheses a row.
    rng: not used if greedy.
    config: how a token is drawn.

  Returns:
    The tokens, EOS included, with 0 behind it, and the sums of their
    log-probabilities (forced tokens have probability 1); by ascending score,
    the best last.
  """
  num_decodes = config.num_decodes
  batch_size, max_decode_length = start.forced_tokens.shape
  num_rows = batch_size * num_decodes
  first = _Loop(
    jnp.int32(0),
    jnp.repeat(start.first_tokens, num_decodes),
    jnp.zeros((num_rows, max_decode_length), jnp.int32),
    jnp.zeros(num_rows),
    jnp.repeat(start.lengths == 0, num_decodes),
    start.cache,
    rng,
  )
  is_running = lambda loop: (
    (loop.position < max_decode_length) & ~jnp.all(loop.has_ended)
  )
  step = functools.partial(_advance, start=start, config=config)
  last = jax.lax.while_loop(is_running, step, first)
  scores = last.scores.reshape(batch_size, num_decodes)
  tokens = last.tokens.reshape(batch_size, num_decodes, max_decode_length)
  order = jnp.argsort(scores, axis=1)
  return (
    jnp.take_along_axis(tokens, order[:, :, None], axis=1),
    jnp.take_along_axis(scores, order, axis=1),
  )


def sample(
  params: dict[str, Array],
  encoder_input_tokens: Int[Array, "B T"],
  rng: Key[Array, ""] | UInt32[Array, "2"],
  forced_tokens: Int[Array, "B W"] | None = None,
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
  max_decode_length: int,
  config: SamplingConfig,
) -> tuple[
  Int[Array, "B {config.num_decodes} {max_decode_length}"],
  Float[Array, "B {config.num_decodes}"],
]:
  """Draws several results per row; see `generate` for what they are.

  Args:
    params: all parameters, by path.
    encoder_input_tokens: 0 is padding; a row of padding alone gives zeros.
    rng: of all draws.
    forced_tokens: the beginning of every result; 0 is free, EOS is left out.
    prompt_lengths: see `t5.Transformer.encode`.
    model: the network.
    max_decode_length: number of positions, U.
    config: how a token is drawn.

  Raises:
    ValueError: for a top_k above the size of the vocabulary, or a
      max_decode_length below 1 or below that of `forced_tokens`.
  """
  if config.top_k > model.config.vocab_size:
    raise ValueError(
      f"top_k={config.top_k} must be at most the {model.config.vocab_size}"
      " tokens of the vocabulary"
    )
  start = steps.start(
    params,
    encoder_input_tokens,
    forced_tokens,
    prompt_lengths,
    model=model,
    max_decode_length=max_decode_length,
    num_decodes=config.num_decodes,
  )
  return generate(start, rng, config)


def greedy(
  params: dict[str, Array],
  encoder_input_tokens: Int[Array, "B T"],
  forced_tokens: Int[Array, "B W"] | None = None,
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
  max_decode_length: int,
) -> Int[Array, "B {max_decode_length}"]:
  """Generates the likeliest token at each position.

  T5X calls this beam search with `num_decodes=1`. Stops as soon as every row
  has ended; a row of padding alone counts as ended from the start.

  Args:
    params: all parameters, by path.
    encoder_input_tokens: 0 is padding.
    forced_tokens: the beginning of every result; 0 is free, EOS is left out.
    prompt_lengths: see `t5.Transformer.encode`.
    model: the network.
    max_decode_length: number of positions, U.

  Returns:
    The tokens, EOS included, with 0 behind it.

  Raises:
    ValueError: for a max_decode_length below 1 or below that of
      `forced_tokens`.
  """
  tokens, _ = sample(
    params,
    encoder_input_tokens,
    jax.random.key(0),  # Nothing is drawn.
    forced_tokens,
    prompt_lengths,
    model=model,
    max_decode_length=max_decode_length,
    config=GREEDY,
  )
  return tokens[:, 0]
