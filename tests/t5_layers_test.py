# SPDX-License-Identifier: Apache-2.0
"""Where a layer has dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import t5, t5_layers

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
SHAPES = {
  t5_layers.EncoderLayer: t5_layers.EncoderLayer.dropout_shapes(CONFIG, 5),
  t5_layers.DecoderLayer: t5_layers.DecoderLayer.dropout_shapes(CONFIG, 5, 5),
}
OF_ENCODER = {"attention", "attention_output", "mlp", "mlp_output"}
OF_DECODER = {
  "self_attention",
  "self_attention_output",
  "encoder_decoder_attention",
  "encoder_decoder_attention_output",
  "mlp",
  "mlp_output",
}


def test_the_places_of_dropout_are_those_of_t5x():
  assert SHAPES[t5_layers.EncoderLayer].keys() == OF_ENCODER
  assert SHAPES[t5_layers.DecoderLayer].keys() == OF_DECODER


@pytest.mark.parametrize(
  ("layer_type", "place"),
  [(x, place) for x, shapes in SHAPES.items() for place in sorted(shapes)],
)
def test_a_layer_has_dropout_in_every_place(layer_type, place):
  """Drops all of one place and nothing else."""
  layer = layer_type(CONFIG)
  x = jax.random.normal(jax.random.key(0), (3, 5, 8))
  encoded = (x[:, ::-1],) if isinstance(layer, t5_layers.DecoderLayer) else ()
  masks = (None,) * (1 + len(encoded))
  arguments = (x, *encoded, *masks, jnp.zeros((1, 2, 5, 5)), None)
  without, variables = layer.init_with_output(
    jax.random.key(1), *arguments, None
  )
  ones = {k: jnp.ones((3, *shape)) for k, shape in SHAPES[layer_type].items()}
  nothing = layer.apply(variables, *arguments, ones)
  np.testing.assert_allclose(nothing, without, atol=1e-5)
  none_of_it = ones | {place: jnp.zeros_like(ones[place])}
  dropped = layer.apply(variables, *arguments, none_of_it)
  assert np.abs(dropped - without).max() > 0.01
