# SPDX-License-Identifier: Apache-2.0
"""The prompt, the ways of joining it to the input, and masks that know of it.

Lester et al. (2021), sec. 2: a frozen model reads `[prompt; embedded input]`
and only the prompt learns.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
import numpy as np

Initializer = Callable[..., Array]
# `(prompt [B,P,D], embedded [B,T,D], tokens [B,T]) -> [B,P+T,D]`.
JoinFn = Callable[[Array, Array, Array], Array]

FULL_VISIBILITY = ("prompt->prompt", "prompt->input")


def prefix_prompt(
  prompt: Float[Array, "B P D"],
  embedded: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
) -> Float[Array, "B P+T D"]:
  """Puts the prompt in front of the input, as the paper does."""
  del tokens
  return jnp.concatenate([prompt, embedded], axis=1)


def prefix_prompt_after_bos(
  prompt: Float[Array, "B P D"],
  embedded: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
) -> Float[Array, "B P+T D"]:
  """Puts the prompt behind the first position, which holds BOS."""
  del tokens
  return jnp.concatenate([embedded[:, :1], prompt, embedded[:, 1:]], axis=1)


def suffix_prompt(
  prompt: Float[Array, "B P D"],
  embedded: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
  *,
  before_eos: bool = True,
  has_bos: bool = False,
) -> Float[Array, "B P+T D"]:
  """Puts the prompt at the end of each row; padding stays behind it.

  With tokens `[11, 12, 13, 1, 0, 0]` (1 is EOS) and a prompt `p q` the row is
  `11 12 13 p q 1 0 0`, or `11 12 13 1 p q 0 0` if not `before_eos`.

  Args:
    prompt: one prompt per row.
    embedded: the embedded tokens.
    tokens: 0 is padding.
    before_eos: put the prompt before the last token, EOS, instead of behind it.
    has_bos: the first token is a BOS that shares its id, 0, with padding, as
      in a decoder-only model.
  """
  num_prompt, num_tokens = prompt.shape[1], tokens.shape[1]
  start = jnp.sum(tokens != 0, axis=1, keepdims=True) + has_bos - before_eos
  position = jnp.arange(num_prompt + num_tokens)[None, :]
  # Where each output position comes from in `[prompt; embedded]`.
  source = jnp.where(position < start, position + num_prompt, position)
  is_prompt = (position >= start) & (position < start + num_prompt)
  source = jnp.where(is_prompt, position - start, source)
  both = jnp.concatenate([prompt, embedded], axis=1)
  return jnp.take_along_axis(both, source[:, :, None], axis=1)


def prepend_real(
  tokens: Int[Array, "B T"],
  *,
  prompt_length: int,
  prompt_lengths: Int[Array, " B"] | None = None,
) -> Int[Array, "B {prompt_length}+T"]:
  """Prepends a 1 per prompt position, so that `> 0` still means "real".

  Right wherever the prompt is put: padding stays last, so that only the number
  of real positions matters. With `prompt_lengths` the prompt is in front, and
  so is its padding: a row's prompt ends where its input begins, as it does
  alone. Three prompt positions and two tokens:

      prompt_lengths [1, 3], tokens [[7, 1], [9, 0]]
        0 0 1 7 1
        1 1 1 9 0
  """
  shape = (tokens.shape[0], prompt_length)
  if prompt_lengths is None:
    real = jnp.ones(shape, tokens.dtype)
  else:
    num_empty = prompt_length - prompt_lengths[:, None]
    is_real = jnp.arange(prompt_length)[None, :] >= num_empty
    real = is_real.astype(tokens.dtype)
  return jnp.concatenate([real, tokens], axis=1)


def _prompt_rows(
  num_positions: int, prompt_length: int, visibility: tuple[str, ...]
) -> Bool[np.ndarray, "S S"]:
  """What `visibility` leaves to the prompt's own queries; True elsewhere."""
  is_prompt = np.arange(num_positions) < prompt_length
  square = (num_positions, num_positions)
  if "prompt->prompt;causal" in visibility:
    prompt_to_prompt = np.tri(*square, dtype=bool)
  elif "prompt->prompt" in visibility:
    prompt_to_prompt = np.ones(square, dtype=bool)
  else:  # A query needs one visible key at least: its own.
    prompt_to_prompt = np.eye(num_positions, dtype=bool)
  to_prompt = np.where(
    is_prompt[None, :], prompt_to_prompt, "prompt->input" in visibility
  )
  return np.where(is_prompt[:, None], to_prompt, True)


def encoder_mask(
  tokens: Int[Array, "B T"],
  *,
  prompt_length: int,
  visibility: tuple[str, ...] = FULL_VISIBILITY,
  prompt_lengths: Int[Array, " B"] | None = None,
) -> Bool[Array, "B 1 {prompt_length}+T {prompt_length}+T"]:
  """Builds the encoder's mask, True = may attend.

  The input always sees the input and the prompt; padding sees and is seen by
  nothing. `visibility` says what the prompt sees. With one prompt position,
  two tokens and one padding:

      full visibility   without "prompt->input"
        1 1 1 0             1 0 0 0
        1 1 1 0             1 1 1 0
        1 1 1 0             1 1 1 0
        0 0 0 0             0 0 0 0

  Args:
    tokens: 0 is padding.
    prompt_length: number of prompt positions, P, taken to come first.
    visibility: what the prompt sees: "prompt->input", and "prompt->prompt" or
      "prompt->prompt;causal" (each position only those before it); the latter
      wins if both are given. Without either a position sees itself.
    prompt_lengths: how many of the P positions, the last ones, are a row's
      prompt; the others are padding. None: all.
  """
  real = (
    prepend_real(
      tokens, prompt_length=prompt_length, prompt_lengths=prompt_lengths
    )
    > 0
  )
  rows = _prompt_rows(real.shape[1], prompt_length, visibility)
  return (real[:, :, None] & real[:, None, :] & rows[None])[:, None]


def decoder_only_mask(
  tokens: Int[Array, "B T"],
  causal_attention: Int[Array, "B T"] | None,
  *,
  prompt_length: int,
  visibility: tuple[str, ...] = FULL_VISIBILITY,
) -> Bool[Array, "B 1 {prompt_length}+T {prompt_length}+T"]:
  """Builds the mask of a prompted decoder-only model, True = may attend.

  Args:
    tokens: the target tokens; 0 is padding.
    causal_attention: 1 where a position belongs to the prefix, all of which
      sees all of it (a prefix LM). None: every position, prompt included, sees
      only itself and those before it, whatever `visibility`.
    prompt_length: number of prompt positions, P, taken to come first.
    visibility: what the prompt sees of the prefix, as in `encoder_mask`.
  """
  real = prepend_real(tokens, prompt_length=prompt_length) > 0
  num_positions = real.shape[1]
  visible = jnp.asarray(np.tri(num_positions, dtype=bool))[None, None]
  if causal_attention is not None:
    prefix = encoder_mask(
      causal_attention, prompt_length=prompt_length, visibility=visibility
    )
    is_input = np.arange(num_positions) >= prompt_length
    visible = (visible & is_input[None, None, :, None]) | prefix
  return visible & (real[:, None, :, None] & real[:, None, None, :])


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """The shape and place of a prompt.

  Attributes:
    length: number of positions, P; the paper's default is 100 (sec. 3.2).
    join: how the prompt meets the embedded input.
    visibility: what the prompt's positions may attend to in the encoder.

  Raises:
    ValueError: for a length below 1, an unknown visibility, or a restricted
      one with a prompt that is not in front, where masks would be wrong.
  """

  length: int = 100
  join: JoinFn = prefix_prompt
  visibility: tuple[str, ...] = FULL_VISIBILITY

  def __post_init__(self) -> None:
    # A list, as of gin, could not be hashed.
    object.__setattr__(self, "visibility", tuple(self.visibility))
    if self.length < 1:
      raise ValueError(
        f"PROMPT_LENGTH={self.length} must be 1 or more; the paper uses 100"
      )
    known = (*FULL_VISIBILITY, "prompt->prompt;causal")
    unknown = [kind for kind in self.visibility if kind not in known]
    if unknown:
      raise ValueError(f"visibility {unknown[0]!r} must be one of {known}")
    if not self.sees_all and self.join is not prefix_prompt:
      raise ValueError(
        f"visibility={self.visibility} needs the prompt in front of the input:"
        " use join=@prompts.prefix_prompt"
      )

  @property
  def sees_all(self) -> bool:
    """Tells whether the prompt attends to itself and all of the input."""
    return set(self.visibility) == set(FULL_VISIBILITY)

  @property
  def place(self) -> str:
    """Names join and visibility, which a trained prompt works with alone."""
    join = getattr(self.join, "__name__", type(self.join).__name__)
    return join if self.sees_all else f"{join} {' '.join(self.visibility)}"


class Prompt(nn.Module):
  """Holds the prompt as a parameter.

  Attributes:
    length: number of positions, P.
    features: model width, D.
    prompt_init: a Flax initialiser, `(rng, shape, dtype) -> array`. The trainer
      replaces its value by one that knows the base model: see `prompt_init`.
    dtype: dtype of the result; the parameter is float32 always.
  """

  length: int
  features: int
  prompt_init: Initializer = nn.initializers.uniform(0.5)
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
  ) -> Float[Array, "P {self.features}"] | Float[Array, "B P {self.features}"]:
    """Returns the parameter: `[P,D]`, or `[B,P,D]` if it was given so."""
    if self.is_initializing():
      prompt = partitioning.param_with_axes(
        "prompt",
        self.prompt_init,
        (self.length, self.features),
        jnp.float32,
        axes=("prompt", "prompt_embed"),
      )
    else:  # Not `self.param`, which would refuse a prompt per example.
      prompt = self.get_variable("params", "prompt")
    return prompt.astype(self.dtype)


class JoinedPrompt(nn.Module):
  """Joins a prompt to the embedded input.

  Attributes:
    prompt: the module that holds the prompt.
    join: how the prompt meets the embedded input.
  """

  prompt: Prompt
  join: JoinFn = prefix_prompt

  def __call__(
    self, tokens: Int[Array, "B T"], embedded: Float[Array, "B T D"]
  ) -> Float[Array, "B S D"]:
    """Joins one prompt for the batch, or one per example, to the input."""
    prompt: Any = self.prompt()
    batch_size, width = embedded.shape[0], embedded.shape[2]
    shape = (batch_size, self.prompt.length, width)
    if prompt.shape not in (shape, shape[1:]):
      raise ValueError(
        f"the prompt has shape {prompt.shape}, the model wants {shape[1:]} or"
        f" one per example, {shape}"
      )
    return self.join(jnp.broadcast_to(prompt, shape), embedded, tokens)
