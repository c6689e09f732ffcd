# SPDX-License-Identifier: Apache-2.0
import dataclasses

from paths import GOLDENS
import pytest

from prompt_tuning import base_sizes, pretrained, t5


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("hf_t5_tiny", {}),
    (
      "hf_t5_tiny_v1_0",
      {"mlp_activations": ("relu",), "logits_via_embedding": True},
    ),
    ("t5x_checkpoint/checkpoint_3", {}),
  ],
)
def test_sizes_are_found_in_every_format(tiny_config, name, changes):
  config = base_sizes.read(str(GOLDENS / name))
  wanted = dataclasses.replace(tiny_config, dropout_rate=0.1, **changes)
  assert config == wanted
  pretrained.describe(
    str(GOLDENS / name), t5.param_shapes(t5.Transformer(config))
  )


def test_a_file_without_a_t5_is_refused(tmp_path, tiny_params):
  path = f"{tmp_path}/base.safetensors"
  name = "encoder/relpos_bias/rel_embedding"
  rest = {k: x for k, x in tiny_params.items() if k != name}
  pretrained.save(path, rest, 0, {})
  with pytest.raises(ValueError, match=f"is not a T5: it has no matrix {name}"):
    base_sizes.read(path)
