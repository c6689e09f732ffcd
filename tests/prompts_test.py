# SPDX-License-Identifier: Apache-2.0
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import losses, prompts, t5

PROMPT = "encoder/prompt/prompt/prompt"
SUFFIX_AFTER_EOS = functools.partial(prompts.suffix_prompt, before_eos=False)
JOINS = {
  "prefix": prompts.prefix_prompt,
  "prefix_after_bos": prompts.prefix_prompt_after_bos,
  "suffix_before_eos": prompts.suffix_prompt,
  "suffix_after_eos": SUFFIX_AFTER_EOS,
}


@pytest.fixture
def arrays(golden):
  return golden("prompt_placement_and_masks")


@pytest.mark.parametrize(
  ("name", "join", "tokens"),
  [
    ("prefix", prompts.prefix_prompt, "tokens"),
    ("prefix_after_bos", prompts.prefix_prompt_after_bos, "tokens_with_bos"),
    ("suffix/before_eos_True", prompts.suffix_prompt, "tokens"),
    ("suffix/before_eos_False", SUFFIX_AFTER_EOS, "tokens"),
    (
      "suffix_decoder_only/before_eos_True",
      functools.partial(prompts.suffix_prompt, has_bos=True),
      "tokens_with_bos",
    ),
    (
      "suffix_decoder_only/before_eos_False",
      functools.partial(SUFFIX_AFTER_EOS, has_bos=True),
      "tokens_with_bos",
    ),
  ],
)
def test_joined_positions_equal_the_original(arrays, name, join, tokens):
  prompt = jnp.broadcast_to(arrays["prompt"], (4, 2, 3))
  joined = join(prompt, arrays["embedded"], arrays[tokens])
  np.testing.assert_array_equal(joined, arrays[name])


@pytest.mark.parametrize(
  ("join", "expected"),
  [
    (prompts.prefix_prompt, [-1, -2, 11, 12, 13, 1, 0, 0]),
    (prompts.prefix_prompt_after_bos, [11, -1, -2, 12, 13, 1, 0, 0]),
    (prompts.suffix_prompt, [11, 12, 13, -1, -2, 1, 0, 0]),
    (SUFFIX_AFTER_EOS, [11, 12, 13, 1, -1, -2, 0, 0]),
  ],
)
def test_a_prompt_is_put_where_its_name_says(join, expected):
  tokens = jnp.array([[11, 12, 13, 1, 0, 0]])
  prompt = jnp.array([[[-1.0], [-2.0]]])
  joined = join(prompt, tokens[..., None].astype(jnp.float32), tokens)
  assert joined[0, :, 0].tolist() == expected


def visibilities(arrays):
  prefix, suffix = "extended_encoder_mask/", "/multitask_False"
  for name in arrays:
    if name.startswith(prefix) and name.endswith(suffix):
      kinds = name.removeprefix(prefix).removesuffix(suffix)
      yield kinds, tuple(kind for kind in kinds.split("+") if kind != "none")


def test_encoder_masks_equal_the_original(arrays):
  mask = prompts.encoder_mask(arrays["tokens"], prompt_length=2)
  np.testing.assert_array_equal(mask, arrays["encoder_mask"] > 0)
  compared = 0
  for kinds, visibility in visibilities(arrays):
    mask = prompts.encoder_mask(
      arrays["tokens"], prompt_length=2, visibility=visibility
    )
    expected = arrays[f"extended_encoder_mask/{kinds}/multitask_False"] > 0
    np.testing.assert_array_equal(mask, expected, err_msg=kinds)
    compared += 1
  assert compared == 8


@pytest.mark.parametrize("kind", ["prefix_lm", "causal"])
def test_decoder_only_masks_equal_the_original(arrays, kind):
  causal_attention = arrays["decoder_causal_attention"]
  mask = functools.partial(
    prompts.decoder_only_mask,
    arrays["tokens"],
    causal_attention if kind == "prefix_lm" else None,
    prompt_length=2,
  )
  np.testing.assert_array_equal(mask(), arrays[f"decoder_only_mask/{kind}"] > 0)
  for kinds, visibility in visibilities(arrays):
    expected = arrays[f"extended_decoder_mask/{kinds}/{kind}"] > 0
    np.testing.assert_array_equal(
      mask(visibility=visibility), expected, err_msg=kinds
    )


@pytest.mark.parametrize(
  ("visibility", "expected"),
  [
    (
      prompts.FULL_VISIBILITY,
      [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
    ),
    (
      ("prompt->prompt",),
      [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
    ),
  ],
)
def test_mask_of_one_prompt_position_and_one_padding(visibility, expected):
  mask = prompts.encoder_mask(
    jnp.array([[7, 1, 0]]), prompt_length=1, visibility=visibility
  )
  assert mask[0, 0].astype(int).tolist() == expected


@functools.partial(jax.jit, static_argnames="model")
def run(params, batch, *, model):
  tokens = [
    batch[f"{x}_tokens"]
    for x in ("encoder_input", "decoder_input", "decoder_target")
  ]
  variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
  return (
    model.apply(
      variables, tokens[0], enable_dropout=False, method=model.encode
    ),
    model.apply(variables, *tokens, enable_dropout=False),
  )


@pytest.fixture
def prompted(golden, tiny_config, tiny_params, tiny_batch):
  prompt = golden("prompted_t5_1_1_tiny")["prompt"]
  params = tiny_params | {PROMPT: prompt}

  def outputs(prompt=None, **kwargs):
    config = prompts.PromptConfig(length=5, **kwargs)
    changed = {} if prompt is None else {PROMPT: prompt}
    model = t5.Transformer(tiny_config, config)
    return run(params | changed, tiny_batch, model=model)

  return outputs


@pytest.mark.parametrize("place", JOINS)
def test_network_with_the_prompt_elsewhere_equals_the_original(
  arrays, prompted, tiny_batch, place
):
  encoded, logits = prompted(join=JOINS[place])
  targets = tiny_batch["decoder_target_tokens"]
  inputs_real = tiny_batch["encoder_input_tokens"] > 0
  encoder_real = np.pad(inputs_real, ((0, 0), (5, 0)), constant_values=True)
  for real, actual, kind in [
    (encoder_real, encoded, "encoded"),
    (targets > 0, logits, "logits"),
  ]:
    expected = arrays[f"network/{kind}/{place}"]
    np.testing.assert_allclose(actual[real], expected[real], atol=2e-5, rtol=0)
  sums = losses.weighted_loss(
    logits,
    targets,
    tiny_batch["decoder_loss_weights"],
    losses.LossConfig(),
  )
  np.testing.assert_allclose(
    sums.loss, arrays[f"network/loss/{place}"], atol=1e-3
  )


@pytest.mark.parametrize(
  ("name", "visibility"),
  [
    ("no_prompt_to_input", ("prompt->prompt",)),
    ("causal_prompts", ("prompt->prompt;causal", "prompt->input")),
    ("isolated_prompts", ()),
  ],
)
def test_network_with_another_mask_equals_the_original(
  arrays, prompted, tiny_batch, name, visibility
):
  _, logits = prompted(visibility=visibility)
  real = tiny_batch["decoder_target_tokens"] > 0
  np.testing.assert_allclose(
    logits[real], arrays[f"network/logits/{name}"][real], atol=2e-5, rtol=0
  )


def test_a_prompt_per_example_equals_separate_runs(golden, prompted):
  base = golden("prompted_t5_1_1_tiny")["prompt"]
  different = jnp.stack([base, base[::-1], base * 2])
  _, together = prompted(prompt=different)
  for i in range(3):
    _, alone = prompted(prompt=different[i])
    np.testing.assert_allclose(together[i], alone[i], atol=2e-5)
  assert np.abs(together[1] - prompted()[1][1]).max() > 0.1


def test_the_embeddings_of_a_text_as_prompt_equal_that_text(
  tiny_config, tiny_params, tiny_batch
):
  text = jnp.array([9, 8, 7, 6, 5])
  prompt = tiny_params["token_embedder/embedding"][text]
  model = t5.Transformer(tiny_config, prompts.PromptConfig(length=5))
  _, logits = run(tiny_params | {PROMPT: prompt}, tiny_batch, model=model)
  tokens = tiny_batch["encoder_input_tokens"]
  tokens = jnp.concatenate([jnp.tile(text, (3, 1)), tokens], axis=1)
  plain = t5.Transformer(tiny_config)
  batch = tiny_batch | {"encoder_input_tokens": tokens}
  _, expected = run(tiny_params, batch, model=plain)
  np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_place_is_named_by_join_and_visibility():
  assert prompts.PromptConfig().place == "prefix_prompt"
  behind = prompts.PromptConfig(join=prompts.suffix_prompt)
  assert behind.place == "suffix_prompt"
  causal = ("prompt->prompt;causal", "prompt->input")
  assert prompts.PromptConfig(visibility=causal).place == (
    "prefix_prompt prompt->prompt;causal prompt->input"
  )


def test_no_prompt_equals_the_base_model(
  golden, tiny_config, tiny_params, tiny_batch
):
  expected = golden("prompted_t5_1_1_tiny")["no_prompt_logits"]
  plain = t5.Transformer(tiny_config)
  _, logits = run(tiny_params, tiny_batch, model=plain)
  real = tiny_batch["decoder_target_tokens"] > 0
  np.testing.assert_allclose(logits[real], expected[real], atol=2e-5)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"length": 0}, "PROMPT_LENGTH=0 must be 1 or more"),
    ({"visibility": ("all",)}, "visibility 'all' must be one of"),
    (
      {"visibility": (), "join": prompts.suffix_prompt},
      "needs the prompt in front of the input",
    ),
  ],
)
def test_useless_settings_are_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    prompts.PromptConfig(**kwargs)


def test_a_prompt_of_another_shape_is_refused(prompted):
  with pytest.raises(ValueError, match=r"shape \(4, 32\), the model wants"):
    prompted(prompt=jnp.zeros((4, 32)))


def test_prompts_of_several_lengths_are_padded_in_front():
  lengths = jnp.array([1, 3])
  tokens = jnp.array([[7, 1], [9, 0]])
  real = prompts.prepend_real(tokens, prompt_length=3, prompt_lengths=lengths)
  assert real.tolist() == [[0, 0, 1, 7, 1], [1, 1, 1, 9, 0]]
  mask = prompts.encoder_mask(tokens, prompt_length=3, prompt_lengths=lengths)
  for row, is_real in zip(mask[:, 0], real > 0, strict=True):
    np.testing.assert_array_equal(row, is_real[:, None] & is_real[None, :])
