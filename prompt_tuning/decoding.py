# SPDX-License-Identifier: Apache-2.0
"""Generation from a T5: an encoder pass, then one token a step from a cache."""

from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from prompt_tuning import t5

EOS = 1


class _Loop(NamedTuple):
  """What one step of the loop hands to the next."""

  position: Int[Array, ""]
  token: Int[Array, "B 1"]
  tokens: Int[Array, "B U"]
  has_ended: Bool[Array, " B"]
  cache: PyTree[Array]


def greedy(
  params: dict[str, Array],
  encoder_input_tokens: Int[Array, "B T"],
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
    model: the network.
    max_decode_length: number of positions, U.

  Returns:
    The tokens, EOS included, with 0 behind it.
  """
  variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
  encoded = model.apply(
    variables,
    encoder_input_tokens,
    enable_dropout=False,
    method=model.encode,
  )

  def decode(cache: PyTree[Array], tokens: Int[Array, "B U"]) -> tuple:
    return model.apply(
      variables | cache,
      encoded,
      encoder_input_tokens,
      tokens,
      tokens,
      enable_dropout=False,
      decode=True,
      max_decode_length=max_decode_length,
      mutable=["cache"],
      method=model.decode,
    )

  def step(loop: _Loop) -> _Loop:
    logits, cache = decode(loop.cache, loop.token)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    token = jnp.where(loop.has_ended[:, None], 0, token)
    tokens = jax.lax.dynamic_update_slice(
      loop.tokens, token, (0, loop.position)
    )
    has_ended = loop.has_ended | (token[:, 0] == EOS)
    return _Loop(loop.position + 1, token, tokens, has_ended, cache)

  batch_size = encoder_input_tokens.shape[0]
  tokens = jnp.zeros((batch_size, max_decode_length), jnp.int32)
  _, cache = decode({}, tokens)
  loop = _Loop(
    jnp.int32(0),
    tokens[:, :1],
    tokens,
    jnp.all(encoder_input_tokens == 0, axis=1),
    cache,
  )
  is_running = lambda loop: (
    (loop.position < max_decode_length) & ~jnp.all(loop.has_ended)
  )
  return jax.lax.while_loop(is_running, step, loop).tokens
