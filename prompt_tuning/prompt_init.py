# SPDX-License-Identifier: Apache-2.0
"""Initial values of a prompt (Lester et al., 2021, sec. 3.2).

Each initialiser is a function of a JAX key, the prompt's length P, the frozen
embedding table `[V,D]` and a function from a text to its token ids; it returns
float32 `[P,D]`. Class labels are the paper's default: see `class_labels`.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from prompt_tuning import prompt_files

EncodeFn = Callable[[str], Sequence[int]]
PromptInit = Callable[[Key[Array, ""], int, Array, EncodeFn], Array]


def random_uniform(
  rng: Key[Array, ""],
  length: int,
  table: Float[Array, "V D"],
  encode: EncodeFn,
  *,
  low: float = -0.5,
  high: float = 0.5,
) -> Float[Array, "{length} D"]:
  """Draws from `[low, high)`.

  The defaults are the paper's; the released code draws from [0, 0.5).
  """
  del encode
  shape = (length, table.shape[1])
  return jax.random.uniform(rng, shape, minval=low, maxval=high)


def sampled_vocab(
  rng: Key[Array, ""],
  length: int,
  table: Float[Array, "V D"],
  encode: EncodeFn,
  *,
  population_size: int = 5000,
) -> Float[Array, "{length} D"]:
  """Copies the embeddings of random common tokens.

  A SentencePiece vocabulary is sorted by frequency, so that the first rows are
  those of the most common tokens. Drawn without replacement unless the prompt
  is longer than the population.
  """
  del encode
  return _sample(rng, length, table, min(population_size, table.shape[0]))


@functools.partial(jax.jit, static_argnums=(1, 3))
def _sample(
  rng: Key[Array, ""], length: int, table: Float[Array, "V D"], size: int
) -> Float[Array, "{length} D"]:
  rows = jax.random.choice(rng, size, (length,), replace=length > size)
  return table[rows].astype(jnp.float32)


def class_labels(
  rng: Key[Array, ""],
  length: int,
  table: Float[Array, "V D"],
  encode: EncodeFn,
  *,
  labels: Sequence[str],
  population_size: int = 5000,
) -> Float[Array, "{length} D"]:
  """Copies the embeddings of the task's labels: one row a label.

  A label of several pieces becomes their mean. The rows that are left over
  are sampled from the vocabulary; labels that are left over are not used.

  Raises:
    ValueError: if a label has no tokens, or there is none.
  """
  if isinstance(labels, str) or not labels:
    raise ValueError(
      f"CLASS_LABELS={labels!r} must be a list of texts such as"
      " ['positive', 'negative']"
    )
  pieces = [encode(label) for label in labels]
  for label, ids in zip(labels, pieces, strict=True):
    if not ids:
      raise ValueError(f"CLASS_LABELS: {label!r} has no tokens")
  rest = sampled_vocab(
    rng, length, table, encode, population_size=population_size
  )
  return _begin(rest, table, pieces)


def text(
  rng: Key[Array, ""],
  length: int,
  table: Float[Array, "V D"],
  encode: EncodeFn,
  *,
  string: str,
  population_size: int = 5000,
) -> Float[Array, "{length} D"]:
  """Copies the embeddings of a text, one row a token.

  The rows that are left over are sampled from the vocabulary; tokens that are
  left over are not used.

  Raises:
    ValueError: if the text has no tokens.
  """
  ids = list(encode(string))
  if not ids:
    raise ValueError(f"PROMPT_STRING={string!r} has no tokens")
  rest = sampled_vocab(
    rng, length, table, encode, population_size=population_size
  )
  return _begin(rest, table, [[x] for x in ids])


def _begin(
  rest: Float[Array, "P D"],
  table: Float[Array, "V D"],
  pieces: Sequence[Sequence[int]],
) -> Float[Array, "P D"]:
  """Replaces the first rows, each by the mean of some embeddings."""
  pieces = pieces[: rest.shape[0]]
  counts = np.array([len(ids) for ids in pieces])
  padded = np.zeros((len(pieces), max(counts)), np.int32)
  for row, ids in zip(padded, pieces, strict=True):
    row[: len(ids)] = ids
  return _begin_with_means(rest, table, padded, counts)


@jax.jit
def _begin_with_means(
  rest: Float[Array, "P D"],
  table: Float[Array, "V D"],
  ids: Int[Array, "N M"],
  counts: Int[Array, " N"],
) -> Float[Array, "P D"]:
  is_used = jnp.arange(ids.shape[1])[None] < counts[:, None]
  rows = jnp.where(is_used[..., None], table[ids].astype(jnp.float32), 0.0)
  means = jnp.sum(rows, axis=1) / counts[:, None]
  return jnp.concatenate([means, rest[len(ids) :]])


def from_file(
  rng: Key[Array, ""],
  length: int,
  table: Float[Array, "V D"],
  encode: EncodeFn,
  *,
  path: str,
) -> Float[Array, "{length} D"]:
  """Reads a prompt that was saved, in any format of `prompt_files`.

  Raises:
    ValueError: if the file is missing or holds no prompt, or one of another
      length, width or base.
  """
  del rng, encode
  found = prompt_files.load(path)
  prompt_files.check(found, path, length=length, table=table)
  return jnp.asarray(found.prompt)
