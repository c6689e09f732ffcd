# SPDX-License-Identifier: Apache-2.0
"""The prompted tiny T5 that the decoding goldens were made with."""

import pytest


@pytest.fixture
def arrays(golden):
  return golden("decoding")


@pytest.fixture
def params(arrays, tiny_params):
  return tiny_params | {
    "encoder/prompt/prompt/prompt": arrays["prompt"],
    "decoder/logits_dense/kernel": arrays["logits_dense_kernel"],
  }


@pytest.fixture
def model(tiny_config):
  from prompt_tuning import prompts, t5

  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))
