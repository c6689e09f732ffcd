# SPDX-License-Identifier: Apache-2.0
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import (
  batching,
  evaluate,
  losses,
  t5,
  task_data,
  trainer,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

MODEL = pathlib.Path(__file__).parents[1] / "tasks" / "english_8k.model"
LABELS = ("ca", "bc", "ab")


@pytest.fixture(scope="module")
def model():
  config = t5.T5Config(
    vocab_size=128,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
  )
  return t5.Transformer(config)


@pytest.fixture(scope="module")
def params(model):
  return t5.init_params(model, seed=0)


def ragged(*rows):
  return batching.Ragged.from_rows([np.array(x, np.int32) for x in rows])


def make_data(golds, labels=LABELS):
  """Rows of other lengths each, in the vocabulary of bytes."""
  inputs = [list(range(5, 7 + 2 * i)) + [1] for i in range(len(golds))]
  targets = [[*(ord(c) + 3 for c in gold), 1] for gold in golds]
  task = task_data.EvalTask(
    "task",
    batching.Examples(ragged(*inputs), ragged(*targets)),
    [{"targets_pretokenized": gold.encode()} for gold in golds],
    task_data.Scoring(
      lambda text, **unused: text,
      (lambda targets, predictions: {"hits": np.sum(targets == predictions)},),
      ("hits",),
      tuple(labels),
    ),
  )
  return task_data.TaskData(
    "task",
    [],
    [],
    [task],
    {"inputs": 12, "targets": 4},
    vocabulary_lib.from_bytes(128),
  )


def test_labels_are_tokenised_as_targets():
  ours = vocabulary_lib.from_sentencepiece(MODEL.read_bytes())
  no, yes = ours.encode("no"), ours.encode("yes")
  tokens = evaluate.label_tokens(["no", "<extra_id_0> yes"], ours)
  assert tokens.dtype == np.int32
  assert tokens.tolist() == [[*no, 1, 0], [8191, *yes, 1]]


def test_a_sentinel_that_the_vocabulary_lacks_is_refused():
  ours = vocabulary_lib.from_sentencepiece(MODEL.read_bytes())
  bare = ours._replace(size=8092)  # Without its sentinels.
  with pytest.raises(ValueError, match=r"begins with a sentinel, but the last"):
    evaluate.label_tokens(["<extra_id_0> yes"], bare)


def test_rank_predicts_the_label_with_the_smallest_loss(model, params):
  data = make_data(["ab", "bc", "ca", "ab", "ab"])
  (task,) = data.eval_tasks
  texts_fn = evaluate.texts_fn(model, data, mode="rank", batch_size=2)
  predicted = texts_fn(params, task)
  label_losses = []
  for label in LABELS:
    targets = ragged(*[data.vocabulary.encode(label) + [1]] * 5)
    batch = batching.make_batch(
      batching.Examples(task.examples.inputs, targets),
      np.arange(5),
      data.feature_lengths,
    )
    logits = jax.jit(functools.partial(trainer.apply, model))(params, batch)
    log_probs = np.array(jax.nn.log_softmax(logits))
    ids, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    taken = np.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    label_losses.append(-np.sum(taken * weights, axis=1))
  best = np.argmin(label_losses, axis=0)
  assert any(best), "the first label would win a tie"
  assert list(predicted) == [LABELS[i] for i in best]
  assert evaluate.evaluate(data, params, texts_fn)["task/legal_labels"] == 100


def test_a_task_without_labels_is_generated_in_both_modes(model, params):
  labelled, free = make_data(["ab", "bc"]), make_data(["ab", "bc"], labels=())
  data = labelled._replace(eval_tasks=labelled.eval_tasks + free.eval_tasks)
  modes = [
    evaluate.texts_fn(model, data, mode=mode, batch_size=2)
    for mode in ("generation", "rank")
  ]
  first, second = ([fn(params, x) for x in data.eval_tasks] for fn in modes)
  assert first[1] == second[1]
  assert first[0] != second[0]


def test_rank_needs_a_task_with_labels(model):
  with pytest.raises(ValueError, match="'rank' needs a task with .*found task"):
    evaluate.texts_fn(
      model,
      make_data(["a"], labels=()),
      mode="rank",
      batch_size=2,
    )


def test_batches_and_buckets_change_no_prediction_and_no_loss(model, params):
  data = make_data(["ab", "bc", "ca", "ab", "ab"])
  cut = task_data.with_buckets(data, 2)
  assert cut.buckets == (8, 12)
  loss_fn = functools.partial(
    trainer.eval_step, model=model, loss=losses.LossConfig()
  )
  (plain, plain_loss), (found, found_loss) = (
    (
      evaluate.predict_task_fn(model, x, mode="generation", batch_size=size)(
        params, x.eval_tasks[0]
      )[0],
      evaluate.teacher_forced(
        x, params, jax.jit(loss_fn), batch_size=size, num_batches=3
      ),
    )
    for x, size in ((data, 5), (cut, 2))
  )
  assert plain.texts == found.texts
  assert plain.scores == pytest.approx(found.scores, rel=1e-5)
  assert plain_loss == pytest.approx(found_loss, rel=1e-5)


@pytest.mark.parametrize("buckets", [(), (2, 4)])
def test_every_row_has_one_prediction_in_order(buckets):
  rows = ragged(*[[10 + i] * n for i, n in enumerate([3, 1, 4, 2, 1])])
  found = evaluate.predict_rows(
    batching.Examples(rows, rows),
    lambda batch: (jnp.max(batch["encoder_input_tokens"], axis=1),) * 2,
    batch_size=2,
    feature_lengths={"inputs": 4, "targets": 4},
    buckets=buckets,
  )
  assert [x.tolist() for x in found] == [[10, 11, 12, 13, 14]] * 2
