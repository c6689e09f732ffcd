# SPDX-License-Identifier: Apache-2.0
"""That a stack draws its dropout at once: around its layers, and in all."""

import re

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import dropout, t5

MODEL = t5.Transformer(
  t5.T5Config(
    vocab_size=32,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=3,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=16,
    dropout_rate=0.5,
  )
)
TOKENS = jnp.array([[3, 4, 5], [6, 7, 0]])
ENCODED = jax.random.normal(jax.random.key(0), (2, 3, 8))
# Of a row: D = 8 features of the input and of the output, which in the encoder
# are dropped for each of 3 positions; and in a layer of either H = 2 heads of 3
# keys, D = 8 behind the attention, F = 16 and D = 8 of the MLP. In the decoder
# there is attention twice.
SHAPES = {
  "encode": ["2,32", "3,2,38"],
  "decode": ["2,16", "2,2,52"],
}


@pytest.fixture(name="params", scope="module")
def _params():
  tokens = [TOKENS] * 3
  return MODEL.init(jax.random.key(0), *tokens, enable_dropout=False)["params"]


def run(params, method, seed):
  tokens = (TOKENS,) if method == "encode" else (ENCODED, *[TOKENS] * 3)
  return MODEL.apply(
    {"params": params},
    *tokens,
    rngs={"dropout": jax.random.key(seed)},
    method=method,
  )


@pytest.mark.parametrize("method", SHAPES)
def test_a_stack_draws_all_its_dropout_at_once(params, method):
  program = jax.make_jaxpr(run, static_argnums=1)(params, method, 1)
  found = re.findall(r"u32\[([\d,]+)\] = random_bits", str(program))
  assert found == SHAPES[method]


@pytest.mark.parametrize("method", SHAPES)
def test_what_a_stack_drops_follows_from_its_rng(params, method):
  first, again, other = (run(params, method, seed) for seed in (1, 1, 2))
  assert (first == again).all()
  assert (first != other).any()


@pytest.mark.slow
def test_every_layer_draws_with_an_rng_of_its_own(monkeypatch):
  rngs, draw, of_layers = [], dropout.draw, dropout.draw_for_layers

  def record(rng):
    if not isinstance(rng, jax.core.Tracer):  # It is one of those below.
      rngs.append(tuple(jax.random.key_data(rng).tolist()))

  def record_draw(rng, *args, **kwargs):
    record(rng)
    return draw(rng, *args, **kwargs)

  def record_layers(rng, *args, num_layers, **kwargs):
    for own in jax.random.split(rng, num_layers):
      record(own)
    return of_layers(rng, *args, num_layers=num_layers, **kwargs)

  monkeypatch.setattr(dropout, "draw", record_draw)
  monkeypatch.setattr(dropout, "draw_for_layers", record_layers)
  MODEL.init_with_output(
    {"params": jax.random.key(0), "dropout": jax.random.key(1)},
    *(TOKENS, TOKENS, TOKENS),
  )
  # Three encoder layers and two decoder layers, and what is around both.
  assert len(rngs) == len(set(rngs)) == 3 + 2 + 2
