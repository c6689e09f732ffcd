# SPDX-License-Identifier: Apache-2.0
"""Attention in one kernel: what models give it, and when."""

import dataclasses
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from products import products
import pytest

from prompt_tuning import (
  flash_attention,
  losses,
  prompts,
  quantization,
  t5,
  trainer,
)

PROMPT = "encoder/prompt/prompt/prompt"


@pytest.fixture
def kernel(monkeypatch):
  """Lets "kernel" be the kernel, on a CPU and in 32 bits; counts the calls."""
  calls = []

  def count(attend):
    def counted(*arguments):
      calls.append(arguments)
      return attend(*arguments)

    monkeypatch.setattr(flash_attention, attend.__name__, counted)

  count(flash_attention.attend)
  count(flash_attention.attend_jointly)
  monkeypatch.setattr(
    flash_attention, "is_used", lambda kind, *_: kind == "kernel"
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


def training(model, params, batch):
  """Returns a function of loss and gradient, and its arguments."""
  config = dataclasses.replace(model.config, dropout_rate=0.3)
  frozen = {name: jnp.array(x) for name, x in params.items() if name != PROMPT}
  run = functools.partial(
    trainer.loss_fn, model=model.clone(config=config), loss=losses.LossConfig()
  )
  return jax.value_and_grad(run, has_aux=True), (
    {PROMPT: params[PROMPT]},
    quantization.quantize(frozen, config.quantization),
    batch,
    jax.random.key(3),
  )


def loss_and_gradient(*arguments):
  function, given = training(*arguments)
  (loss, _), grads = jax.jit(function)(*given)
  return loss, grads[PROMPT]


def with_kernel(model, **options):
  config = dataclasses.replace(model.config, attention="kernel", **options)
  return model.clone(config=config)


def test_query_key_and_value_are_not_computed_again(
  kernel, prompted, tiny_batch
):
  del kernel
  model, params = prompted
  counts = []
  for remat in ("none", "minimal"):
    changed = with_kernel(model, remat=remat)
    function, given = training(changed, params, tiny_batch)
    shapes = [shape for shape, _ in products(function, *given)]
    # Of the encoder's tokens and the decoder's targets.
    width = model.config.num_heads * model.config.head_dim
    counts.append([shapes.count((3, n, 3, width)) for n in (12, 7)])
  assert counts == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
  "kind", ["int8", pytest.param("none", marks=pytest.mark.slow)]
)
def test_loss_and_gradient_are_those_of_plain_attention(
  kernel, prompted, tiny_batch, kind
):
  """With the same random bits, rows of several lengths and a padded length."""
  model, params = prompted
  config = dataclasses.replace(model.config, quantization=kind)
  model = model.clone(config=config)
  tokens = np.array(tiny_batch["encoder_input_tokens"])
  tokens[0, 3:] = 0
  batch = tiny_batch | {"encoder_input_tokens": jnp.asarray(tokens)}
  plain = loss_and_gradient(model, params, batch)
  assert not kernel
  fused = loss_and_gradient(with_kernel(model), params, batch)
  config = model.config
  num_calls = config.num_encoder_layers + 2 * config.num_decoder_layers
  assert len(kernel) == num_calls
  first = kernel[0][0]  # The prompt, and tokens that need no gradient.
  assert [x.shape[1] for x in first] == [5, tokens.shape[1]]
  np.testing.assert_allclose(fused[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(fused[1], plain[1], rtol=1e-4, atol=1e-4)


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
  network = with_kernel(model).clone(prompt=None)
  apply(network, plain, tiny_batch | segments)
  jax.jit(
    lambda: network.apply(
      {"params": traverse_util.unflatten_dict(plain, sep="/")},
      jnp.zeros((2, 7, model.config.emb_dim)),
      *(jnp.ones((2, length), jnp.int32) for length in (7, 3, 3)),
      decoder_segment_ids=jnp.ones((2, 3), jnp.int32),
      enable_dropout=False,
      method=network.decode,
    )
  )()
  assert not kernel


@pytest.mark.parametrize(
  ("kind", "message"),
  [("flash", "must be one of"), ("kernel", "needs an NVIDIA GPU")],
)
def test_a_wrong_kind_is_refused(kind, message):
  with pytest.raises(ValueError, match=message):
    flash_attention.is_used(kind, jnp.float32, 64)


def test_a_wrong_kind_is_refused_by_the_config():
  with pytest.raises(ValueError, match="ATTENTION='flash' must be one of"):
    t5.T5Config(attention="flash")
  with pytest.raises(ValueError, match="REMAT='some' must be one of"):
    t5.T5Config(remat="some")


@pytest.mark.parametrize(
  ("dtype", "head_dim", "expected"),
  [
    (jnp.bfloat16, 64, True),
    (jnp.float32, 64, False),
    (jnp.bfloat16, 48, False),
    (jnp.bfloat16, 8, False),
  ],
)
def test_auto_is_the_kernel_where_it_can_run(
  monkeypatch, dtype, head_dim, expected
):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert flash_attention.is_used("auto", dtype, head_dim) == expected
