# SPDX-License-Identifier: Apache-2.0
"""Self-supervised objectives, on tokens that count up from 10."""

import numpy as np
import pytest

from prompt_tuning import corpus

SIZE = 1000
LENGTHS = {"inputs": 64, "targets": 64}


@pytest.fixture(scope="module")
def run():
  """Runs an objective over documents of the given lengths."""
  from prompt_tuning.tasks import objectives
  import seqio
  import tensorflow as tf

  feature = seqio.Feature(seqio.PassThroughVocabulary(SIZE))

  def run_objective(name, lengths, seed=0):
    ends = np.cumsum(lengths)
    tokens = np.arange(10, 10 + ends[-1], dtype=np.int32)
    dataset = tf.data.Dataset.from_generator(
      lambda: ({"targets": x} for x in np.split(tokens, ends[:-1])),
      output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    kwargs = {"sequence_length": LENGTHS}
    if name in ("span_corruption", "text_infilling"):
      kwargs["output_features"] = {"targets": feature}
    with seqio.utils.map_seed_manager(seed):
      dataset = getattr(objectives, name)(dataset, **kwargs)
    rows = [
      (row["inputs"].tolist(), row["targets"].tolist())
      for row in dataset.as_numpy_iterator()
    ]
    return rows, tokens.tolist()

  return run_objective


def is_sentinel(token):
  return token > SIZE - 100


def filled(inputs, targets):
  """Puts the spans of the targets in place of the sentinels of the inputs."""
  spans = {}
  for token in targets:
    if is_sentinel(token):
      spans[token] = []
      last = token
    else:
      spans[last].append(token)
  whole = []
  for token in inputs:
    whole += spans[token] if is_sentinel(token) else [token]
  return whole


def test_span_corruption_can_be_undone(run):
  rows, tokens = run("span_corruption", [300, 40, 5])
  assert sum((filled(*row) for row in rows), []) == tokens
  for inputs, targets in rows:
    sentinels = [token for token in inputs if is_sentinel(token)]
    assert sentinels == [token for token in targets if is_sentinel(token)]
    assert sentinels == [SIZE - 1 - i for i in range(len(sentinels))]


def test_span_corruption_fills_the_inputs(run):
  # 15 % of 70 tokens are 10, in 3 spans: inputs have 60 + 3 and EOS, targets
  # 10 + 3 and EOS. 71 tokens would be too many: 11 are noise, in 4 spans.
  rows, _ = run("span_corruption", [70 * 3])
  assert [(len(x), len(y)) for x, y in rows] == [(63, 13)] * 3
  text = [sum(not is_sentinel(token) for token in x) for x, _ in rows]
  assert text == [60] * 3


def test_lengths_are_t5s():
  length = corpus.uncorrupted_length(512)
  noise, spans = corpus.num_noise(length)
  assert (length, noise + spans + 1) == (568, 114)


def test_text_infilling_asks_for_the_whole_text(run):
  rows, tokens = run("text_infilling", [130])
  assert sum((targets for _, targets in rows), []) == tokens
  inputs, targets = rows[0]
  assert len(targets) == 63
  assert len(inputs) == 63 - 9 + 3
  kept = [token for token in inputs if not is_sentinel(token)]
  assert set(kept) < set(targets)


def test_token_deletion_asks_for_the_whole_text(run):
  rows, tokens = run("token_deletion", [6300])
  assert sum((targets for _, targets in rows), []) == tokens
  kept = sum((inputs for inputs, _ in rows), [])
  assert kept == sorted(set(kept) & set(tokens))
  # 15 % of 6,300, with a standard deviation of 28.
  assert len(tokens) - len(kept) == pytest.approx(945, abs=4 * 28)


def test_prefix_lm_cuts_anywhere(run):
  rows, tokens = run("prefix_lm", [63 * 100])
  assert sum((x + y for x, y in rows), []) == tokens
  cuts = [len(inputs) for inputs, _ in rows]
  assert min(cuts) >= 1
  assert max(cuts) <= 62
  assert len(set(cuts)) > 30


@pytest.mark.parametrize(
  "name", ["span_corruption", "text_infilling", "token_deletion", "prefix_lm"]
)
def test_no_piece_is_without_target(run, name):
  for length in (1, 2):
    rows, _ = run(name, [length])
    assert len(rows) == 1
    assert rows[0][1]


@pytest.mark.parametrize("name", ["span_corruption", "prefix_lm"])
def test_the_seed_decides(run, name):
  rows = run(name, [500], seed=1)
  assert run(name, [500], seed=1) == rows
  assert run(name, [500], seed=2) != rows


def test_more_spans_than_sentinels_are_an_error():
  with pytest.raises(
    ValueError, match="101 spans, but there are 100 sentinels"
  ):
    corpus.require_sentinels(2020)


def test_partitions_are_all_alike_likely():
  from prompt_tuning.tasks import objectives
  import tensorflow as tf

  sizes = tf.constant(4), tf.constant(3)
  parts = [
    tuple(objectives._partition(*sizes, [seed, 0]).numpy())
    for seed in range(150)
  ]
  # 4 = 1+1+2 = 1+2+1 = 2+1+1: 50 each, with a standard deviation of 6.
  assert set(parts) == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}
  assert min(map(parts.count, set(parts))) > 26
