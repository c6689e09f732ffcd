# SPDX-License-Identifier: Apache-2.0
"""Stacked layers: the same parameters, and the same network as a loop."""

import dataclasses

import jax
from jax._src import ad_checkpoint
import numpy as np
from prompt_gradient import loss_and_gradient
import pytest

from prompt_tuning import layer_stacking, losses, prompts, t5, trainer

PROMPT = "encoder/prompt/prompt/prompt"


@pytest.fixture
def frozen(tiny_params):
  return {name: jax.numpy.asarray(x) for name, x in tiny_params.items()}


def test_unstacking_gives_back_every_parameter(frozen):
  stacked = layer_stacking.stack(dict(frozen))
  assert stacked["encoder/layers/mlp/wo/kernel"].shape == (2, 64, 32)
  assert stacked["decoder/layers/mlp/wo/kernel"].shape == (3, 64, 32)
  assert not [name for name in stacked if "layers_" in name]
  again = layer_stacking.unstack(stacked)
  assert again.keys() == frozen.keys()
  for name, x in frozen.items():
    np.testing.assert_array_equal(again[name], x)


def test_more_than_ten_layers_stay_in_order():
  params = {f"encoder/layers_{i}/x": jax.numpy.full(1, i) for i in range(12)}
  stacked = layer_stacking.stack(params)
  np.testing.assert_array_equal(stacked["encoder/layers/x"][:, 0], range(12))
  assert not params  # So that there is one copy.


def test_a_stack_that_is_trained_in_part_stays_as_it_is(frozen):
  trained = "decoder/layers_1/mlp/wo/kernel"
  rest = {name: x for name, x in frozen.items() if name != trained}
  stacked = layer_stacking.stack(rest, trained=[trained])
  assert "decoder/layers_0/mlp/wo/kernel" in stacked
  assert "encoder/layers/mlp/wo/kernel" in stacked


@pytest.mark.parametrize(
  ("remat", "is_stacked"),
  [
    pytest.param("none", True, marks=pytest.mark.slow),
    pytest.param("minimal", True, marks=pytest.mark.slow),
    pytest.param("minimal", False, marks=pytest.mark.slow),
    pytest.param("full", True, marks=pytest.mark.slow),
  ],
)
def test_loss_and_gradient_do_not_depend_on_the_form(
  frozen, tiny_config, tiny_batch, remat, is_stacked
):
  plain = dataclasses.replace(tiny_config, dropout_rate=0.2)
  expected = loss_and_gradient(plain, frozen, tiny_batch)
  config = dataclasses.replace(plain, remat=remat)
  params = layer_stacking.stack(dict(frozen)) if is_stacked else frozen
  found = loss_and_gradient(config, params, tiny_batch)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)


def test_minimal_remat_keeps_products_alone(frozen, tiny_config, tiny_batch):
  """The residuals of a scan over layers, each with a leading axis of layers."""

  def kept(remat):
    config = dataclasses.replace(tiny_config, remat=remat, dropout_rate=0.1)
    model = t5.Transformer(config, prompts.PromptConfig(length=5))
    prompt = jax.numpy.zeros((5, config.emb_dim))
    run = lambda prompt: trainer.loss_fn(
      {PROMPT: prompt},
      layer_stacking.stack(dict(frozen)),
      tiny_batch,
      jax.random.key(0),
      model=model,
      loss=losses.LossConfig(),
    )[0]
    residuals = ad_checkpoint.saved_residuals(run, prompt)
    return sum(x.size for x, source in residuals if "scan" in source)

  assert kept("full") < kept("minimal") < kept("none")
