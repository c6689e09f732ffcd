# SPDX-License-Identifier: Apache-2.0
"""Tokenised examples to batches, in an order that any step can be found in.

Needs numpy alone. The rows of a step follow from the seed and the number of
the step, so that a restarted run continues with the very next row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Int
import numpy as np

Batch = dict[str, Int[np.ndarray, "B _"]]


class Ragged(NamedTuple):
  """Rows of different lengths, one behind the other.

  Attributes:
    tokens: int32, all rows end to end.
    offsets: int64, where each row starts, and at last where the last one ends.
  """

  tokens: Int[np.ndarray, " N"]
  offsets: Int[np.ndarray, " R"]

  @classmethod
  def from_rows(cls, rows: Sequence[Int[np.ndarray, " _"]]) -> "Ragged":
    """Puts the rows end to end."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    tokens = np.concatenate([np.zeros(0, np.int32), *rows])
    return cls(tokens.astype(np.int32), offsets)

  @property
  def num_rows(self) -> int:
    """Number of rows."""
    return len(self.offsets) - 1

  def padded(
    self, rows: Int[np.ndarray, " B"], length: int
  ) -> Int[np.ndarray, "B {length}"]:
    """Copies rows into an array, cut or padded with 0 to `length`.

    Row -1 stands for an empty row.
    """
    result = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
      if row >= 0:
        start, end = self.offsets[row], self.offsets[row + 1]
        tokens = self.tokens[start : min(end, start + length)]
        result[i, : len(tokens)] = tokens
    return result


class Examples(NamedTuple):
  """The tokenised rows of one task and split."""

  inputs: Ragged
  targets: Ragged


def make_batch(
  examples: Examples,
  rows: Int[np.ndarray, " B"],
  feature_lengths: Mapping[str, int],
) -> Batch:
  """Makes the batch of some rows.

  The decoder reads its target shifted to the right, behind a 0:

      decoder_target_tokens  [[7, 8, 1, 0]]
      decoder_input_tokens   [[0, 7, 8, 1]]
      decoder_loss_weights   [[1, 1, 1, 0]]

  Args:
    examples: where the rows come from.
    rows: their numbers; -1 stands for an empty row.
    feature_lengths: number of tokens of `inputs` and `targets`.
  """
  targets = examples.targets.padded(rows, feature_lengths["targets"])
  return {
    "encoder_input_tokens": examples.inputs.padded(
      rows, feature_lengths["inputs"]
    ),
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": (targets > 0).astype(np.int32),
  }


def train_batches(
  sources: Sequence[tuple[Examples, float]],
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
  seed: int,
  start_step: int = 0,
) -> Iterator[Batch]:
  """Yields the batches from `start_step` on, without end.

  Each epoch of a source goes through its rows in another random order. With
  several sources, the source of each row is drawn by their rates.

  Args:
    sources: pairs of examples and mixing rate.
    batch_size: rows a batch.
    feature_lengths: see `make_batch`.
    seed: of all orders.
    start_step: number of batches to skip.
  """
  rates = np.array([rate for _, rate in sources], np.float64)
  taken = np.zeros(len(sources), np.int64)
  orders: list[tuple[int, np.ndarray]] = [(-1, np.zeros(0))] * len(sources)

  def next_row(source: int) -> int:
    num_rows = sources[source][0].inputs.num_rows
    epoch, position = divmod(int(taken[source]), num_rows)
    if orders[source][0] != epoch:
      rng = np.random.default_rng([seed, source, epoch])
      orders[source] = (epoch, rng.permutation(num_rows))
    taken[source] += 1
    return int(orders[source][1][position])

  step = 0
  while True:
    draw = np.zeros(batch_size, np.int64)
    if len(sources) > 1:
      rng = np.random.default_rng([seed, step])
      draw = rng.choice(len(sources), batch_size, p=rates / rates.sum())
    if step < start_step:
      taken += np.bincount(draw, minlength=len(sources))
    else:
      rows = [(i, next_row(i)) for i in draw.tolist()]
      yield _mixed_batch(sources, rows, feature_lengths)
    step += 1


def _mixed_batch(
  sources: Sequence[tuple[Examples, float]],
  rows: Sequence[tuple[int, int]],
  feature_lengths: Mapping[str, int],
) -> Batch:
  """Makes one batch of rows `(source, row)`, in order."""
  batch: Batch = {}
  owners = np.array([source for source, _ in rows])
  for source in sorted(set(owners.tolist())):
    at = np.flatnonzero(owners == source)
    part = make_batch(
      sources[source][0],
      np.array([row for owner, row in rows if owner == source]),
      feature_lengths,
    )
    for name, x in part.items():
      batch.setdefault(name, np.zeros((len(rows), x.shape[1]), np.int32))
      batch[name][at] = x
  return batch


def eval_batches(
  examples: Examples,
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
) -> Iterator[tuple[Batch, int]]:
  """Yields every row once, in order, with the number of real rows.

  The last batch is filled up with empty rows.
  """
  num_rows = examples.inputs.num_rows
  for start in range(0, num_rows, batch_size):
    rows = np.arange(start, start + batch_size)
    rows[rows >= num_rows] = -1
    yield (
      make_batch(examples, rows, feature_lengths),
      min(batch_size, num_rows - start),
    )
