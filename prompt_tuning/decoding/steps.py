# SPDX-License-Identifier: Apache-2.0
"""The prompted T5 as a function from the newest tokens to the next logits."""

from collections.abc import Callable
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from prompt_tuning import attention, t5

EOS = 1

# `(tokens int32[B*N], cache) -> (logits float32[B*N, V], cache)`: N hypotheses
# of a row stand together. Arrays of the cache have a row per hypothesis first,
# or two for a single one on a GPU; its scalars are shared.
StepFn = Callable[[Array, PyTree], tuple[Array, PyTree]]


class Start(NamedTuple):
  """What a search starts from; of any model, or none.

  Attributes:
    step_fn: feeds one token per hypothesis, returns the logits of the next.
    cache: what it takes first.
    first_tokens: what it is fed first.
    forced_tokens: what has to be generated; 0 where the choice is free.
    lengths: how many tokens a row may have at most; 0 or U in a beam search.
  """

  step_fn: StepFn
  cache: PyTree[Array]
  first_tokens: Int[Array, " B"]
  forced_tokens: Int[Array, "B U"]
  lengths: Int[Array, " B"]


def check_shapes(
  encoder_input_tokens: Int[Array, "B T"],
  forced_tokens: Int[Array, "M W"] | None,
  *,
  max_decode_length: int,
) -> None:
  """Raises a ValueError if there is no room for what is asked for."""
  if max_decode_length < 1:
    raise ValueError(f"max_decode_length={max_decode_length} must be 1 or more")
  if forced_tokens is None:
    return
  batch_size = encoder_input_tokens.shape[0]
  num_rows, num_tokens = forced_tokens.shape
  if num_rows != batch_size:
    raise ValueError(
      f"forced_tokens has {num_rows} rows, the input {batch_size}: give one row"
      " per input"
    )
  if num_tokens > max_decode_length:
    raise ValueError(
      f"{num_tokens} forced tokens need max_decode_length={max_decode_length}"
      " to be as many or more"
    )


def check_num_decodes(num_decodes: int) -> None:
  """Raises a ValueError if there would be no results."""
  if num_decodes < 1:
    raise ValueError(f"num_decodes={num_decodes} must be 1 or more")


def encode(
  params: dict[str, Array],
  encoder_input_tokens: Int[Array, "B T"],
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
) -> Float[Array, "B S D"]:
  """Encodes the input, without dropout."""
  encoded = model.apply(
    {"params": traverse_util.unflatten_dict(params, sep="/")},
    encoder_input_tokens,
    enable_dropout=False,
    prompt_lengths=prompt_lengths,
    method=model.encode,
  )
  assert isinstance(encoded, Array)  # No collection is mutable.
  return encoded


def start(
  params: dict[str, Array],
  encoder_input_tokens: Int[Array, "B T"],
  forced_tokens: Int[Array, "M W"] | None,
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
  max_decode_length: int,
  num_decodes: int,
) -> Start:
  """Encodes the input and creates the cache.

  Keys and values of the encoded input are computed here, once, and shared by
  the hypotheses of a row.

  Args:
    params: all parameters, by path.
    encoder_input_tokens: 0 is padding; rows of padding alone have ended.
    forced_tokens: the beginning of every result; 0 is free, EOS is left out.
    prompt_lengths: see `t5.Transformer.encode`.
    model: the network.
    max_decode_length: number of positions, U.
    num_decodes: hypotheses per row, N.
  """
  check_shapes(
    encoder_input_tokens, forced_tokens, max_decode_length=max_decode_length
  )
  variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
  encoded = encode(params, encoder_input_tokens, prompt_lengths, model=model)

  def decode(collections: dict, tokens: Array, mutable: list[str]) -> tuple:
    return model.apply(
      variables | collections,
      encoded,
      encoder_input_tokens,
      tokens,
      tokens,
      enable_dropout=False,
      decode=True,
      max_decode_length=max_decode_length,
      mutable=mutable,
      prompt_lengths=prompt_lengths,
      method=model.decode,
    )

  batch_size = encoder_input_tokens.shape[0]
  num_rows = batch_size * num_decodes
  # For a GPU XLA writes out the products of each kernel with a single row.
  is_single = num_rows == 1 and jax.default_backend() == "gpu"
  num_copies = 2 if is_single else 1
  shape = (num_copies * num_rows, max_decode_length)
  _, created = decode({}, jnp.zeros(shape, jnp.int32), ["cache", "encoded"])

  def step(
    tokens: Int[Array, " N"], cache: PyTree[Array]
  ) -> tuple[Array, PyTree]:
    collections = {"encoded": created["encoded"], "cache": cache}
    tokens = jnp.repeat(tokens, num_copies)
    logits, changed = decode(collections, tokens[:, None], ["cache"])
    return logits[:num_rows, 0], changed["cache"]

  return Start(
    step,
    created["cache"],
    jnp.zeros(batch_size, jnp.int32),
    _forced(forced_tokens, (batch_size, max_decode_length)),
    jnp.any(encoder_input_tokens > 0, axis=1) * max_decode_length,
  )


def _forced(
  tokens: Int[Array, "B W"] | None, shape: tuple[int, int]
) -> Int[Array, "B U"]:
  if tokens is None:
    return jnp.zeros(shape, jnp.int32)
  tokens = jnp.where(tokens == EOS, 0, tokens)
  return jnp.pad(tokens, ((0, 0), (0, shape[1] - tokens.shape[1])))


def force(
  logits: Float[Array, "N V"], tokens: Int[Array, " N"]
) -> Float[Array, "N V"]:
  """Leaves one choice, of probability 1, where a token is not 0."""
  is_other = jnp.arange(logits.shape[1])[None, :] != tokens[:, None]
  is_barred = is_other & (tokens > 0)[:, None]
  return jnp.where(is_barred, attention.MASKED_LOGIT, logits)
