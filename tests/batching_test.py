# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import numpy as np
from paths import GOLDENS
import pytest

from prompt_tuning import batching

LENGTHS = {"inputs": 8, "targets": 6}


def examples(inputs, targets=None):
  rows = lambda values: [np.array(row, np.int32) for row in values]
  targets = inputs if targets is None else targets
  return batching.Examples(
    batching.Ragged.from_rows(rows(inputs)),
    batching.Ragged.from_rows(rows(targets)),
  )


def numbered(num_rows, start=2):
  """Examples whose input is one token that tells which row it is."""
  return examples([[start + i] for i in range(num_rows)])


def first_tokens(batches, num_batches):
  batches = itertools.islice(batches, num_batches)
  return [x["encoder_input_tokens"][:, 0].tolist() for x in batches]


def stream(sources, **kwargs):
  kwargs = {"batch_size": 4, "seed": 0, **kwargs}
  return batching.train_batches(sources, feature_lengths=LENGTHS, **kwargs)


def test_batches_equal_those_of_seqio(golden):
  arrays = golden("feature_conversion")
  rows = json.loads((GOLDENS / "feature_conversion.json").read_text())
  rows = rows["append_eos_after_trim"]
  batch = batching.make_batch(
    examples([x["inputs"] for x in rows], [x["targets"] for x in rows]),
    np.arange(4),
    LENGTHS,
  )
  assert len(batch) == 4
  for name, x in batch.items():
    expected = arrays[f"enc_dec/pack_False/{name}"]
    np.testing.assert_array_equal(x, expected, err_msg=name)


def test_targets_are_shifted_behind_a_zero():
  batch = batching.make_batch(
    examples([[5]], [[7, 8, 1]]), np.array([0]), {"inputs": 2, "targets": 4}
  )
  assert batch["decoder_target_tokens"].tolist() == [[7, 8, 1, 0]]
  assert batch["decoder_input_tokens"].tolist() == [[0, 7, 8, 1]]
  assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 0]]


def test_rows_are_cut_or_padded_and_minus_one_is_empty():
  ragged = batching.Ragged.from_rows([np.array([5, 6, 7]), np.array([8])])
  padded = ragged.padded(np.array([1, -1, 0]), 2)
  assert padded.tolist() == [[8, 0], [0, 0], [5, 6]]
  assert ragged.num_rows == 2


def test_each_epoch_has_every_row_once_in_another_order():
  sources = [(numbered(6), 1.0)]
  tokens = sum(first_tokens(stream(sources), 6), [])
  epochs = [tokens[i : i + 6] for i in range(0, 24, 6)]
  assert all(sorted(epoch) == list(range(2, 8)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("num_sources", [1, 2])
def test_a_restarted_stream_continues_with_the_next_row(num_sources):
  sources = [(numbered(5), 1.0), (numbered(7, start=50), 2.0)][:num_sources]
  straight = first_tokens(stream(sources), 20)
  for step in (0, 1, 13):
    resumed = first_tokens(stream(sources, start_step=step), 20 - step)
    assert resumed == straight[step:]


def test_the_seed_sets_the_order():
  sources = [(numbered(50), 1.0)]
  orders = [first_tokens(stream(sources, seed=seed), 5) for seed in (0, 0, 1)]
  assert orders[0] == orders[1] != orders[2]


def test_sources_are_mixed_by_their_rates():
  sources = [(numbered(5), 1.0), (numbered(7, start=50), 3.0)]
  tokens = sum(first_tokens(stream(sources), 500), [])
  share = np.mean(np.array(tokens) >= 50)
  assert 0.72 < share < 0.78
  counts = np.bincount([x for x in tokens if x >= 50])[50:]
  assert counts.max() - counts.min() <= 1


def test_evaluation_sees_every_row_once_in_order():
  batches = list(
    batching.eval_batches(numbered(7), batch_size=3, feature_lengths=LENGTHS)
  )
  assert [rows.tolist() for _, rows in batches] == [[0, 1, 2], [3, 4, 5], [6]]
  tokens = first_tokens((batch for batch, _ in batches), 3)
  assert tokens == [[2, 3, 4], [5, 6, 7], [8, 0, 0]]


def lengths_of(batches, num_batches):
  return [
    (x["encoder_input_tokens"] > 0).sum(axis=1).tolist()
    for x in itertools.islice(batches, num_batches)
  ]


@pytest.fixture
def uneven():
  """Two sources of rows of 1 to 8 tokens."""
  rng = np.random.default_rng(0)
  rows = lambda start: [
    [start + i] * int(n) for i, n in enumerate(rng.integers(1, 9, 40))
  ]
  return [(examples(rows(2)), 1.0), (examples(rows(50)), 2.0)]


def test_buckets_change_neither_the_rows_nor_their_rates(uneven):
  num_steps = 2 * 64  # Two windows.
  plain = sum(first_tokens(stream(uneven), num_steps), [])
  found = sum(first_tokens(stream(uneven, buckets=(2, 4, 8)), num_steps), [])
  assert sorted(plain) == sorted(found)
  assert plain != found


def test_batches_are_cut_to_the_bucket_that_holds_them(uneven):
  buckets = (2, 4, 8)
  batches = list(itertools.islice(stream(uneven, buckets=buckets), 64))
  for batch in batches:
    tokens = batch["encoder_input_tokens"]
    longest = (tokens > 0).sum(axis=1).max()
    assert tokens.shape == (4, min(x for x in buckets if x >= longest))
    assert batch["decoder_target_tokens"].shape == (4, 6)
  lengths = [batch["encoder_input_tokens"].shape[1] for batch in batches]
  assert set(lengths) == set(buckets)
  assert lengths != sorted(lengths)


@pytest.mark.parametrize("start_step", [1, 63, 64, 100])
def test_a_restarted_stream_with_buckets_continues(uneven, start_step):
  run = lambda **kwargs: stream(uneven, buckets=(4, 8), **kwargs)
  straight = list(itertools.islice(run(), 130))[start_step:]
  resumed = itertools.islice(run(start_step=start_step), len(straight))
  for a, b in zip(straight, resumed, strict=True):
    for name, x in a.items():
      np.testing.assert_array_equal(x, b[name])


def test_the_share_of_padding_is_counted():
  sources = [(examples([[1], [1], [1, 1, 1, 1], [1, 1]]), 1.0)]
  share = lambda buckets: batching.padding_share(
    sources, batch_size=1, feature_lengths=LENGTHS, seed=0, buckets=buckets
  )
  assert share(()) == pytest.approx(1 - 8 / 32)
  assert share((8,)) == pytest.approx(1 - 8 / 32)
  assert share((2, 4)) == pytest.approx(1 - 8 / 10)
  # A row that no bucket holds is cut.
  assert share((2,)) == pytest.approx(1 - 6 / 8)


def test_evaluation_with_buckets_sees_every_row_once(uneven):
  task = uneven[0][0]
  batches = list(
    batching.eval_batches(
      task, batch_size=7, feature_lengths=LENGTHS, buckets=(3, 8)
    )
  )
  rows = np.concatenate([rows for _, rows in batches])
  assert sorted(rows.tolist()) == list(range(40))
  for batch, rows in batches:
    tokens = batch["encoder_input_tokens"]
    assert tokens.shape[1] in (3, 8)
    assert tokens[: len(rows), 0].tolist() == (rows + 2).tolist()
    assert not tokens[len(rows) :].any()


def test_the_first_rows_can_be_taken():
  first = examples([[5], [6, 7], [8]]).first(2)
  assert first.inputs.padded(np.arange(2), 2).tolist() == [[5, 0], [6, 7]]
  assert first.targets.num_rows == 2
  assert examples([[5]]).first(9).inputs.num_rows == 1


@pytest.mark.parametrize("batch_size", [4, 8])
@pytest.mark.parametrize("lengths", [(), (1, 8)])
def test_every_row_is_evaluated_once(batch_size, lengths):
  source = examples([[2 + i] * (1 + i % 3) for i in range(11)])
  pairs = list(
    batching.eval_batches(
      source,
      batch_size=batch_size,
      feature_lengths=LENGTHS,
      buckets=lengths,
    )
  )
  assert {len(batch["encoder_input_tokens"]) for batch, _ in pairs} == {
    batch_size
  }
  seen = {
    int(row): int(batch["encoder_input_tokens"][i, 0])
    for batch, rows in pairs
    for i, row in enumerate(rows)
  }
  assert sum(len(rows) for _, rows in pairs) == 11
  assert seen == {i: 2 + i for i in range(11)}
