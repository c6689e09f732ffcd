# SPDX-License-Identifier: Apache-2.0
"""Tokenised examples to batches, in an order that any step can be found in.

Needs numpy alone. The rows of a step follow from the seed and the number of
the step, so that a restarted run continues with the very next row.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import NamedTuple

from jaxtyping import Int, Integer
import numpy as np

from prompt_tuning import buckets as buckets_lib

# Steps whose rows are sorted by length together where there are buckets.
_WINDOW = 64

Batch = dict[str, Int[np.ndarray, "B _"]]


class Ragged(NamedTuple):
  """Rows of different lengths, one behind the other.

  Attributes:
    tokens: all rows end to end; uint16 or int32.
    offsets: int64, where each row starts, and at last where the last one ends.
  """

  tokens: Integer[np.ndarray, " N"]
  offsets: Int[np.ndarray, " _"]

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

  @property
  def lengths(self) -> Int[np.ndarray, " R"]:
    """Number of tokens of each row."""
    return np.diff(self.offsets)

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

  def first(self, num_rows: int) -> "Examples":
    """Returns the first rows, at most `num_rows`."""
    inputs, targets = (
      Ragged(x.tokens, x.offsets[: num_rows + 1]) for x in self
    )
    return Examples(inputs, targets)


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


Sources = Sequence[tuple[Examples, float]]
# The source and number of each row of a batch.
Rows = Sequence[tuple[int, int]]


def train_batches(
  sources: Sources,
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
  seed: int,
  start_step: int = 0,
  buckets: Sequence[int] = (),
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
    buckets: lengths of inputs. If there are some, rows of similar length share
      a batch, which is cut to the smallest bucket that holds them.
  """
  for rows in train_rows(
    sources,
    batch_size=batch_size,
    seed=seed,
    start_step=start_step,
    by_length=bool(buckets),
  ):
    cut = _cut(feature_lengths, buckets, _lengths(sources, rows))
    yield _mixed_batch(sources, rows, cut)


def train_rows(
  sources: Sources,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  by_length: bool = False,
) -> Iterator[Rows]:
  """Yields the rows of each batch from `start_step` on; see `train_batches`."""
  if not by_length:
    yield from _rows_in_order(sources, batch_size, seed, start_step)
    return
  step = start_step - start_step % _WINDOW
  stream = _rows_in_order(sources, batch_size, seed, step)
  while True:
    window = [row for _ in range(_WINDOW) for row in next(stream)]
    order = np.argsort(_lengths(sources, window), kind="stable")
    batches = order.reshape(_WINDOW, batch_size)
    # Short and long batches take turns at random.
    rng = np.random.default_rng([seed, step, _WINDOW, 0])
    for batch in rng.permutation(batches).tolist():
      if step >= start_step:
        yield [window[i] for i in batch]
      step += 1


def _rows_in_order(
  sources: Sources, batch_size: int, seed: int, start_step: int
) -> Iterator[Rows]:
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
      yield [(i, next_row(i)) for i in draw.tolist()]
    step += 1


def _lengths(sources: Sources, rows: Rows) -> list[int]:
  """Returns the number of input tokens of each row."""
  offsets = [examples.inputs.offsets for examples, _ in sources]
  return [int(offsets[i][row + 1] - offsets[i][row]) for i, row in rows]


def _cut(
  feature_lengths: Mapping[str, int],
  buckets: Sequence[int],
  lengths: Sequence[int],
) -> Mapping[str, int]:
  """Returns the feature lengths of a batch with rows of these lengths."""
  if not buckets:
    return feature_lengths
  return {**feature_lengths, "inputs": buckets_lib.fit(buckets, max(lengths))}


def padding_share(
  sources: Sources,
  *,
  batch_size: int,
  feature_lengths: Mapping[str, int],
  seed: int,
  buckets: Sequence[int] = (),
) -> float:
  """Returns which share of the inputs of about an epoch is padding."""
  num_rows = sum(examples.inputs.num_rows for examples, _ in sources)
  num_windows = -(-num_rows // (batch_size * _WINDOW))
  stream = train_rows(
    sources, batch_size=batch_size, seed=seed, by_length=bool(buckets)
  )
  num_tokens = num_positions = 0
  for rows in itertools.islice(stream, num_windows * _WINDOW):
    lengths = _lengths(sources, rows)
    cut = _cut(feature_lengths, buckets, lengths)["inputs"]
    num_tokens += sum(min(length, cut) for length in lengths)
    num_positions += cut * batch_size
  return 1 - num_tokens / num_positions


def _mixed_batch(
  sources: Sources,
  rows: Rows,
  feature_lengths: Mapping[str, int],
) -> Batch:
  """Makes one batch of rows, in order."""
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
  buckets: Sequence[int] = (),
) -> Iterator[tuple[Batch, Int[np.ndarray, " R"]]]:
  """Yields every row once, with the numbers of the rows of the batch.

  They are in order or, with `buckets`, sorted by their length. The last batch
  is filled up with empty rows, which have no numbers.

  Args:
    examples: the rows.
    batch_size: rows a batch.
    feature_lengths: see `make_batch`.
    buckets: see `task_data.TaskData`.
  """
  lengths = examples.inputs.lengths
  order = np.arange(len(lengths))
  if buckets:
    order = np.argsort(lengths, kind="stable")
  for start in range(0, len(order), batch_size):
    rows = order[start : start + batch_size]
    filled = np.pad(rows, (0, batch_size - len(rows)), constant_values=-1)
    cut = _cut(feature_lengths, buckets, lengths[rows].tolist())
    yield make_batch(examples, filled, cut), rows
