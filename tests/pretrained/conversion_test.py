# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import jax.numpy as jnp
import pytest

from prompt_tuning import pretrained
from prompt_tuning.pretrained import conversion, leaves, safetensors_files

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
T5X = GOLDENS / "t5x_checkpoint/checkpoint_3"
T5X_BF16 = GOLDENS / "t5x_checkpoint_bf16/checkpoint_3"
OURS = "safetensors"
HF = GOLDENS / "hf_t5_tiny"
HF_V1_0 = GOLDENS / "hf_t5_tiny_v1_0"


def run(source, destination, output, dtype=None, dry_run=False):
  return conversion.convert(
    str(source), str(destination), output=output, dtype=dtype, dry_run=dry_run
  )


def contents(path):
  """Maps each path to dtype, shape and bytes; without prompts."""
  return {
    name: (
      leaf.dtype,
      leaf.shape,
      leaves.read(leaf, leaves.whole(leaf.shape), leaf.dtype).tobytes(),
    )
    for name, leaf in pretrained.open_checkpoint(str(path)).leaves.items()
    if not leaves.is_prompt(name)
  }


def tensors(folder):
  """Maps Hugging Face's names to dtype, shape and bytes."""
  found = safetensors_files.open_file(folder / "model.safetensors").leaves
  return {
    name: (
      leaf.dtype,
      leaf.shape,
      leaves.read(leaf, leaves.whole(leaf.shape), leaf.dtype).tobytes(),
    )
    for name, leaf in found.items()
  }


@pytest.mark.parametrize("source", [T5X, T5X_BF16], ids=["float32", "bfloat16"])
def test_t5x_to_ours_to_t5x_is_exact(tmp_path, source):
  run(source, tmp_path / "base.safetensors", OURS)
  run(tmp_path / "base.safetensors", tmp_path / "checkpoint_3", "t5x")
  assert contents(tmp_path / "checkpoint_3") == contents(source)
  for name in ("base.safetensors", "checkpoint_3"):
    assert pretrained.open_checkpoint(str(tmp_path / name)).step == 3
  # Nothing is left beside the two.
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("source", [HF, HF_V1_0], ids=["v1_1", "v1_0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hugging_face_to_t5x_to_hugging_face_is_exact(tmp_path, source, dtype):
  if dtype == "bfloat16":
    run(source, tmp_path / "bf16", "hugging_face", dtype)
    source = tmp_path / "bf16"
  run(source, tmp_path / "checkpoint_0", "t5x")
  run(tmp_path / "checkpoint_0", tmp_path / "back", "hugging_face")
  assert tensors(tmp_path / "back") == tensors(source)
  assert {x[0] for x in tensors(source).values()} == {jnp.dtype(dtype)}
  config = json.loads((tmp_path / "back/config.json").read_text())
  assert config["torch_dtype"] == dtype
  is_tied = "lm_head.weight" not in tensors(source)
  assert config["tie_word_embeddings"] == is_tied


def test_orbax_becomes_any_format(tmp_path):
  source = GOLDENS / "t5x_checkpoint_orbax/checkpoint_2"
  run(source, tmp_path / "checkpoint_2", "t5x")
  run(source, tmp_path / "base.safetensors", OURS)
  assert contents(tmp_path / "checkpoint_2") == contents(source)
  assert contents(tmp_path / "base.safetensors") == contents(source)


def test_a_dtype_is_the_dtype_of_every_array(tmp_path):
  run(T5X, tmp_path / "checkpoint_3", "t5x", "bfloat16")
  assert contents(tmp_path / "checkpoint_3") == contents(T5X_BF16)
  run(T5X, tmp_path / "x.safetensors", OURS, "bfloat16")
  assert contents(tmp_path / "x.safetensors") == contents(T5X_BF16)


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path):
  table = run(HF, tmp_path / "a/checkpoint_0", "t5x", dry_run=True).split("\n")
  assert table[0] == (
    "decoder.final_layer_norm.weight -> decoder/decoder_norm/scale (32,) "
    "float32"
  )
  assert table[-1] == "66 arrays, 72,416 parameters, step 0"
  table = run(T5X, tmp_path / "hf", "hugging_face", "bfloat16", True)
  assert (
    "target.token_embedder.embedding -> shared.weight (128, 32) bfloat16"
  ) in table
  assert "prompt" not in table
  assert not list(tmp_path.iterdir())


def test_destinations_are_checked_first(tmp_path):
  (tmp_path / "checkpoint_3").mkdir()
  cases = [
    ("base", "t5x", f"--to={tmp_path}/checkpoint_3, not --to={tmp_path}/base"),
    ("base", OURS, "base must end in .safetensors"),
    ("checkpoint_3", "t5x", "checkpoint_3 exists: remove it or name another"),
  ]
  for name, output, message in cases:
    with pytest.raises(ValueError, match=message):
      run(T5X, tmp_path / name, output)


def test_leaves_that_are_no_base_are_refused(tmp_path):
  path = tmp_path / "x.safetensors"
  pretrained.save(str(path), {"a/b": jnp.ones(3, jnp.int32)}, 0, {})
  with pytest.raises(ValueError, match="a/b is int32, not of floats"):
    run(path, tmp_path / "checkpoint_0", "t5x")
  path.unlink()
  pretrained.save(str(path), {"decoder/b": jnp.ones(3)}, 0, {})
  with pytest.raises(ValueError, match="has no place for decoder/b"):
    run(path, tmp_path / "hf", "hugging_face")


def test_a_failure_leaves_nothing_behind(tmp_path):
  source = tmp_path / "source"
  run(HF, source, "hugging_face")
  weights = source / "model.safetensors"
  run(source, tmp_path / "checkpoint_0", "t5x")
  chunk = tmp_path / "checkpoint_0/target.token_embedder.embedding/0.0"
  chunk.write_bytes(b"garbage")
  for name, output in (("hf", "hugging_face"), ("a.safetensors", OURS)):
    with pytest.raises(ValueError, match="embedding cannot be read"):
      run(tmp_path / "checkpoint_0", tmp_path / name, output)
  assert weights.exists()
  assert {x.name for x in tmp_path.iterdir()} == {"source", "checkpoint_0"}
