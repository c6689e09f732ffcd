# SPDX-License-Identifier: Apache-2.0
"""A corpus of tokens to batches of pretraining and of LM adaptation.

The documents of a corpus are joined and cut to pieces of one length, which an
objective turns into inputs and targets, so that no position is padding:

    tokens            a b c d e f g h
    span corruption   a b <0> e f g <1>    ->  <0> c d <1> h
    prefix LM         a b c                ->  d e f g h

Each epoch cuts the pieces elsewhere, in another order, with other noise. As in
`batching`, a step's batch follows from the seed and the number of the step.
`tasks/objectives.py` has the same objectives, and BART's, for seqio.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import itertools

from jaxtyping import Bool, Int, Integer
import numpy as np

from prompt_tuning import batching, task_data, vocabulary

OBJECTIVES = ("span_corruption", "prefix_lm")
# The feature lengths of a cache of documents, which are not cut.
UNCUT = {"inputs": 0, "targets": 0}

# Raffel et al. (2020), sec. 3.3.4.
NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3
NUM_SENTINELS = 100

_EOS = vocabulary.EOS
Tokens = Int[np.ndarray, "B _"]


def with_objective(
  *,
  load_documents: Callable[[], task_data.TaskData],
  objective: str,
  feature_lengths: Mapping[str, int],
) -> task_data.TaskData:
  """Makes a task of documents one of pretraining.

  Args:
    load_documents: reads a task with one document in the targets of each row.
    objective: one of `OBJECTIVES`.
    feature_lengths: number of tokens of `inputs` and `targets`. Span corruption
      fills targets of 114 tokens for inputs of 512, as in T5; a prefix LM has
      two pieces in each row, packed without padding, and needs equal lengths.

  Raises:
    ValueError: for an unknown objective, lengths that do not suit it, several
      tasks, or fewer tokens than one batch row needs.
  """
  if objective not in OBJECTIVES:
    raise ValueError(f"OBJECTIVE={objective!r} must be one of {OBJECTIVES}")
  documents = load_documents()
  if len(documents.train_sources) != 1:
    raise ValueError(
      f"{documents.name} has {len(documents.train_sources)} tasks, a corpus is"
      " one: join their text files"
    )
  if len(documents.eval_tasks) > 1:
    raise ValueError(
      f"{documents.name} has {len(documents.eval_tasks)} tasks to evaluate, a"
      " corpus is one: join their text files"
    )
  length = piece_length(objective, feature_lengths)
  tokens = documents.train_sources[0][0].targets.tokens
  name = f"{documents.name}_{objective}"
  evaluated = [task.examples.targets.tokens for task in documents.eval_tasks]
  for stream in (tokens, *evaluated):
    if len(stream) < 2 * length:
      raise ValueError(
        f"{documents.name} has a split of {len(stream)} tokens, two pieces need"
        f" {2 * length}: add text or shorten TASK_FEATURE_LENGTHS"
      )
  size = documents.vocabulary.size
  return task_data.TaskData(
    name,
    [name],
    [],
    [
      task_data.EvalTask(
        name,
        _examples(stream, length, objective, vocab_size=size),
        (),
        task_data.unscored(name),
      )
      for stream in evaluated
    ],
    dict(feature_lengths),
    documents.vocabulary,
    batches_fn=functools.partial(
      train_batches, tokens, length, objective, vocab_size=size
    ),
  )


def piece_length(objective: str, feature_lengths: Mapping[str, int]) -> int:
  """Returns the number of tokens of a piece.

  Raises:
    ValueError: if the lengths do not suit the objective.
  """
  inputs, targets = feature_lengths["inputs"], feature_lengths["targets"]
  if objective == "prefix_lm":
    if inputs != targets or inputs < 4:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)}: a prefix LM packs two"
        " pieces in a row, for which inputs and targets must be equal, 4 or"
        " more"
      )
    return inputs - 2  # Two EOS.
  length = uncorrupted_length(inputs)
  noise, spans = num_noise(length)
  wanted = noise + spans + 1
  if targets != wanted:
    raise ValueError(
      f"TASK_FEATURE_LENGTHS={dict(feature_lengths)}: span corruption of"
      f" {inputs} inputs has targets of {wanted} tokens"
    )
  return length


def train_batches(
  tokens: Integer[np.ndarray, " N"],
  length: int,
  objective: str,
  *,
  vocab_size: int,
  batch_size: int,
  seed: int,
  start_step: int = 0,
) -> Iterator[batching.Batch]:
  """Yields the batches from `start_step` on, without end.

  Args:
    tokens: the documents, end to end.
    length: tokens of a piece.
    objective: one of `OBJECTIVES`.
    vocab_size: one more than the id of the first sentinel.
    batch_size: rows a batch.
    seed: of the pieces, their order and the noise.
    start_step: number of batches to skip.
  """
  is_packed = objective == "prefix_lm"
  num_pieces = 2 * batch_size if is_packed else batch_size
  starts = _starts(len(tokens), length, seed, start_step * num_pieces)
  step = start_step
  while True:
    pieces = np.stack(
      [tokens[i : i + length] for i in itertools.islice(starts, num_pieces)]
    ).astype(np.int32)
    rng = np.random.default_rng([seed, step, 1])
    if is_packed:
      yield packed_prefix_lm(pieces, rng)
    else:
      inputs, targets = span_corruption(pieces, rng, vocab_size=vocab_size)
      yield _batch(inputs, targets)
    step += 1


def _starts(
  num_tokens: int, length: int, seed: int, position: int
) -> Iterator[int]:
  """Yields where each piece starts, from a position in the order on."""
  # Whatever the offset of an epoch is, so many pieces lie behind it.
  num_pieces = num_tokens // length - 1
  while True:
    epoch, position_in_epoch = divmod(position, num_pieces)
    rng = np.random.default_rng([seed, epoch, 0])
    offset = int(rng.integers(length))
    order = rng.permutation(num_pieces)[position_in_epoch:]
    yield from (offset + length * order).tolist()
    position += len(order)


def _examples(
  tokens: Integer[np.ndarray, " N"],
  length: int,
  objective: str,
  *,
  vocab_size: int,
) -> batching.Examples:
  """Makes the rows that the loss is measured on, always the same."""
  pieces = tokens[: len(tokens) // length * length].reshape(-1, length)
  pieces, rng = pieces.astype(np.int32), np.random.default_rng(0)
  if objective == "span_corruption":
    corrupted = span_corruption(pieces, rng, vocab_size=vocab_size)
    inputs, targets = map(list, corrupted)
  else:
    cuts = rng.integers(1, length, len(pieces)).tolist()
    cut = list(zip(pieces, cuts, strict=True))
    inputs = [np.append(piece[:i], _EOS) for piece, i in cut]
    targets = [np.append(piece[i:], _EOS) for piece, i in cut]
  return batching.Examples(
    batching.Ragged.from_rows(inputs), batching.Ragged.from_rows(targets)
  )


def _batch(inputs: Tokens, targets: Tokens) -> batching.Batch:
  return {
    "encoder_input_tokens": inputs,
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.ones_like(targets),
  }


def packed_prefix_lm(
  pieces: Int[np.ndarray, "N L"], rng: np.random.Generator
) -> batching.Batch:
  """Cuts pieces in two at random places, and packs two pieces in each row.

  The second is cut as far from its end as the first from its start, so that
  any two fill their row, and each cut alone is uniform. `a b c d` cut behind
  `a`, and `p q r s`:

      encoder_input_tokens   a 1 p q r 1     decoder_input_tokens   0 b c d 0 s
      encoder_segment_ids    1 1 2 2 2 2     decoder_target_tokens  b c d 1 s 1
                                             decoder_segment_ids    1 1 1 1 2 2

  Args:
    pieces: an even number of them.
    rng: of the cuts.
  """
  num_rows, length = len(pieces) // 2, pieces.shape[1]
  names = [
    f"{side}_{name}"
    for side in ("encoder", "decoder")
    for name in ("input_tokens", "segment_ids")
  ]
  names += ["decoder_target_tokens", "decoder_loss_weights"]
  batch = {name: np.ones((num_rows, length + 2), np.int32) for name in names}
  cuts = rng.integers(1, length, num_rows).tolist()
  for row, i in enumerate(cuts):
    first, second = pieces[2 * row], pieces[2 * row + 1]
    j = length - i  # Where the second is cut; also the length of a target.
    inputs, targets = first[:i], first[i:]
    batch["encoder_input_tokens"][row, :i] = inputs
    batch["encoder_input_tokens"][row, i + 1 : -1] = second[:j]
    batch["encoder_segment_ids"][row, i + 1 :] = 2
    batch["decoder_target_tokens"][row, :j] = targets
    batch["decoder_target_tokens"][row, j + 1 : -1] = second[j:]
    batch["decoder_input_tokens"][row, 0] = 0
    batch["decoder_input_tokens"][row, 1 : j + 1] = targets
    batch["decoder_input_tokens"][row, j + 1] = 0
    batch["decoder_input_tokens"][row, j + 2 :] = second[j:]
    batch["decoder_segment_ids"][row, j + 1 :] = 2
  return batch


def span_corruption(
  pieces: Int[np.ndarray, "B L"],
  rng: np.random.Generator,
  *,
  vocab_size: int,
) -> tuple[Tokens, Tokens]:
  """Replaces spans by sentinels; the targets spell them out. Both end in EOS.

  15 % of the tokens are noise, in spans of 3 on average (Raffel et al., 2020,
  sec. 3.3.4). All rows have equally many.

  Args:
    pieces: the tokens.
    rng: of the spans.
    vocab_size: one more than the id of the first sentinel.
  """
  num_rows, length = pieces.shape
  noise, spans = num_noise(length)
  lengths = np.stack(
    [
      _partition(length - noise, spans, num_rows, rng),
      _partition(noise, spans, num_rows, rng),
    ],
    axis=2,
  )
  is_noise = np.tile([False, True], num_rows * spans)
  mask = np.repeat(is_noise, lengths.ravel()).reshape(num_rows, length)
  return (
    _spans_to_sentinels(pieces, mask, vocab_size),
    _spans_to_sentinels(pieces, ~mask, vocab_size),
  )


def _partition(
  num_items: int, num_parts: int, num_rows: int, rng: np.random.Generator
) -> Int[np.ndarray, "B _"]:
  """Splits items into parts of at least one, all partitions alike likely."""
  is_end = np.arange(num_items - 1) < num_parts - 1
  is_end = rng.permuted(np.tile(is_end, (num_rows, 1)), axis=1)
  ends = np.nonzero(is_end)[1].reshape(num_rows, num_parts - 1) + 1
  ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=(0, num_items))
  return np.diff(ends, axis=1)


def _spans_to_sentinels(
  tokens: Int[np.ndarray, "B L"],
  mask: Bool[np.ndarray, "B L"],
  vocab_size: int,
) -> Tokens:
  """Puts sentinel 0, 1, ... in the place of each run where `mask` is True."""
  is_first = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
  sentinels = vocab_size - np.cumsum(is_first, axis=1)
  replaced = np.where(is_first, sentinels, tokens)[~mask | is_first]
  rows = replaced.reshape(len(tokens), -1).astype(np.int32)
  return np.pad(rows, ((0, 0), (0, 1)), constant_values=_EOS)


def num_noise(length: int) -> tuple[int, int]:
  """Returns how many tokens of a piece are noise, in how many spans."""
  noise = min(max(round(length * NOISE_DENSITY), 1), max(length - 1, 1))
  most = max(min(noise, length - noise), 1)
  return noise, min(max(round(noise / MEAN_SPAN_LENGTH), 1), most)


def uncorrupted_length(inputs_length: int) -> int:
  """Returns the most tokens whose corrupted inputs fit, with EOS.

  For 512 it is 568, as in T5, and the targets have 114 tokens.

  Raises:
    ValueError: if there are more spans than sentinels.
  """
  length = inputs_length
  while True:
    noise, spans = num_noise(length + 1)
    if length + 1 - noise + spans + 1 > inputs_length:
      break
    length += 1
  require_sentinels(length)
  return length


def require_sentinels(length: int) -> None:
  """Refuses pieces with more spans than there are sentinels."""
  _, spans = num_noise(length)
  if spans > NUM_SENTINELS:
    raise ValueError(
      f"pieces of {length} tokens have {spans} spans, but there are "
      f"{NUM_SENTINELS} sentinels: shorten the inputs"
    )
