# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding
from prompt_tuning.decoding import steps

PENALTIES = [0.0, 0.6, 1.0]


@pytest.fixture
def beam(model, params):
  def run(inputs, forced=None, *, max_decode_length=8, **config):
    search = functools.partial(
      decoding.beam,
      model=model,
      max_decode_length=max_decode_length,
      config=decoding.BeamConfig(**config),
    )
    return jax.jit(search)(params, inputs, forced)

  return run


@pytest.fixture
def start(arrays):
  """Starts a search over the table: logits of each token after each."""
  table = arrays["table/logits"]

  def start(num_decodes, forced=None):
    rows = jnp.repeat(jnp.arange(4), num_decodes)
    return decoding.Start(
      step_fn=lambda tokens, cache: (table[rows, tokens], cache),
      cache={},
      first_tokens=jnp.zeros(4, jnp.int32),
      forced_tokens=jnp.zeros((4, 8), jnp.int32) if forced is None else forced,
      lengths=jnp.full(4, 8),
    )

  return start


@pytest.mark.parametrize("num_decodes", [1, 2])
def test_beams_equal_those_of_t5x(arrays, beam, num_decodes):
  tokens, scores = beam(arrays["encoder_input_tokens"], num_decodes=num_decodes)
  name = f"beam_{num_decodes}_alpha_0.6"
  np.testing.assert_array_equal(tokens, arrays[f"{name}/tokens"])
  np.testing.assert_allclose(scores, arrays[f"{name}/scores"], atol=1e-4)


def test_beams_equal_those_of_t5x_for_every_brevity_penalty(
  arrays, params, model
):
  @jax.jit
  def search(params, inputs):
    start = steps.start(
      params, inputs, None, model=model, max_decode_length=8, num_decodes=4
    )
    return {
      alpha: decoding.beam_search(start, decoding.BeamConfig(4, alpha))
      for alpha in PENALTIES
    }

  results = search(params, arrays["encoder_input_tokens"])
  for alpha, (tokens, scores) in results.items():
    name = f"beam_4_alpha_{alpha}"
    np.testing.assert_array_equal(tokens, arrays[f"{name}/tokens"])
    np.testing.assert_allclose(scores, arrays[f"{name}/scores"], atol=1e-4)


@pytest.mark.parametrize("num_decodes", [1, 2, 4])
def test_search_in_a_table_equals_that_of_t5x(arrays, start, num_decodes):
  @jax.jit
  def search():
    return {
      alpha: decoding.beam_search(
        start(num_decodes), decoding.BeamConfig(num_decodes, alpha)
      )
      for alpha in PENALTIES
    }

  for alpha, (tokens, scores) in search().items():
    name = f"table/beam_{num_decodes}_alpha_{alpha}"
    np.testing.assert_array_equal(tokens, arrays[f"{name}/tokens"])
    np.testing.assert_allclose(scores, arrays[f"{name}/scores"], atol=1e-4)


@pytest.mark.parametrize(
  ("probability", "alpha", "num_steps", "length"),
  [
    (0.6, 0.0, 1, 1),  # log 0.6 is above log 0.4: nothing can come.
    (0.6, 1.0, 8, 8),  # log 0.4 / (13 / 6) would still be above.
    (0.7, 1.0, 1, 1),  # log 0.3 / (14 / 6) is not above log 0.7.
  ],
)
def test_search_ends_when_no_live_hypothesis_can_win(
  probability, alpha, num_steps, length
):
  """EOS has this probability at first, and is certain at the last position."""
  calls = []

  def step(tokens, cache):
    calls.append(tokens)
    num_calls = len(calls)
    end = {1: probability, 8: 1.0}.get(num_calls, 0.0)
    return jnp.log(jnp.array([[1e-9, end + 1e-9, 1.0 - end + 1e-9]])), cache

  start = decoding.Start(
    step,
    cache={},
    first_tokens=jnp.zeros(1, jnp.int32),
    forced_tokens=jnp.zeros((1, 8), jnp.int32),
    lengths=jnp.full(1, 8),
  )
  config = decoding.BeamConfig(num_decodes=1, alpha=alpha)
  with jax.disable_jit():  # So that the loop runs in Python.
    tokens, _ = decoding.beam_search(start, config)
  assert len(calls) == num_steps
  assert jnp.sum(tokens > 0) == length


def test_forced_tokens_begin_every_hypothesis_at_no_cost(arrays, start):
  forced = jnp.zeros((4, 8), jnp.int32).at[:, :2].set(jnp.array([5, 6]))
  config = decoding.BeamConfig(2, alpha=0.0)
  search = lambda forced: decoding.beam_search(start(2, forced), config)
  tokens, scores = jax.jit(search)(forced)
  assert tokens[:, -1, :2].tolist() == [[5, 6]] * 4
  log_probs = np.asarray(jax.nn.log_softmax(arrays["table/logits"], axis=-1))
  for row, path in enumerate(np.asarray(tokens[:, -1])):
    (ends,) = np.nonzero(path == 1)
    num_tokens = ends[0] + 1 if ends.size else 8
    total = log_probs[row, path[1 : num_tokens - 1], path[2:num_tokens]].sum()
    np.testing.assert_allclose(scores[row, -1], total, atol=1e-4)


def test_a_row_does_not_depend_on_the_rows_beside_it(arrays, beam):
  inputs = arrays["encoder_input_tokens"]
  tokens, scores = beam(inputs.at[0].set(0), num_decodes=2)
  name = "beam_2_alpha_0.6"
  assert not tokens[0].any()
  np.testing.assert_array_equal(tokens[1:], arrays[f"{name}/tokens"][1:])
  np.testing.assert_allclose(
    scores[1:], arrays[f"{name}/scores"][1:], atol=1e-4
  )


def test_hypotheses_share_the_keys_of_their_input(arrays, model, params):
  search = functools.partial(
    decoding.beam,
    model=model,
    max_decode_length=8,
    config=decoding.BeamConfig(num_decodes=4),
  )
  lowered = jax.jit(search).lower(params, arrays["encoder_input_tokens"])
  program = lowered.as_text()
  # Of 3 rows, 5 + 12 positions and 4 heads; not of 3 * 4 hypotheses.
  assert "tensor<3x17x4x8xf32>" in program
  assert "tensor<12x17x" not in program


def test_impossible_searches_are_refused(arrays, beam):
  inputs = arrays["encoder_input_tokens"]
  with pytest.raises(ValueError, match="num_decodes=0 must be 1 or more"):
    decoding.BeamConfig(num_decodes=0)
  with pytest.raises(ValueError, match=r"alpha=-1\.0 must be 0 or more"):
    decoding.BeamConfig(alpha=-1.0)
  with pytest.raises(ValueError, match="max_decode_length=0 must be 1"):
    beam(inputs, max_decode_length=0)
  forced = jnp.zeros((3, 8), jnp.int32)
  with pytest.raises(ValueError, match="8 forced tokens need max_decode_leng"):
    beam(inputs, forced, max_decode_length=7)
  with pytest.raises(ValueError, match="has 2 rows, the input 3: give one row"):
    steps.check_shapes(inputs, forced[:2], max_decode_length=8)
