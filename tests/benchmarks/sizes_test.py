# SPDX-License-Identifier: Apache-2.0
"""The operations of a step, against counts by hand."""

import pathlib

import pytest

from prompt_tuning import t5

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def sizes():
  import sizes

  return sizes


CONFIG = t5.T5Config(
  vocab_size=10,
  emb_dim=2,
  num_heads=1,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=3,
  mlp_dim=5,
)


@pytest.mark.parametrize(("is_frozen", "products"), [(True, 2), (False, 3)])
def test_a_step_costs_what_is_counted_by_hand(sizes, is_frozen, products):
  """One row, four positions encoded and one decoded."""
  encoder = 4 * (4 * 2 * 3 + 3 * 2 * 5)  # query, key, value, out; wi, wi, wo.
  decoder = 1 * (4 * 2 * 3 + 2 * 2 * 3 + 3 * 2 * 5) + 2 * 10
  cross = 4 * (2 * 2 * 3)  # Keys and values of the encoded positions.
  pairs = 3 * (4 * 4 + 1 * (1 + 4))  # Query times key, in each of 3 features.
  expected = 2 * products * (encoder + decoder + cross) + 2 * 2 * 3 * pairs
  found = sizes.step_flops(
    CONFIG,
    batch_size=1,
    num_inputs=3,
    num_targets=1,
    prompt_length=1,
    is_frozen=is_frozen,
  )
  assert found == expected


NAMES = (
  "tiny",
  "small",
  "base",
  "large",
  "xl",
  "xxl",
  "english_1m",
  "english_4m",
  "english_16m",
  "english_60m",
)


def test_every_size_is_compared(sizes):
  assert tuple(sizes.SIZES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_size_is_that_of_its_gin_file(sizes, gin_model, name):
  is_own = name == "tiny" or name.startswith("english")
  stem = name if is_own else f"t5_1_1_{name}"
  model = gin_model(
    f"gin/models/{stem}.gin",
    bindings=["t5.Transformer.config = @t5.T5Config()"],
  )
  assert model.config == sizes.SIZES[name]
