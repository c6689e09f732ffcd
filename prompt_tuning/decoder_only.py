# SPDX-License-Identifier: Apache-2.0
"""A decoder-only model with a prompt in front of its one sequence.

Input and target stand in one row: `[prompt; input; target]`. Either the input
sees all of itself (a prefix LM) or every position only those before it. Names
are those of google-research/prompt-tuning: `decoder/prompt/prompt/prompt`, and
the embedding is in the decoder.
"""

from collections.abc import Mapping

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from prompt_tuning import decoding, layers, prompts, stacks, t5_config

# int32 `[B,T]`: `decoder_target_tokens`; `decoder_input_tokens`, the same
# shifted to the right; `decoder_causal_attention`, 1 on the 0 in front and on
# the input behind it; `decoder_loss_weights`, 1 on the target.
Batch = Mapping[str, Num[Array, "B T"]]

_JOINS = (prompts.prefix_prompt, prompts.prefix_prompt_after_bos)


def _align_right(
  x: Float[Array, "B S D"] | Bool[Array, "B S S"], num_empty: Int[Array, " B"]
) -> Array:
  """Moves the positions of a row, axis 1, behind `num_empty` of the last."""
  return jax.vmap(lambda row, shift: jnp.roll(row, shift, axis=0))(x, num_empty)


class Decoder(nn.Module):
  """The decoder of T5 with an embedding and a prompt, without an encoder.

  Attributes:
    config: the sizes.
    prompt: produces the prompt and joins it to the sequence.
  """

  config: t5_config.T5Config
  prompt: prompts.JoinedPrompt

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B N"],
    mask: Bool[Array, "B 1 Q M"] | None,
    *,
    deterministic: bool,
    is_start: bool = True,
    num_empty: Int[Array, " B"] | None = None,
    max_length: int | None = None,
  ) -> Float[Array, "B Q V"]:
    """Decodes positions that follow one another.

    Args:
      tokens: the next ones.
      mask: True = may attend.
      deterministic: no dropout.
      is_start: put the prompt in front.
      num_empty: positions to leave empty in front of each row, at the cost of
        those at its end.
      max_length: use the cache, of this length.
    """
    config = self.config
    embed = layers.Embed(
      config.vocab_size,
      config.emb_dim,
      one_hot=config.one_hot_embedding,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name="token_embedder",
    )
    x = embed(tokens)
    if is_start:
      x = self.prompt(tokens, x)
    if num_empty is not None:
      x = _align_right(x, num_empty)
    return stacks.run_decoder(
      self,
      config,
      embed,
      x,
      None,
      mask,
      None,
      num_positions=max_length or x.shape[1],
      deterministic=deterministic,
      decode=max_length is not None,
    )


class DecoderOnly(nn.Module):
  """A prompted decoder-only model.

  Attributes:
    config: the sizes; those of an encoder are not used.
    prompt: the prompt's length and place; it has to be at the front.
    is_prefix_lm: the input sees all of itself and, as far as
      `prompt.visibility` says so, the prompt sees the input. Otherwise every
      position sees only itself and those before it.

  Raises:
    ValueError: for a prompt between input and target.
  """

  config: t5_config.T5Config
  prompt: prompts.PromptConfig
  is_prefix_lm: bool = True

  def setup(self) -> None:
    """Creates the decoder."""
    if self.prompt.join not in _JOINS:
      raise ValueError(
        "a decoder-only model needs its prompt in front: use"
        " join=@prompts.prefix_prompt"
      )
    prompt = prompts.Prompt(
      self.prompt.length, self.config.emb_dim, dtype=self.config.dtype
    )
    self.decoder = Decoder(
      self.config, prompts.JoinedPrompt(prompt, self.prompt.join)
    )

  def _mask(
    self, real: Int[Array, "B T"], prefix: Int[Array, "B T"]
  ) -> Bool[Array, "B 1 S S"]:
    return prompts.decoder_only_mask(
      real,
      prefix if self.is_prefix_lm else None,
      prompt_length=self.prompt.length,
      visibility=self.prompt.visibility,
    )

  def __call__(
    self,
    decoder_input_tokens: Int[Array, "B T"],
    decoder_target_tokens: Int[Array, "B T"],
    decoder_causal_attention: Int[Array, "B T"],
    *,
    enable_dropout: bool = True,
  ) -> Float[Array, "B T V"]:
    """Returns the float32 logits of every position but the prompt's."""
    logits = self.decoder(
      decoder_input_tokens,
      self._mask(decoder_target_tokens, decoder_causal_attention),
      deterministic=not enable_dropout,
    )
    return logits[:, self.prompt.length :]

  def prefill(
    self,
    decoder_input_tokens: Int[Array, "B T"],
    decoder_causal_attention: Int[Array, "B T"],
    *,
    max_length: int,
  ) -> None:
    """Writes prompt and input into the cache, with their ends side by side.

    So one index serves all rows. With a prompt `p`, input lengths 2 and 1 and
    one more position to come the cache holds, where `0` is in front of an input
    and `.` is empty:

        p 0 a b .
        . p 0 a .
    """
    prefix = decoder_causal_attention
    num_empty = jnp.sum(prefix == 0, axis=1)
    mask = _align_right(self._mask(prefix, prefix)[:, 0], num_empty)
    mask = _align_right(mask.swapaxes(1, 2), num_empty).swapaxes(1, 2)
    num_later = max_length - mask.shape[2]
    # The first call creates the cache, the second one fills it.
    places = jnp.zeros((prefix.shape[0], max_length), jnp.int32)
    self.decoder(
      places, None, deterministic=True, is_start=False, max_length=max_length
    )
    self.decoder(
      decoder_input_tokens,
      jnp.pad(mask, ((0, 0), (0, 0), (0, num_later)))[:, None],
      deterministic=True,
      num_empty=num_empty,
      max_length=max_length,
    )

  def step(
    self,
    tokens: Int[Array, "B 1"],
    num_empty: Int[Array, " B"],
    *,
    max_length: int,
  ) -> Float[Array, "B 1 V"]:
    """Decodes the next position from the cache."""
    mask = jnp.arange(max_length)[None, :] >= num_empty[:, None]
    return self.decoder(
      tokens,
      mask[:, None, None, :],
      deterministic=True,
      is_start=False,
      max_length=max_length,
    )


def apply(
  model: DecoderOnly,
  params: dict[str, Array],
  batch: Batch,
  dropout_rng: Key[Array, ""] | None = None,
) -> Float[Array, "B T V"]:
  """Returns the logits of a batch; no dropout without an rng for it."""
  logits = model.apply(
    {"params": traverse_util.unflatten_dict(params, sep="/")},
    batch["decoder_input_tokens"],
    batch["decoder_target_tokens"],
    batch["decoder_causal_attention"],
    enable_dropout=dropout_rng is not None,
    rngs=None if dropout_rng is None else {"dropout": dropout_rng},
  )
  assert isinstance(logits, Array)  # No collection is mutable.
  return logits


def score_targets(
  params: dict[str, Array], batch: Batch, *, model: DecoderOnly
) -> decoding.TargetScores:
  """Returns the log-probabilities of the weighted tokens of each row."""
  return decoding.target_scores(
    apply(model, params, batch),
    batch["decoder_target_tokens"],
    batch["decoder_loss_weights"],
  )


def _start(
  params: dict[str, Array],
  tokens: Int[Array, "B T"],
  prefix: Int[Array, "B T"],
  *,
  model: DecoderOnly,
) -> decoding.Start:
  """Fills the cache with prompt and input."""
  length = tokens.shape[1]
  max_length = model.prompt.length + 2 * length
  variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
  num_prefix = jnp.sum(prefix, axis=1)

  def step(newest: Int[Array, " B"], cache: dict) -> tuple[Array, dict]:
    logits, changed = model.apply(
      variables | {"cache": cache},
      newest[:, None],
      length - num_prefix,
      max_length=max_length,
      mutable=["cache"],
      method=model.step,
    )
    assert isinstance(logits, Array)
    return logits[:, 0], changed["cache"]

  _, created = model.apply(
    variables,
    tokens,
    prefix,
    max_length=max_length,
    mutable=["cache"],
    method=model.prefill,
  )
  last = jnp.maximum(num_prefix - 1, 0)
  return decoding.Start(
    step,
    # The last position is fed again, for its logits: scalars are indices.
    jax.tree.map(lambda x: x - 1 if x.ndim == 0 else x, created["cache"]),
    jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0],
    jnp.zeros_like(tokens),
    jnp.where(num_prefix > 0, length - last, 0),
  )


def greedy(
  params: dict[str, Array],
  decoder_input_tokens: Int[Array, "B T"],
  decoder_causal_attention: Int[Array, "B T"],
  *,
  model: DecoderOnly,
) -> Int[Array, "B T"]:
  """Generates the likeliest token at each position behind the input.

  Args:
    params: all parameters, by path.
    decoder_input_tokens: 0, then the input; what follows is not looked at.
    decoder_causal_attention: 1 on both of these. A row without any 1 is left
      out.
    model: the network.

  Returns:
    What was generated, without the input, EOS included, with 0 behind it; input
    and result together have T positions at most.
  """
  start = _start(
    params, decoder_input_tokens, decoder_causal_attention, model=model
  )
  # Nothing is drawn with the key.
  tokens, _ = decoding.generate(start, jax.random.key(0), decoding.GREEDY)
  return tokens[:, 0]
