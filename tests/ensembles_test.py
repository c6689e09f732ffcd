# SPDX-License-Identifier: Apache-2.0
import functools

import as_in_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, ensembles, prompt_files, prompts, t5

NAME = prompt_files.NAME


@pytest.fixture
def model(tiny_config):
  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))


@pytest.fixture
def params(tiny_params):
  return tiny_params | {NAME: jax.random.normal(jax.random.key(0), (3, 5, 32))}


@pytest.fixture
def inputs():
  return jnp.array([[7, 8, 9, 10, 1], [11, 1, 0, 0, 0]])


def one_by_one(params):
  """Splits an ensemble into its prompts."""
  return [params | {NAME: prompt} for prompt in params[NAME]]


def test_labels_in_one_pass_score_as_in_separate_runs(model, params, inputs):
  labels = jnp.array([[5, 1, 0], [6, 7, 1], [9, 1, 0]])
  score_fn = as_in_runs.jit(
    functools.partial(ensembles.score_labels, model=model)
  )
  found = score_fn(params, inputs, labels)
  separate = as_in_runs.jit(
    functools.partial(decoding.score_labels, model=model)
  )
  expected = [separate(x, inputs, labels) for x in one_by_one(params)]
  np.testing.assert_allclose(
    found, np.stack(expected, axis=1), atol=1e-5, rtol=0
  )
  assert np.ptp(found, axis=1).min() > 1e-3, "the prompts make no difference"


@pytest.mark.slow
def test_texts_in_one_pass_are_those_of_separate_runs(model, params, inputs):
  generate = jax.jit(
    functools.partial(ensembles.generate, model=model, max_decode_length=4)
  )
  greedy = jax.jit(
    functools.partial(decoding.greedy, model=model, max_decode_length=4)
  )
  tokens, scores = generate(params, inputs)
  assert tokens.shape == (2, 3, 4)
  assert len(np.unique(tokens.reshape(6, 4), axis=0)) > 2
  for i, separate in enumerate(one_by_one(params)):
    alone, alone_scores = generate(separate, inputs)
    np.testing.assert_array_equal(tokens[:, i], alone[:, 0])
    np.testing.assert_allclose(
      scores[:, i], alone_scores[:, 0], atol=1e-5, rtol=0
    )
    greedy = decoding.greedy(separate, inputs, model=model, max_decode_length=4)
    np.testing.assert_array_equal(alone[:, 0], greedy)


def test_the_score_of_a_text_is_its_log_probability(model, params, inputs):
  separate = one_by_one(params)[1]
  generate = jax.jit(
    functools.partial(ensembles.generate, model=model, max_decode_length=4)
  )
  tokens, scores = generate(separate, inputs)
  batch = {
    "encoder_input_tokens": inputs,
    "decoder_input_tokens": jnp.pad(tokens[:, 0], ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": tokens[:, 0],
    "decoder_loss_weights": jnp.asarray(tokens[:, 0] > 0, jnp.int32),
  }
  score_fn = jax.jit(functools.partial(decoding.score_targets, model=model))
  expected = score_fn(separate, batch).sums
  np.testing.assert_allclose(scores[:, 0], expected, atol=1e-5, rtol=0)


def test_a_model_without_a_prompt_is_an_ensemble_of_one(
  tiny_config, tiny_params, inputs
):
  model = t5.Transformer(tiny_config)
  labels = jnp.array([[5, 1], [6, 1]])
  found, expected = (
    jax.jit(functools.partial(score_fn, model=model))(
      tiny_params, inputs, labels
    )
    for score_fn in (ensembles.score_labels, decoding.score_labels)
  )
  np.testing.assert_array_equal(found, expected[:, None])
  assert ensembles.num_prompts(tiny_params) == 1


def vote(answers, probabilities):
  """The vote on one row."""
  column = lambda values: np.array(values)[:, None]
  result = ensembles.majority_vote(column(answers), column(probabilities))
  return int(result.winners[0]), float(result.dissent[0])


@pytest.mark.parametrize(
  ("answers", "probabilities", "expected"),
  [
    pytest.param("abbab", [1.0, 0.1, 0.1, 1.0, 0.1], (1, 0.4), id="majority"),
    pytest.param("abbac", [0.5, 0.9, 0.2, 0.5, 1.0], (1, 0.6), id="tie"),
    pytest.param("abbac", [0.5, 0.9, 0.2, 0.7, 1.0], (0, 0.6), id="other tie"),
    pytest.param("cabba", [0.5, 0.5, 0.5, 0.5, 0.5], (1, 0.6), id="exact tie"),
    pytest.param("ab", [0.0, 0.0], (0, 0.5), id="impossible answers"),
    pytest.param("aaa", [0.1, 0.2, 0.3], (0, 0.0), id="unanimous"),
    pytest.param("a", [0.3], (0, 0.0), id="one prompt"),
  ],
)
def test_a_vote_counted_by_hand(answers, probabilities, expected):
  winner, dissent = vote(list(answers), probabilities)
  assert (winner, dissent) == (expected[0], pytest.approx(expected[1]))


def test_rows_vote_apart():
  answers = np.array([["a", "b"], ["a", "c"], ["b", "c"]])
  result = ensembles.majority_vote(answers, np.full((3, 2), 0.5))
  assert result.winners.tolist() == [0, 1]
  assert result.dissent.tolist() == pytest.approx([1 / 3, 1 / 3])


def test_label_probabilities_averaged_by_hand():
  """Two vote for the first label, but the third is surer of the second."""
  probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
  scores = np.log(probabilities * 0.01)[:, None]  # Other texts have the rest.
  found = ensembles.average_probabilities(scores)
  np.testing.assert_allclose(found.probabilities, [[1.3 / 3, 1.7 / 3]])
  assert found.labels.tolist() == [1]
  # The mean of squares (.16 + .16 + .81) / 3 minus (1.7 / 3) ** 2.
  expected = np.sqrt(1.13 / 3 - (1.7 / 3) ** 2)
  np.testing.assert_allclose(found.spread, [expected])
  assert ensembles.average_probabilities(scores[:2]).spread.tolist() == [0.0]
