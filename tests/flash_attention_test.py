# SPDX-License-Identifier: Apache-2.0
"""Attention in one kernel: what it is given, and what it gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import flash_attention, losses, prompts, t5, trainer

PROMPT = "encoder/prompt/prompt/prompt"


def reference(query, key, value, bias, lengths):
  """What the kernel is documented to compute."""
  logits = jnp.einsum("BQHK,BNHK->BHQN", query, key)
  if bias is not None:
    logits = logits + bias
  is_real = jnp.arange(key.shape[1])[None] < lengths[:, None]
  logits = jnp.where(is_real[:, None, None, :], logits, -1e10)
  return jnp.einsum("BHQN,BNHK->BQHK", jax.nn.softmax(logits), value)


@pytest.fixture
def kernel(monkeypatch):
  """Puts the reference where the kernel is; counts the calls."""
  calls = []

  def attend(*arguments):
    calls.append([None if x is None else x.shape for x in arguments])
    return reference(*arguments)

  monkeypatch.setattr(flash_attention, "attend", attend)
  monkeypatch.setattr(
    flash_attention, "is_used", lambda kind, dtype: kind == "cudnn"
  )
  return calls


@pytest.fixture
def prompted(tiny_config, tiny_params):
  """A model with a prompt of five positions, and its parameters."""
  config = dataclasses.replace(
    tiny_config, num_encoder_layers=1, num_decoder_layers=1
  )
  model = t5.Transformer(config, prompts.PromptConfig(length=5))
  prompt = jax.random.normal(jax.random.key(0), (5, tiny_config.emb_dim))
  return model, tiny_params | {PROMPT: prompt}


def loss_and_gradient(model, params, batch, *, dropout_rate=0.0):
  config = dataclasses.replace(model.config, dropout_rate=dropout_rate)
  frozen = {name: x for name, x in params.items() if name != PROMPT}
  run = functools.partial(
    trainer.loss_fn, model=model.clone(config=config), loss=losses.LossConfig()
  )
  (loss, _), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(
    {PROMPT: params[PROMPT]}, frozen, batch, jax.random.key(3)
  )
  return loss, grads[PROMPT]


def with_kernel(model):
  config = dataclasses.replace(model.config, attention="cudnn")
  return model.clone(config=config)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_plain_attention(
  kernel, prompted, tiny_batch, dropout_rate
):
  """With the same random bits, rows of several lengths and a padded length."""
  model, params = prompted
  tokens = np.array(tiny_batch["encoder_input_tokens"])
  tokens[0, 3:] = 0
  batch = tiny_batch | {"encoder_input_tokens": jnp.asarray(tokens)}
  plain = loss_and_gradient(model, params, batch, dropout_rate=dropout_rate)
  assert not kernel
  fused = loss_and_gradient(
    with_kernel(model), params, batch, dropout_rate=dropout_rate
  )
  config = model.config
  num_calls = config.num_encoder_layers + config.num_decoder_layers
  assert len(kernel) == num_calls
  np.testing.assert_allclose(fused[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(fused[1], plain[1], rtol=1e-4, atol=1e-4)


def test_odd_lengths_are_padded_for_the_kernel():
  x, bias = jnp.zeros((2, 7, 3, 16), jnp.bfloat16), jnp.zeros((1, 3, 7, 7))
  call = lambda *xs: flash_attention.attend(*xs, jnp.array([7, 5]))
  jaxpr = jax.make_jaxpr(call)(x, x, x, bias.astype(jnp.bfloat16))
  assert "bf16[1,3,8,8]" in str(jaxpr)
  assert jaxpr.out_avals[0].shape == x.shape


def test_what_the_kernel_cannot_mask_is_computed_plainly(
  kernel, prompted, tiny_batch
):
  model, params = prompted
  narrow = prompts.PromptConfig(length=5, visibility=("prompt->prompt",))
  apply = jax.jit(trainer.apply, static_argnums=0)
  apply(with_kernel(model).clone(prompt=narrow), params, tiny_batch)
  segments = {
    "encoder_segment_ids": jnp.ones_like(tiny_batch["encoder_input_tokens"]),
    "decoder_segment_ids": jnp.ones_like(tiny_batch["decoder_target_tokens"]),
  }
  plain = {name: x for name, x in params.items() if name != PROMPT}
  apply(with_kernel(model).clone(prompt=None), plain, tiny_batch | segments)
  assert not kernel


@pytest.mark.parametrize("trained", [False, True])
def test_only_a_trained_bias_has_a_gradient(trained):
  shape = jnp.zeros((2, 8, 3, 16), jnp.bfloat16)
  bias = jnp.zeros((1, 3, 8, 8), jnp.bfloat16)
  lengths = jnp.array([8, 5])

  def total(query, bias):
    output = flash_attention.attend(query, shape, shape, bias, lengths)
    return jnp.sum(output.astype(jnp.float32))

  wanted = (0, 1) if trained else 0
  jaxpr = str(jax.make_jaxpr(jax.grad(total, argnums=wanted))(shape, bias))
  assert f"variadic_args=(True, {trained})" in jaxpr


@pytest.mark.parametrize(
  ("kind", "message"),
  [("flash", "must be one of"), ("cudnn", "needs an NVIDIA GPU")],
)
def test_a_wrong_kind_is_refused(kind, message):
  with pytest.raises(ValueError, match=message):
    flash_attention.is_used(kind, jnp.float32)


def test_a_wrong_kind_is_refused_by_the_config():
  with pytest.raises(ValueError, match="ATTENTION='flash' must be one of"):
    t5.T5Config(attention="flash")
  with pytest.raises(ValueError, match="REMAT='some' must be one of"):
    t5.T5Config(remat="some")


def test_auto_is_plain_in_32_bits():
  assert not flash_attention.is_used("auto", jnp.float32)


@pytest.mark.skipif(
  jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_kernel_computes_what_the_reference_does(with_bias):
  keys = jax.random.split(jax.random.key(0), 5)
  query, key, value, weights = (
    jax.random.normal(k, (3, 24, 4, 16), jnp.bfloat16) for k in keys[:4]
  )
  bias = None
  if with_bias:
    bias = jax.random.normal(keys[4], (1, 4, 24, 24), jnp.bfloat16)
  lengths = jnp.array([24, 7, 12])

  def total(attend, *arguments):
    output = attend(*arguments, lengths).astype(jnp.float32)
    return jnp.sum(output * weights)

  arguments = (query, key, value, bias)
  wanted = (0, 1, 2, 3) if with_bias else (0, 1, 2)
  found = jax.grad(functools.partial(total, flash_attention.attend), wanted)(
    *arguments
  )
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
  expected = jax.grad(functools.partial(total, reference), wanted)(*exact)
  for one, other in zip(found, expected, strict=True):
    error = jnp.linalg.norm(one.astype(jnp.float32) - other)
    assert error < 0.02 * jnp.linalg.norm(other)
