# SPDX-License-Identifier: Apache-2.0
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoder_only, losses, prompts

PROMPT = "decoder/prompt/prompt/prompt"
MODES = ["prefix_lm", "causal"]


@pytest.fixture
def arrays(golden):
  return golden("decoder_only")


@pytest.fixture
def params(arrays):
  prefix = "params/"
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


@pytest.fixture
def batch(arrays):
  return {k: x for k, x in arrays.items() if k.startswith("decoder_")}


@pytest.fixture
def build(tiny_config):
  def build(mode, **prompt):
    return decoder_only.DecoderOnly(
      tiny_config,
      prompts.PromptConfig(length=5, **prompt),
      is_prefix_lm=mode == "prefix_lm",
    )

  return build


@pytest.fixture
def greedy(params, build):
  def run(mode, batch):
    generate = functools.partial(decoder_only.greedy, model=build(mode))
    return jax.jit(generate)(
      params, batch["decoder_input_tokens"], batch["decoder_causal_attention"]
    )

  return run


@pytest.mark.parametrize("mode", MODES)
def test_logits_scores_loss_and_gradient_equal_those_of_the_original(
  arrays, params, batch, build, mode
):
  model = build(mode)
  targets = batch["decoder_target_tokens"]

  def loss_fn(prompt, params):
    logits = decoder_only.apply(model, params | {PROMPT: prompt}, batch)
    weights = batch["decoder_loss_weights"]
    sums = losses.weighted_loss(logits, targets, weights, losses.LossConfig())
    return sums.loss, logits

  @jax.jit
  def run(params):
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, logits), grads = grad_fn(params[PROMPT], params)
    scores = decoder_only.score_targets(params, batch, model=model).sums
    return {"loss": loss, "d_loss_d_prompt": grads, "score_batch": scores}, (
      logits
    )

  results, logits = run(params)
  for name, value in results.items():
    np.testing.assert_allclose(value, arrays[f"{mode}/{name}"], atol=2e-5)
  is_real = targets > 0
  np.testing.assert_allclose(
    logits[is_real], arrays[f"{mode}/logits"][is_real], atol=2e-5
  )


@pytest.mark.parametrize("mode", MODES)
def test_cached_greedy_tokens_equal_those_of_the_original(
  arrays, batch, greedy, mode
):
  tokens = greedy(mode, batch)
  np.testing.assert_array_equal(tokens, arrays[f"{mode}/greedy_tokens"])
  # The original's, from repeated passes without a cache.
  np.testing.assert_array_equal(tokens, arrays[f"{mode}/greedy_uncached"])


def test_targets_and_other_rows_do_not_change_what_is_generated(
  arrays, batch, greedy
):
  is_input = batch["decoder_causal_attention"] > 0
  inputs = jnp.where(is_input, batch["decoder_input_tokens"], 99)
  prefix = batch["decoder_causal_attention"].at[1].set(0)
  tokens = greedy(
    "prefix_lm",
    {"decoder_input_tokens": inputs, "decoder_causal_attention": prefix},
  )
  expected = arrays["prefix_lm/greedy_tokens"].at[1].set(0)
  np.testing.assert_array_equal(tokens, expected)


def test_a_prompt_behind_the_first_position_is_cached_too(params, batch, build):
  model = build("prefix_lm", join=prompts.prefix_prompt_after_bos)
  prefix = batch["decoder_causal_attention"]

  @jax.jit
  def generate_and_check(params, tokens):
    new = decoder_only.greedy(params, tokens, prefix, model=model)
    # Every row's result behind its input.
    num_inputs = jnp.sum(prefix, axis=1) - 1
    new = jax.vmap(jnp.roll)(new, num_inputs)
    targets = jnp.where(prefix[:, 1:] > 0, tokens[:, 1:], new[:, :-1])
    whole = {
      "decoder_input_tokens": jnp.pad(targets, ((0, 0), (1, 0))),
      "decoder_target_tokens": jnp.ones_like(new),
      "decoder_causal_attention": prefix,
    }
    logits = decoder_only.apply(model, params, whole)
    return new, jnp.argmax(logits, axis=-1)

  new, likeliest = generate_and_check(params, batch["decoder_input_tokens"])
  is_new = new > 0
  assert is_new.sum() > 12
  np.testing.assert_array_equal(new[is_new], likeliest[is_new])


def test_parameters_have_the_names_of_the_original(params, batch, build):
  model = build("causal")
  shapes = jax.eval_shape(
    functools.partial(model.init, enable_dropout=False),
    jax.random.key(0),
    *(batch[f"decoder_{x}"] for x in ("input_tokens", "target_tokens")),
    batch["decoder_causal_attention"],
  )["params"]
  shapes = traverse_util.flatten_dict(shapes, sep="/")
  assert {k: x.shape for k, x in shapes.items()} == {
    k: x.shape for k, x in params.items()
  }


def test_a_prompt_between_input_and_target_is_refused(params, batch, build):
  model = build("causal", join=prompts.suffix_prompt)
  with pytest.raises(ValueError, match="needs its prompt in front"):
    decoder_only.apply(model, params, batch)
