# SPDX-License-Identifier: Apache-2.0
"""T5: the Transformer with or without a prompt, and its parameters.

The prompt sits where google-research/prompt-tuning puts it, at
`encoder/prompt/prompt/prompt`. `Transformer` can be handed to
`t5x.models.EncoderDecoderModel`, whose argument names its methods take.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
from flax.linen import partitioning as nn_partitioning
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning import flash_attention, layers, prompts, stacks
from prompt_tuning.t5_config import T5Config

__all__ = [
  "T5Config",
  "Transformer",
  "init_params",
  "param_axes",
  "param_shapes",
]


class Transformer(nn.Module):
  """T5, plain or with a prompt in front of its encoder.

  Attributes:
    config: the sizes.
    prompt: the prompt's length and place, or None for the plain model.
  """

  config: T5Config
  prompt: prompts.PromptConfig | None = None

  def setup(self) -> None:
    """Creates the embedding table, the encoder and the decoder."""
    config = self.config
    self.token_embedder = layers.Embed(
      config.vocab_size,
      config.emb_dim,
      one_hot=config.one_hot_embedding,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
    )
    if self.prompt is None:
      self.encoder: nn.Module = stacks.Encoder(config)
    else:
      prompt = prompts.Prompt(
        self.prompt.length, config.emb_dim, dtype=config.dtype
      )
      self.encoder = stacks.PromptEncoder(
        config, prompts.JoinedPrompt(prompt, self.prompt.join)
      )
    self.decoder = stacks.Decoder(config, self.token_embedder)

  def _check_packing(self, segment_ids: Array | None) -> None:
    if self.prompt is not None and segment_ids is not None:
      raise ValueError(
        "a prompted model cannot read packed examples: set pack=False"
      )

  def _check_prompt_lengths(self, prompt_lengths: Array | None) -> None:
    if prompt_lengths is None:
      return
    if self.prompt is None or self.prompt.join is not prompts.prefix_prompt:
      raise ValueError(
        "prompts of several lengths need a model with the prompt in front of"
        " the input: use join=@prompts.prefix_prompt, or prompts of one length"
      )

  def _kernel_lengths(
    self,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    prompt_lengths: Int[Array, " B"] | None,
  ) -> Int[Array, " B"] | None:
    """Counts the real positions of each row, if the kernel is to be used."""
    prompt, config = self.prompt, self.config
    if segment_ids is not None or prompt_lengths is not None:
      return None
    if not flash_attention.is_used(
      config.attention, config.dtype, config.head_dim
    ):
      return None
    if prompt is not None and not prompt.sees_all:
      return None
    lengths = jnp.sum(tokens > 0, axis=1)
    return lengths + (0 if prompt is None else prompt.length)

  def encode(
    self,
    encoder_input_tokens: Int[Array, "B T"],
    encoder_segment_ids: Int[Array, "B T"] | None = None,
    enable_dropout: bool = True,
    *,
    prompt_lengths: Int[Array, " B"] | None = None,
  ) -> Float[Array, "B S D"]:
    """Encodes the input, with the prompt if there is one.

    Args:
      encoder_input_tokens: 0 is padding.
      encoder_segment_ids: which of several packed examples a position belongs
        to; the plain model only.
      enable_dropout: needs an rng named `dropout`.
      prompt_lengths: for prompts of several lengths in a batch: how many of
        the P positions, the last ones, are a row's prompt; the others are
        padding. None: all.

    Returns:
      S is T, or P+T with a prompt.

    Raises:
      ValueError: for packed examples with a prompt, or for `prompt_lengths`
        where no prompt is in front of the input.
    """
    self._check_packing(encoder_segment_ids)
    self._check_prompt_lengths(prompt_lengths)
    tokens = encoder_input_tokens
    if self.prompt is None:
      mask = prompts.encoder_mask(tokens, prompt_length=0)
    else:
      mask = prompts.encoder_mask(
        tokens,
        prompt_length=self.prompt.length,
        visibility=self.prompt.visibility,
        prompt_lengths=prompt_lengths,
      )
    if encoder_segment_ids is not None:
      mask &= _same_segment(encoder_segment_ids, encoder_segment_ids)
    lengths = self._kernel_lengths(tokens, encoder_segment_ids, prompt_lengths)
    embedded = self.token_embedder(tokens)
    return self.encoder(
      tokens, embedded, mask, lengths, deterministic=not enable_dropout
    )

  def decode(  # noqa: PLR0913  # T5X's arguments.
    self,
    encoded: Float[Array, "B S D"],
    encoder_input_tokens: Int[Array, "B T"],
    decoder_input_tokens: Int[Array, "N U"],
    decoder_target_tokens: Int[Array, "N U"],
    encoder_segment_ids: Int[Array, "B T"] | None = None,
    decoder_segment_ids: Int[Array, "N U"] | None = None,
    decoder_positions: Int[Array, "N U"] | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
    *,
    prompt_lengths: Int[Array, " B"] | None = None,
  ) -> Float[Array, "N U V"]:
    """Decodes against an encoded input.

    Without dropout each input may have several rows, one after the other: N is
    a multiple of B.

    Args:
      encoded: the result of `encode`.
      encoder_input_tokens: the tokens it was made from, for the mask alone.
      decoder_input_tokens: the targets, shifted to the right.
      decoder_target_tokens: 0 is padding; for the mask alone.
      encoder_segment_ids: see `encode`.
      decoder_segment_ids: the same for the targets.
      decoder_positions: not used: T5 knows relative positions only.
      enable_dropout: needs an rng named `dropout`.
      decode: use the key-value cache (collection `cache`), one position a call.
        Keys and values of `encoded` stay in the collection `encoded` between
        calls, if a first call has it mutable.
      max_decode_length: length of the cache.
      prompt_lengths: see `encode`.

    Returns:
      float32 logits.

    Raises:
      ValueError: see `encode`.
    """
    del decoder_positions
    self._check_packing(encoder_segment_ids)
    self._check_prompt_lengths(prompt_lengths)
    encoder_real = (
      prompts.prepend_real(
        encoder_input_tokens,
        prompt_length=0 if self.prompt is None else self.prompt.length,
        prompt_lengths=prompt_lengths,
      )
      > 0
    )
    decoder_real = decoder_target_tokens > 0
    mask = None
    if decode:  # What is generated is real, whatever its token.
      decoder_real = jnp.ones((encoded.shape[0], 1), bool)
    else:
      mask = prompts.decoder_only_mask(
        decoder_target_tokens, None, prompt_length=0
      )
    decoder_real = decoder_real.reshape(encoded.shape[0], -1)
    cross_mask = (decoder_real[:, :, None] & encoder_real[:, None, :])[:, None]
    if decoder_segment_ids is not None and mask is not None:
      mask &= _same_segment(decoder_segment_ids, decoder_segment_ids)
    if decoder_segment_ids is not None and encoder_segment_ids is not None:
      cross_mask &= _same_segment(decoder_segment_ids, encoder_segment_ids)
    lengths = None
    if decoder_segment_ids is None:
      lengths = self._kernel_lengths(
        encoder_input_tokens, encoder_segment_ids, prompt_lengths
      )
    return self.decoder(
      decoder_input_tokens,
      encoded,
      mask,
      cross_mask,
      lengths,
      deterministic=not enable_dropout,
      decode=decode,
      max_decode_length=max_decode_length,
    )

  def __call__(  # noqa: PLR0913  # T5X's arguments.
    self,
    encoder_input_tokens: Int[Array, "B T"],
    decoder_input_tokens: Int[Array, "B U"],
    decoder_target_tokens: Int[Array, "B U"],
    encoder_segment_ids: Int[Array, "B T"] | None = None,
    decoder_segment_ids: Int[Array, "B U"] | None = None,
    encoder_positions: Int[Array, "B T"] | None = None,
    decoder_positions: Int[Array, "B U"] | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
    prompt_lengths: Int[Array, " B"] | None = None,
  ) -> Float[Array, "B U V"]:
    """Returns the float32 logits of every target position.

    The arguments are those of `encode` and `decode`.
    """
    del encoder_positions
    encoded = self.encode(
      encoder_input_tokens,
      encoder_segment_ids,
      enable_dropout,
      prompt_lengths=prompt_lengths,
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout=enable_dropout,
      decode=decode,
      prompt_lengths=prompt_lengths,
    )


def _same_segment(
  queries: Int[Array, "B Q"], keys: Int[Array, "B N"]
) -> Bool[Array, "B 1 Q N"]:
  return (queries[:, :, None] == keys[:, None, :])[:, None]


def _init(model: Transformer, rng: Key[Array, ""]) -> Mapping[str, Any]:
  """Draws all variables of a network."""
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  return model.lazy_init(rng, tokens, tokens, tokens, enable_dropout=False)


def _by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")


def init_params(model: Transformer, *, seed: int) -> dict[str, Array]:
  """Draws a network with random weights; keys are T5X's parameter paths.

  Computes nothing else: Flax's `lazy_init` runs the network on zeros, since
  0.12.12 at the latest, in a program for every operation.
  """
  rng = jax.random.key(seed)
  traced, described = jax.make_jaxpr(
    lambda rng: _by_path(_init(model, rng)["params"]), return_shape=True
  )(rng)
  # Names that jax<0.12 has; XLA would drop the network as well, but takes five
  # times as long for one program of all draws.
  is_used = [True] * len(traced.out_avals)
  jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, is_used, instantiate=True)
  drawn = jax.core.eval_jaxpr(jaxpr, traced.consts, rng)
  return jax.tree.unflatten(jax.tree.structure(described), drawn)


def param_shapes(model: Transformer) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shape and dtype of every parameter, by path."""
  return dict(_describe(model)[0])


def param_axes(model: Transformer) -> dict[str, tuple[str, ...]]:
  """Returns the logical names of every parameter's axes, by path."""
  return dict(_describe(model)[1])


@functools.cache
def _describe(
  model: Transformer,
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, tuple[str, ...]]]:
  """Returns shapes and axes; a layer of each stack is traced, for all."""
  config = model.config
  one = model.clone(
    config=dataclasses.replace(
      config, num_encoder_layers=1, num_decoder_layers=1
    )
  )
  variables = jax.eval_shape(lambda: _init(one, jax.random.key(0)))
  num_layers = {
    "encoder": config.num_encoder_layers,
    "decoder": config.num_decoder_layers,
  }
  shapes: dict[str, jax.ShapeDtypeStruct] = {}
  axes: dict[str, tuple[str, ...]] = {}
  names = _by_path(nn_partitioning.get_axis_names(variables["params_axes"]))
  for name, x in _by_path(variables["params"]).items():
    stack, is_layer, rest = name.partition("/layers_0/")
    paths = [name]
    if is_layer:
      paths = [f"{stack}/layers_{i}/{rest}" for i in range(num_layers[stack])]
    shapes |= dict.fromkeys(paths, x)
    axes |= dict.fromkeys(paths, tuple(names[name]))
  return shapes, axes
