# SPDX-License-Identifier: Apache-2.0
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, trainer
from prompt_tuning.decoding import steps


@pytest.fixture
def greedy(model, params):
  generate = functools.partial(
    decoding.greedy, model=model, max_decode_length=8
  )
  free = jnp.zeros((3, 7), jnp.int32)
  return lambda inputs, forced=free: jax.jit(generate)(params, inputs, forced)


@pytest.fixture
def sample(model, params):
  def run(inputs, rng, **config):
    draw = functools.partial(
      decoding.sample,
      model=model,
      max_decode_length=8,
      config=decoding.SamplingConfig(**config),
    )
    return jax.jit(draw)(params, inputs, rng)

  return run


@pytest.fixture
def draw():
  """Draws tokens that do not depend on those before; all rows alike."""

  def draw(logits, *, num_decodes=200, **config):
    row = jnp.asarray(logits, jnp.float32)[None]
    start = decoding.Start(
      step_fn=lambda tokens, cache: (
        jnp.broadcast_to(row, (tokens.shape[0], row.shape[1])),
        cache,
      ),
      cache={},
      first_tokens=jnp.zeros(1, jnp.int32),
      forced_tokens=jnp.zeros((1, 8), jnp.int32),
      lengths=jnp.full(1, 8),
    )
    config = decoding.SamplingConfig(num_decodes=num_decodes, **config)
    run = functools.partial(decoding.generate, start, config=config)
    return jax.jit(run)(jax.random.key(0))

  return draw


def test_greedy_tokens_equal_t5x(arrays, greedy):
  tokens = greedy(arrays["encoder_input_tokens"])
  np.testing.assert_array_equal(tokens, arrays["greedy/tokens"][:, 0])


def test_a_single_row_equals_that_of_a_batch(
  monkeypatch, arrays, model, params, greedy
):
  """Of which a GPU makes two."""
  inputs = arrays["encoder_input_tokens"]
  search = jax.jit(
    functools.partial(
      decoding.beam,
      model=model,
      max_decode_length=8,
      config=decoding.BeamConfig(num_decodes=1),
    )
  )
  tokens = greedy(inputs)
  beams = search(params, inputs)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  np.testing.assert_array_equal(greedy(inputs[1:2], None), tokens[1:2])
  for one, other in zip(
    *map(jax.tree.leaves, (search(params, inputs[1:2]), beams)), strict=True
  ):
    np.testing.assert_allclose(one, other[1:2], rtol=1e-5)


def test_cached_logits_equal_those_of_one_pass(arrays, params, model):
  inputs = arrays["encoder_input_tokens"]
  tokens = arrays["greedy/tokens"][:, 0]

  @jax.jit
  def logits(params, inputs, tokens):
    batch = {
      "encoder_input_tokens": inputs,
      "decoder_input_tokens": jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": jnp.ones_like(tokens),
    }
    start = steps.start(
      params, inputs, None, model=model, max_decode_length=8, num_decodes=1
    )

    def step(cache, tokens):
      logits, cache = start.step_fn(tokens, cache)
      return cache, logits

    fed = batch["decoder_input_tokens"].T
    _, cached = jax.lax.scan(step, start.cache, fed)
    return cached.swapaxes(0, 1), trainer.apply(model, params, batch)

  cached, uncached = logits(params, inputs, tokens)
  np.testing.assert_allclose(cached, uncached, atol=2e-5)


def test_rows_of_padding_do_not_keep_the_loop_running(arrays, greedy):
  inputs = arrays["encoder_input_tokens"]
  alone = jnp.zeros_like(inputs).at[0].set(inputs[2])
  tokens = greedy(alone)
  assert tokens[0].tolist() == [20, 5, 76, 1, 0, 0, 0, 0]
  assert not tokens[1:].any()


def test_a_forced_prefix_is_continued_as_in_t5x(arrays, greedy):
  prefix = "greedy_forced_prefix/"
  # T5X's decoder input has a 0 in front. EOS is no part of a prefix.
  forced = arrays[f"{prefix}decoder_input_tokens"][:, 1:].at[0, 2].set(1)
  tokens = greedy(arrays["encoder_input_tokens"], forced)
  np.testing.assert_array_equal(tokens, arrays[f"{prefix}tokens"][:, 0])


def test_the_same_rng_draws_the_tokens_of_t5x(arrays, model, params):
  configs = {
    "topk_5": decoding.SamplingConfig(2, temperature=0.7, top_k=5),
    "nucleus_0_9": decoding.SamplingConfig(2, top_p=0.9),
    "full": decoding.SamplingConfig(2),
  }

  @jax.jit
  def draw(params, inputs, rng):
    start = steps.start(
      params, inputs, None, model=model, max_decode_length=8, num_decodes=2
    )
    return {k: decoding.generate(start, rng, x) for k, x in configs.items()}

  inputs = arrays["encoder_input_tokens"]
  results = draw(params, inputs, jax.random.PRNGKey(5))
  for name, (tokens, scores) in results.items():
    prefix = f"sample_{name}_key_5"
    np.testing.assert_array_equal(tokens, arrays[f"{prefix}/tokens"])
    np.testing.assert_allclose(scores, arrays[f"{prefix}/scores"], atol=1e-4)


def test_the_encoded_input_is_projected_before_the_loop(arrays, model, params):
  run = functools.partial(decoding.greedy, model=model, max_decode_length=8)
  inputs = arrays["encoder_input_tokens"]
  program = jax.jit(run).lower(params, inputs).as_text()
  loop, _ = program[program.index("stablehlo.while") :].split("func.func", 1)
  # Keys and values of the 5 + 12 positions of 3 rows, before they are cut into
  # 4 heads.
  projected = r"dot_general.*-> tensor<3x17x32xf32>"
  assert re.search(projected, program)
  assert not re.search(projected, loop)
  assert "call @one_layer" not in loop  # Whose products would be elsewhere.


def test_top_k_draws_the_likeliest_k_tokens(draw):
  tokens, _ = draw([0.0, -9.0, 1.0, 1.5, 0.5], top_k=2)
  assert set(np.unique(tokens)) == {2, 3}


def test_top_p_draws_the_fewest_tokens_that_reach_it(draw):
  logits = np.log([0.15, 1e-9, 0.4, 0.3, 0.15])
  tokens, _ = draw(logits, top_p=0.65)
  assert set(np.unique(tokens)) == {2, 3}
  tokens, _ = draw(logits, top_p=0.3)
  assert set(np.unique(tokens)) == {2}


def test_temperature_sharpens_what_is_drawn(draw):
  logits = np.log([0.2, 1e-9, 0.8])
  tokens, scores = draw(logits, temperature=0.5, rescale_log_probs=False)
  # 0.8**2 / (0.8**2 + 0.2**2).
  np.testing.assert_allclose(np.mean(tokens == 2), 0.941, atol=0.02)
  num_likely = np.sum(tokens == 2, axis=2)
  expected = num_likely * np.log(0.8) + (8 - num_likely) * np.log(0.2)
  np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_nothing_follows_the_end_and_the_best_comes_last(draw):
  tokens, scores = draw(np.log([1e-9, 0.5, 0.5]), num_decodes=50)
  is_end = np.asarray(tokens == 1)
  behind = np.cumsum(is_end, axis=2) - is_end > 0
  assert behind.any()
  assert not np.asarray(tokens)[behind].any()
  assert (np.diff(scores) >= 0).all()
  np.testing.assert_allclose(
    scores, np.log(0.5) * np.sum(tokens > 0, axis=2), atol=1e-4
  )


def test_the_loop_stops_when_every_row_has_ended():
  calls = []

  def step(tokens, cache):
    calls.append(tokens.tolist())
    # The first row ends with its second token, the second row with its third.
    is_end = len(calls) >= 2 + jnp.arange(2)
    return jnp.where(is_end[:, None], jnp.eye(3)[1], jnp.eye(3)[2]), cache

  start = decoding.Start(
    step,
    cache={},
    first_tokens=jnp.zeros(2, jnp.int32),
    forced_tokens=jnp.zeros((2, 8), jnp.int32),
    lengths=jnp.full(2, 8),
  )
  with jax.disable_jit():  # So that the loop runs in Python.
    tokens, _ = decoding.generate(start, jax.random.key(0), decoding.GREEDY)
  assert calls == [[0, 0], [2, 2], [1, 2]]
  assert tokens[:, 0, :4].tolist() == [[2, 1, 0, 0], [2, 2, 1, 0]]


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"num_decodes": 0}, "num_decodes=0 must be 1 or more"),
    ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
    ({"top_k": -1}, "top_k=-1 must be 0"),
    ({"top_p": 1.5}, "top_p=1.5 must be between 0"),
    ({"top_k": 2, "top_p": 0.5}, "top_k=2 and top_p=0.5 exclude each other"),
    ({"top_k": 129}, "top_k=129 must be at most the 128 tokens"),
  ],
)
def test_impossible_draws_are_refused(arrays, sample, config, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    sample(arrays["encoder_input_tokens"], jax.random.key(0), **config)
