# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, prompts, t5

PROMPT = "encoder/prompt/prompt/prompt"
LENGTHS = np.array([2, 5, 2], np.int32)


@functools.partial(jax.jit, static_argnames="model")
def score(params, batch, lengths, model):
  """Log-probabilities of the tokens of the targets."""
  return {
    "targets": decoding.score_targets(params, batch, lengths, model=model)[2]
  }


@functools.partial(jax.jit, static_argnames="model")
def decode(params, batch, lengths, model):
  """What the decoders report, but for draws, whose code is that of greedy."""
  inputs = batch["encoder_input_tokens"]
  labels = batch["decoder_target_tokens"]
  kwargs = {"prompt_lengths": lengths, "model": model}
  generation = kwargs | {"max_decode_length": 4}
  config = decoding.BeamConfig(num_decodes=2)
  beams, scores = decoding.beam(params, inputs, config=config, **generation)
  return score(params, batch, lengths, model) | {
    "greedy": decoding.greedy(params, inputs, **generation),
    "beams": beams,
    "beam_scores": scores,
    "labels": decoding.score_labels(
      params, inputs, labels, per_token=True, **kwargs
    ),
  }


@pytest.mark.parametrize(
  ("run", "visibility"),
  [
    (score, ("prompt->prompt;causal",)),
    pytest.param(decode, prompts.FULL_VISIBILITY, marks=pytest.mark.slow),
  ],
  ids=["causal_prompt", "every_decoder"],
)
def test_rows_with_prompts_of_their_own_equal_separate_runs(
  model, params, tiny_batch, run, visibility
):
  # The first prompt has other values than the last positions of the second,
  # and padding that would be noticed.
  short = params[PROMPT][:2] * 0.7
  padded = jnp.pad(short, ((3, 0), (0, 0)), constant_values=9.0)
  mixed = jnp.stack([padded, params[PROMPT], padded])
  config = dataclasses.replace(
    model.config, num_encoder_layers=1, num_decoder_layers=1
  )
  build = lambda length: t5.Transformer(
    config, prompts.PromptConfig(length, visibility=visibility)
  )
  together = run(params | {PROMPT: mixed}, tiny_batch, LENGTHS, build(5))
  separate = {
    2: run(params | {PROMPT: short}, tiny_batch, None, build(2)),
    5: run(params, tiny_batch, None, build(5)),
  }
  for name, values in together.items():
    expected = np.stack([separate[n][name][i] for i, n in enumerate(LENGTHS)])
    np.testing.assert_allclose(values, expected, atol=1e-5, err_msg=name)
    assert np.abs(separate[2][name] - separate[5][name]).max() > 0.1, name
