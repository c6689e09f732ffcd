# SPDX-License-Identifier: Apache-2.0
"""A corpus to batches: the objectives, packing, and the order of the pieces."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest

from prompt_tuning import (
  batching,
  cache,
  corpus,
  loop,
  losses,
  optim,
  t5,
  task_data,
  train,
  vocabulary,
)

LENGTHS = {"inputs": 512, "targets": 114}
PACKED = {"inputs": 34, "targets": 34}


def documents(num_tokens=5000, size=256 + 3 + 125):
  tokens = np.arange(num_tokens, dtype=np.int32) % 200 + 3
  examples = batching.Examples(
    batching.Ragged.from_rows([np.zeros(0, np.int32)] * 2),
    batching.Ragged.from_rows([tokens[:30], tokens[30:]]),
  )
  rows = [{"targets_pretokenized": b""}] * 2
  scoring = task_data.unscored("herons")
  return task_data.TaskData(
    "herons",
    ["herons"],
    [(examples, 1.0)],
    [task_data.EvalTask("herons", examples, rows, scoring)],
    corpus.UNCUT,
    vocabulary.from_bytes(size),
  )


def made(objective, lengths, **kwargs):
  return corpus.with_objective(
    load_documents=lambda: documents(**kwargs),
    objective=objective,
    feature_lengths=lengths,
  )


def take(data, num_steps, **kwargs):
  settings = {"batch_size": 4, "seed": 3, **kwargs}
  return list(itertools.islice(data.batches_fn(**settings), num_steps))


def test_span_corruption_loses_no_token():
  pieces = np.arange(2 * 568).reshape(2, 568).astype(np.int32) + 3
  rng = np.random.default_rng(0)
  inputs, targets = corpus.span_corruption(pieces, rng, vocab_size=2000)
  assert inputs.shape == (2, 512)
  assert targets.shape == (2, 114)
  for piece, row, target in zip(pieces, inputs, targets, strict=True):
    spans = np.flatnonzero(target >= 1900)
    assert len(spans) == 28
    assert target[spans].tolist() == list(range(1999, 1971, -1))
    assert row[-1] == target[-1] == 1
    noise = {}
    for start, stop in itertools.pairwise([*spans.tolist(), 113]):
      noise[int(target[start])] = target[start + 1 : stop].tolist()
    whole = []
    for token in row[:-1].tolist():
      whole += noise.get(token, [token])
    assert whole == piece.tolist()


def test_pieces_lie_in_the_corpus_and_no_two_epochs_are_alike():
  data = made("span_corruption", LENGTHS)
  num_pieces = 5000 // 568 - 1
  first, second = take(data, 2, batch_size=num_pieces)
  again = take(data, 1, batch_size=num_pieces, start_step=1)[0]
  for name, x in second.items():
    np.testing.assert_array_equal(again[name], x)
  assert (first["encoder_input_tokens"] != second["encoder_input_tokens"]).any()
  assert first["decoder_loss_weights"].all()


@pytest.mark.parametrize(
  ("objective", "lengths"),
  [("span_corruption", LENGTHS), ("prefix_lm", PACKED)],
)
def test_any_step_can_be_the_first(objective, lengths):
  data = made(objective, lengths)
  batches = take(data, 9)
  for name, x in take(data, 1, start_step=8)[0].items():
    np.testing.assert_array_equal(x, batches[8][name])


def test_two_pieces_fill_a_row():
  pieces = np.array([[10, 11, 12, 13], [20, 21, 22, 23]], np.int32)
  # This seed cuts the first piece behind its first token.
  batch = corpus.packed_prefix_lm(pieces, np.random.default_rng(11))
  assert {name: x[0].tolist() for name, x in batch.items()} == {
    "encoder_input_tokens": [10, 1, 20, 21, 22, 1],
    "encoder_segment_ids": [1, 1, 2, 2, 2, 2],
    "decoder_input_tokens": [0, 11, 12, 13, 0, 23],
    "decoder_target_tokens": [11, 12, 13, 1, 23, 1],
    "decoder_segment_ids": [1, 1, 1, 1, 2, 2],
    "decoder_loss_weights": [1, 1, 1, 1, 1, 1],
  }


def test_a_packed_row_has_the_loss_of_its_pieces(tiny_config, tiny_params):
  import jax

  from prompt_tuning import losses, t5, trainer

  loss_fn = functools.partial(
    trainer.loss_fn,
    model=t5.Transformer(tiny_config),
    loss=losses.LossConfig(),
  )
  compute = jax.jit(lambda batch: loss_fn(tiny_params, {}, batch, None)[0])
  rng = np.random.default_rng(0)
  pieces = rng.integers(3, 100, (6, 14)).astype(np.int32)
  packed = corpus.packed_prefix_lm(pieces, np.random.default_rng(1))
  lengths = [14 for _ in pieces]
  cuts = np.random.default_rng(1).integers(1, 14, 3).tolist()
  cuts = [x for cut in cuts for x in (cut, 14 - cut)]
  cut = list(zip(pieces, cuts, strict=True))
  examples = batching.Examples(
    batching.Ragged.from_rows([np.append(x[:i], 1) for x, i in cut]),
    batching.Ragged.from_rows([np.append(x[i:], 1) for x, i in cut]),
  )
  apart = batching.make_batch(
    examples, np.arange(len(lengths)), {"inputs": 16, "targets": 16}
  )
  found, wanted = compute(packed), compute(apart)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ("objective", "lengths", "message"),
  [
    ("prefix", LENGTHS, "OBJECTIVE='prefix' must be one of"),
    ("prefix_lm", LENGTHS, "for which inputs and targets must be equal"),
    ("span_corruption", PACKED, "of 34 inputs has targets of 9 tokens"),
    (
      "span_corruption",
      {"inputs": 4096, "targets": 907},
      "but there are 100 sentinels: shorten the inputs",
    ),
    (
      "prefix_lm",
      {"inputs": 4096, "targets": 4096},
      "herons has a split of 5000 tokens, two pieces need 8188",
    ),
  ],
)
def test_a_mistake_is_one_sentence(objective, lengths, message):
  with pytest.raises(ValueError, match=message):
    made(objective, lengths)


def test_several_tasks_are_no_corpus():
  twice = documents()
  twice = twice._replace(train_sources=twice.train_sources * 2)
  with pytest.raises(ValueError, match="herons has 2 tasks, a corpus is one"):
    corpus.with_objective(
      load_documents=lambda: twice,
      objective="prefix_lm",
      feature_lengths=PACKED,
    )


def test_pieces_have_no_buckets():
  with pytest.raises(ValueError, match="num_buckets=2: the rows of herons_"):
    task_data.with_buckets(made("prefix_lm", PACKED), 2)


def test_a_cache_of_documents_gives_the_same_batches(tmp_path):
  cache.write(str(tmp_path / "cache"), documents())
  read = corpus.with_objective(
    load_documents=lambda: cache.from_cache(
      cache_dir=str(tmp_path / "cache"),
      mixture_or_task_name="herons",
      feature_lengths=corpus.UNCUT,
      scoring_fn=task_data.unscored,
    ),
    objective="span_corruption",
    feature_lengths=LENGTHS,
  )
  (found,), (wanted,) = take(read, 1), take(made("span_corruption", LENGTHS), 1)
  for name, x in wanted.items():
    np.testing.assert_array_equal(found[name], x)
  assert read.eval_tasks[0].examples.inputs.num_rows == 5000 // 568


OBJECTIVES = [("span_corruption", LENGTHS), ("prefix_lm", PACKED)]


@pytest.mark.parametrize(("objective", "lengths"), OBJECTIVES)
def test_an_objective_has_rows_of_its_own(objective, lengths):
  data = made(objective, lengths)
  (batch,) = take(data, 1)
  is_corrupted = objective == "span_corruption"
  assert ("encoder_segment_ids" in batch) != is_corrupted
  first_sentinel = data.vocabulary.size - 1
  for inputs in (
    batch["encoder_input_tokens"],
    data.eval_tasks[0].examples.inputs.tokens,
  ):
    assert (first_sentinel in inputs) == is_corrupted


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "lengths"), OBJECTIVES)
def test_a_corpus_trains_and_evaluates(
  tiny_config, tmp_path, objective, lengths
):
  model = t5.Transformer(dataclasses.replace(tiny_config, vocab_size=384))
  train.train(
    model_dir=str(tmp_path),
    initial_checkpoint_path=None,
    model=model,
    partition=optim.Partition([([".*"], optim.adafactor(0.01))]),
    load_data=lambda: made(objective, lengths),
    config=loop.LoopConfig(train_steps=2, batch_size=4, eval_steps=1),
    loss=losses.LossConfig(),
    initial_prompt=None,
  )
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  trained, evaluated = map(json.loads, lines)
  loss = trained["loss_per_nonpadding_target_token"]
  assert loss == pytest.approx(evaluated[f"herons_{objective}/loss"], rel=0.3)
