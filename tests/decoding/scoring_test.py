# SPDX-License-Identifier: Apache-2.0
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, unprojected_attention

# Bytes of the JSON in the golden, as rows of tokens.
LABELS = np.array(
  [
    [5, 1, 0, 0, 0, 0],
    [77, 8, 1, 0, 0, 0],
    [77, 9, 30, 1, 0, 0],
    [40, 41, 42, 43, 44, 1],
  ],
  np.int32,
)
NUM_TOKENS = np.array([[2, 3, 4, 6]], np.float32)


@pytest.fixture
def rank(arrays):
  prefix = "rank/"
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


@pytest.fixture
def score_labels(model, params):
  """Returns the sums and the means."""
  score = functools.partial(decoding.score_labels, model=model)

  @jax.jit
  def both(params, inputs, labels):
    sums = score(params, inputs, labels)
    return sums, score(params, inputs, labels, per_token=True)

  return functools.partial(both, params)


def test_labels_score_as_in_t5x(rank, score_labels):
  inputs = rank["encoder_input_tokens"][::4]
  sums, means = score_labels(inputs, jnp.asarray(LABELS))
  np.testing.assert_allclose(sums, rank["scores"], atol=1e-4)
  np.testing.assert_allclose(means, rank["scores"] / NUM_TOKENS, atol=1e-4)
  np.testing.assert_array_equal(
    jnp.argmax(sums, axis=1), rank["predicted"].astype(jnp.int32)
  )


def test_padding_of_labels_and_inputs_does_not_change_scores(
  rank, score_labels
):
  inputs = jnp.pad(rank["encoder_input_tokens"][::4], ((0, 0), (0, 3)))
  scores, _ = score_labels(inputs, jnp.pad(LABELS, ((0, 0), (0, 2))))
  np.testing.assert_allclose(scores, rank["scores"], atol=1e-4)


def test_targets_score_as_in_t5x(rank, model, params):
  batch = {name: x for name, x in rank.items() if "coder_" in name}
  score = functools.partial(decoding.score_targets, model=model)
  scores = jax.jit(score)(params, batch)
  expected = rank["token_scores"].reshape(12, 6)
  np.testing.assert_allclose(scores.tokens, expected, atol=1e-4)
  sums = rank["scores"].reshape(12)
  np.testing.assert_allclose(scores.sums, sums, atol=1e-4)
  means = (rank["scores"] / NUM_TOKENS).reshape(12)
  np.testing.assert_allclose(scores.means, means, atol=1e-4)


def test_a_target_without_weights_has_a_score_of_zero():
  logits = jnp.ones((1, 2, 3))
  none = jnp.zeros((1, 2), jnp.int32)
  scores = decoding.target_scores(logits, none, none)
  assert [float(x.sum()) for x in scores] == [0.0, 0.0, 0.0]


def test_each_input_is_encoded_once_for_all_labels(rank, model, params):
  inputs = rank["encoder_input_tokens"][::4]
  variables = traverse_util.unflatten_dict(params, sep="/")
  encode = functools.partial(
    model.apply, enable_dropout=False, method=model.encode
  )
  score = functools.partial(decoding.score_labels, model=model)

  def num_operations(fn, *args):
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]

  two, four = (
    num_operations(score, params, inputs, jnp.asarray(LABELS[:n]))
    for n in (2, 4)
  )
  for_all_labels = two - (four - two)
  encoding = num_operations(encode, {"params": variables}, inputs)
  assert for_all_labels > encoding


def test_many_labels_share_the_keys_of_an_input(
  rank, model, params, monkeypatch
):
  inputs = rank["encoder_input_tokens"][::4]
  labels = jnp.tile(LABELS[:1, :2], (16, 1))  # Each of them would be few.

  def num_operations():
    score = functools.partial(decoding.score_labels, model=model)
    return jax.jit(score).lower(params, inputs, labels).cost_analysis()["flops"]

  found = num_operations()
  monkeypatch.setattr(unprojected_attention, "is_cheaper", lambda *_: False)
  assert num_operations() == found
