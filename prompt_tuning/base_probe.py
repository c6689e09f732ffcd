# SPDX-License-Identifier: Apache-2.0
"""Does a base know the ids that it is fed, and what was it pretrained for?

The inputs of a task, without prompt, are given to the base in the two forms
that T5 is pretrained on: continue this, and fill this in. A base that knows
neither better than the same text with its words exchanged does not know the
vocabulary, or nothing at all. One that begins its continuation with a sentinel
has only learnt to fill in: prompts hardly move it from that (Lester et al.,
2021, sec. 3.2).
"""

from collections.abc import Mapping, Sequence
import functools
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prompt_tuning import batching, t5
from prompt_tuning import vocabulary as vocabulary_lib

_NUM_ROWS = 32
_LENGTH = 64  # Tokens of a row; what is behind is not looked at.
_SHORTEST = 6
_GROUP = 8  # Words exchanged among each other.


class _Cloze(NamedTuple):
  """What is asked, and which target tokens are words of the text."""

  inputs: Int[np.ndarray, "B T"]
  targets: Int[np.ndarray, "B U"]
  is_word: Bool[np.ndarray, "B U"]


def probe(
  params: Mapping[str, Array],
  inputs: batching.Ragged,
  *,
  model: t5.Transformer,
  vocabulary_size: int,
) -> dict[str, float]:
  """Looks at a base.

  Args:
    params: of the base, by path.
    inputs: the inputs of a task; the first few are used.
    model: the network; its prompt, if it has one, is left out.
    vocabulary_size: number of ids; the last is the first sentinel.

  Returns:
    `base/continue` and `base/fill_in`, nats a token; `base/continue_exchanged`
    and `base/fill_in_exchanged`, the mean of the same over seven texts whose
    words are exchanged; `base/sentinel`, the probability that a continuation
    begins with the first sentinel. Empty if no input is long enough.
  """
  rows = _rows(inputs)
  if not rows:
    return {}
  sentinel = vocabulary_size - 1
  log_probs = functools.partial(
    _log_probs, dict(params), model=model.clone(prompt=None)
  )
  result = {}
  for name, ask in (
    ("continue", _continuation),
    ("fill_in", functools.partial(_fill_in, sentinel=sentinel)),
  ):
    clozes = [ask(exchange(rows, shift)) for shift in range(_GROUP)]
    found = [log_probs(cloze.inputs, cloze.targets) for cloze in clozes]
    own, *others = [
      -float(np.asarray(x)[cloze.is_word].mean())
      for (x, _), cloze in zip(found, clozes, strict=True)
    ]
    result[f"base/{name}"] = own
    result[f"base/{name}_exchanged"] = float(np.mean(others))
    if name == "continue":
      likely = np.exp(np.asarray(found[0][1])[:, sentinel])
      result["base/sentinel"] = float(likely.mean())
  return result


def _rows(inputs: batching.Ragged) -> list[Int[np.ndarray, " _"]]:
  """Takes the first rows that are long enough, without EOS."""
  result: list[np.ndarray] = []
  for start, end in zip(inputs.offsets[:-1], inputs.offsets[1:], strict=True):
    row = inputs.tokens[start:end]
    row = row[row != vocabulary_lib.EOS][:_LENGTH].astype(np.int32)
    if len(row) >= _SHORTEST and len(result) < _NUM_ROWS:
      result.append(row)
  return result


def exchange(
  rows: Sequence[Int[np.ndarray, " _"]], shift: int
) -> list[Int[np.ndarray, " _"]]:
  """Exchanges words for others of about their frequency, the same throughout.

  SentencePiece's ids are sorted by frequency: of the ids that occur, each eight
  that follow one another are turned by `shift`. In another vocabulary that is
  sorted by frequency a text looks much like this. A shift of 1:

  [5 7 7 9]   [9 5 5 7]
  """
  found = np.unique(np.concatenate(rows))
  groups = [found[i : i + _GROUP] for i in range(0, len(found), _GROUP)]
  turned = np.concatenate([np.roll(group, shift) for group in groups])
  return [turned[np.searchsorted(found, row)] for row in rows]


def _continuation(rows: Sequence[Int[np.ndarray, " _"]]) -> _Cloze:
  """Asks for the second half of each row."""
  halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in rows]
  return _pad([(x, y, np.ones(len(y), bool)) for x, y in halves])


def _fill_in(rows: Sequence[Int[np.ndarray, " _"]], sentinel: int) -> _Cloze:
  """Asks for the middle third of each row, between two sentinels."""
  parts = []
  for row in rows:
    start, end = len(row) // 3, 2 * len(row) // 3
    text = np.concatenate([row[:start], [sentinel], row[end:]])
    span = np.concatenate([[sentinel], row[start:end], [sentinel - 1]])
    is_word = np.ones(len(span), bool)
    is_word[[0, -1]] = False
    parts.append((text, span, is_word))
  return _pad(parts)


def _pad(
  parts: Sequence[
    tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"], Bool[np.ndarray, " _"]]
  ],
) -> _Cloze:
  """Pads inputs, with EOS, and targets to one shape, so that one program does.

  Targets have no EOS: where a text ends says nothing of its words.
  """
  inputs = np.zeros((len(parts), _LENGTH + 2), np.int32)
  targets = np.zeros((len(parts), _LENGTH), np.int32)
  is_word = np.zeros(targets.shape, bool)
  for i, (text, target, words) in enumerate(parts):
    inputs[i, : len(text)] = text
    inputs[i, len(text)] = vocabulary_lib.EOS
    targets[i, : len(target)] = target
    is_word[i, : len(target)] = words
  return _Cloze(inputs, targets, is_word)


@functools.partial(jax.jit, static_argnames="model")
def _log_probs(
  params: dict[str, Array],
  inputs: Int[Array, "B T"],
  targets: Int[Array, "B U"],
  *,
  model: t5.Transformer,
) -> tuple[Float[Array, "B U"], Float[Array, "B V"]]:
  """Returns the log-probability of each target token, and all of the first."""
  logits = model.apply(
    {"params": traverse_util.unflatten_dict(params, sep="/")},
    inputs,
    jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
    targets,
    enable_dropout=False,
  )
  assert isinstance(logits, Array)  # No collection is mutable.
  log_probs = jax.nn.log_softmax(logits)
  found = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
  return found[..., 0], log_probs[:, 0]
