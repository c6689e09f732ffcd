# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, prompts, t5, trainer

PROMPT = "encoder/prompt/prompt/prompt"


@pytest.fixture
def arrays(golden):
  return golden("decoding")


@pytest.fixture
def params(arrays, tiny_params):
  return tiny_params | {
    PROMPT: arrays["prompt"],
    "decoder/logits_dense/kernel": arrays["logits_dense_kernel"],
  }


@pytest.fixture
def greedy(tiny_config, params):
  model = t5.Transformer(tiny_config, prompts.PromptConfig(length=5))
  run = functools.partial(decoding.greedy, model=model, max_decode_length=8)
  return functools.partial(jax.jit(run), params)


def test_greedy_tokens_equal_t5x(arrays, greedy):
  tokens = greedy(arrays["encoder_input_tokens"])
  np.testing.assert_array_equal(tokens, arrays["greedy/tokens"][:, 0])


def test_greedy_tokens_are_the_likeliest_of_one_pass(
  arrays, greedy, params, tiny_config
):
  inputs = arrays["encoder_input_tokens"]
  tokens = greedy(inputs)
  model = t5.Transformer(tiny_config, prompts.PromptConfig(length=5))
  logits = jax.jit(functools.partial(trainer.apply, model))(
    params,
    {
      "encoder_input_tokens": inputs,
      "decoder_input_tokens": jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": jnp.ones_like(tokens),
    },
  )
  generated = tokens > 0
  np.testing.assert_array_equal(
    jnp.argmax(logits, axis=-1)[generated], tokens[generated]
  )


def test_rows_of_padding_do_not_keep_the_loop_running(arrays, greedy):
  inputs = arrays["encoder_input_tokens"]
  alone = jnp.zeros_like(inputs).at[0].set(inputs[2])
  tokens = greedy(alone)
  assert tokens[0].tolist() == [20, 5, 76, 1, 0, 0, 0, 0]
  assert not tokens[1:].any()
