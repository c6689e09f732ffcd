# SPDX-License-Identifier: Apache-2.0
"""Where a layer has dropout, and that every layer has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import dropout, stacks, t5

CONFIG = t5.T5Config(
  vocab_size=32,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=16,
  dropout_rate=0.5,
)
OF_ENCODER = ("attention", "attention_output", "mlp", "mlp_output")
OF_DECODER = (
  "self_attention",
  "self_attention_output",
  "encoder_decoder_attention",
  "encoder_decoder_attention_output",
  "mlp",
  "mlp_output",
)


def output(layer, place, monkeypatch, rng):
  """Applies a layer that drops all of one place and nothing else."""

  def draw(rng, shapes, *, num_rows, **_):
    if rng is None:
      return None
    factors = {k: jnp.ones((num_rows, *shape)) for k, shape in shapes.items()}
    return factors | ({place: 0 * factors[place]} if place else {})

  monkeypatch.setattr(dropout, "draw", draw)
  x = jax.random.normal(jax.random.key(0), (3, 5, 8))
  encoded = (x[:, ::-1],) if isinstance(layer, stacks.DecoderLayer) else ()
  masks = (None,) * (1 + len(encoded))
  arguments = (x, *encoded, *masks, jnp.zeros((1, 2, 5, 5)), None)
  variables = layer.init(jax.random.key(1), *arguments, None)
  return layer.apply(variables, *arguments, rng)


@pytest.mark.parametrize(
  ("layer_type", "place"),
  [(stacks.EncoderLayer, place) for place in OF_ENCODER]
  + [(stacks.DecoderLayer, place) for place in OF_DECODER],
)
def test_a_layer_has_dropout_in_every_place(layer_type, place, monkeypatch):
  layer, rng = layer_type(CONFIG), jax.random.key(2)
  without = output(layer, None, monkeypatch, None)
  nothing = output(layer, None, monkeypatch, rng)
  np.testing.assert_allclose(nothing, without, atol=1e-5)
  dropped = output(layer, place, monkeypatch, rng)
  assert np.abs(dropped - without).max() > 0.01


@pytest.mark.slow
def test_every_layer_draws_with_an_rng_of_its_own(monkeypatch):
  rngs, draw = [], dropout.draw

  def record(rng, *args, **kwargs):
    if rng is not None:
      rngs.append(tuple(jax.random.key_data(rng).tolist()))
    return draw(rng, *args, **kwargs)

  monkeypatch.setattr(dropout, "draw", record)
  model = t5.Transformer(CONFIG)
  tokens = jnp.ones((2, 3), jnp.int32)
  model.init_with_output(
    {"params": jax.random.key(0), "dropout": jax.random.key(1)},
    *(tokens, tokens, tokens),
  )
  # Two encoder layers and one decoder layer, and what is around both.
  assert len(rngs) == len(set(rngs)) == 2 + 1 + 2
