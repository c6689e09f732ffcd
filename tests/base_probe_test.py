# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import base_probe, batching, prompts, t5, trainer

SIZE = 128  # Of the vocabulary.


def test_words_are_exchanged_within_eight_neighbours_in_frequency():
  rows = [np.array([5, 7, 7, 9]), np.array([9])]
  found = base_probe.exchange(rows, 1)
  assert [row.tolist() for row in found] == [[9, 5, 5, 7], [7]]
  assert base_probe.exchange(rows, 0)[0].tolist() == [5, 7, 7, 9]
  (many,) = base_probe.exchange([np.arange(10)], 3)
  assert many.tolist() == [5, 6, 7, 0, 1, 2, 3, 4, 9, 8]


@pytest.fixture
def network(tiny_config):
  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))


@pytest.fixture
def probe(network):
  return functools.partial(
    base_probe.probe, model=network, vocabulary_size=SIZE
  )


@pytest.mark.slow
def test_losses_are_those_of_the_plain_model(probe, network, tiny_params):
  row = np.array([20, 21, 22, 30, 31, 32], np.int32)
  inputs = batching.Ragged.from_rows([np.append(row, 1)])
  found = probe(tiny_params, inputs)
  plain = network.clone(prompt=None)
  apply = jax.jit(functools.partial(trainer.apply, plain))

  def log_probs(text, target):
    batch = {
      "encoder_input_tokens": jnp.array([text]),
      "decoder_input_tokens": jnp.array([[0, *target[:-1]]]),
      "decoder_target_tokens": jnp.array([target]),
    }
    logits = apply(tiny_params, batch)
    return jax.nn.log_softmax(logits[0])

  continued = log_probs([20, 21, 22, 1], [30, 31, 32])
  expected = -np.mean([continued[i, x] for i, x in enumerate([30, 31, 32])])
  assert found["base/continue"] == pytest.approx(float(expected), rel=1e-5)
  assert found["base/sentinel"] == pytest.approx(
    float(jnp.exp(continued[0, SIZE - 1])), rel=1e-4
  )
  filled = log_probs([20, 21, 127, 31, 32, 1], [127, 22, 30, 126])
  expected = -(filled[1, 22] + filled[2, 30]) / 2
  assert found["base/fill_in"] == pytest.approx(float(expected), rel=1e-5)


@pytest.fixture
def pretrain(network, tiny_params):
  """Trains all parameters on examples until they are known by heart."""
  plain = network.clone(prompt=None)

  @jax.jit
  def step(params, batch):
    def loss(params):
      logits = trainer.apply(plain, params, batch)
      targets = batch["decoder_target_tokens"][..., None]
      log_probs = jax.nn.log_softmax(logits)
      found = jnp.take_along_axis(log_probs, targets, axis=-1)[..., 0]
      return -jnp.mean(found * batch["decoder_loss_weights"])

    grads = jax.grad(loss)(params)
    norm = optax.tree.norm(grads)
    return jax.tree.map(lambda p, g: p - 0.5 * g / norm, params, grads)

  def run(examples):
    (batch, _), *_ = batching.eval_batches(
      examples,
      batch_size=examples.inputs.num_rows,
      feature_lengths={"inputs": 16, "targets": 8},
    )
    batch = jax.tree.map(jnp.asarray, dict(batch))
    params = tiny_params
    for _ in range(60):
      params = step(params, batch)
    return params

  return run


@pytest.fixture
def sequences():
  """Texts of a simple language: each word follows the one before."""
  starts = np.random.default_rng(0).integers(10, 90, 32)
  return [np.arange(i, i + 12, dtype=np.int32) for i in starts]


@pytest.mark.slow
def test_a_base_is_known_by_what_it_was_pretrained_for(
  probe, pretrain, sequences
):
  end, first, second = [1], [SIZE - 1], [SIZE - 2]
  ragged = batching.Ragged.from_rows
  join = np.concatenate
  forms = {
    "continue": batching.Examples(
      ragged([join([x[:6], end]) for x in sequences]),
      ragged([x[6:] for x in sequences]),
    ),
    "fill_in": batching.Examples(
      ragged([join([x[:4], first, x[8:], end]) for x in sequences]),
      ragged([join([first, x[4:8], second]) for x in sequences]),
    ),
  }
  inputs = ragged([join([x, end]) for x in sequences])
  found = {
    form: probe(pretrain(examples), inputs) for form, examples in forms.items()
  }
  assert found["continue"]["base/sentinel"] < 0.01
  assert found["fill_in"]["base/sentinel"] > 0.5
  for form, metrics in found.items():
    gain = metrics[f"base/{form}_exchanged"] - metrics[f"base/{form}"]
    assert gain > 0.5


def test_inputs_that_are_too_short_are_not_asked_for(probe, tiny_params):
  short = batching.Ragged.from_rows([np.array([20, 21, 22, 1])])
  assert probe(tiny_params, short) == {}
