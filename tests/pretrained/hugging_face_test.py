# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import shutil

import numpy as np
import pytest

from prompt_tuning import pretrained
from prompt_tuning.pretrained import hugging_face, leaves, safetensors_files

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
HEAD = "decoder/logits_dense/kernel"
EMBEDDING = "token_embedder/embedding"


@pytest.fixture
def folder(tmp_path):
  """A copy of hf_t5_tiny that may be changed."""
  path = tmp_path / "model"
  shutil.copytree(GOLDENS / "hf_t5_tiny", path)
  return path


def read_arrays(folder):
  found = safetensors_files.open_file(folder / "model.safetensors").leaves
  return {
    name: leaves.read(leaf, leaves.whole(leaf.shape), leaf.dtype)
    for name, leaf in found.items()
  }


def write_arrays(path, arrays):
  stored = {k: leaves.from_array(k, x) for k, x in arrays.items()}
  safetensors_files.write_file(path, stored, {"format": "pt"}, dtype=None)


def set_config(folder, **entries):
  path = folder / "config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | entries))


def open_paths(folder):
  return set(pretrained.open_checkpoint(str(folder)).leaves)


def assert_refused(folder, message):
  with pytest.raises(ValueError, match=message):
    pretrained.open_checkpoint(str(folder))


@pytest.mark.parametrize("archive", ["t5_1_1_tiny", "t5_1_0_tiny"])
def test_names_translate_both_ways(archive):
  with np.load(GOLDENS / f"{archive}.npz") as arrays:
    shapes = {
      k.removeprefix("params/"): np.empty(x.shape, np.float32)
      for k, x in arrays.items()
      if k.startswith("params/")
    }
  stored = {k: leaves.from_array(k, x) for k, x in shapes.items()}
  back = hugging_face.to_t5x(hugging_face.from_t5x(stored), None)
  assert {k: x.shape for k, x in back.items()} == {
    k: x.shape for k, x in shapes.items()
  }


def test_layers_keep_their_number():
  name = "decoder.block.23.layer.1.EncDecAttention.o.weight"
  path = "decoder/layers_23/encoder_decoder_attention/out/kernel"
  assert hugging_face.name_of(path) == name
  leaf = leaves.from_array(name, np.empty((2, 3), np.float32))
  assert hugging_face.to_t5x({name: leaf}, None)[path].shape == (3, 2)


def test_a_leaf_without_a_name_is_refused():
  with pytest.raises(ValueError, match="has no place for encoder/prompt/"):
    hugging_face.name_of("encoder/prompt/prompt/prompt")


# "equal": lm_head repeats the embedding table, as in some T5 1.0 files.
@pytest.mark.parametrize(
  ("head", "config", "is_untied"),
  [
    ("differs", {"tie_word_embeddings": False}, True),
    (
      "differs",
      {"tie_word_embeddings": True, "scale_decoder_outputs": False},
      True,
    ),
    ("equal", {"tie_word_embeddings": False}, True),
    ("equal", {"tie_word_embeddings": True}, False),
    (
      "equal",
      {"tie_word_embeddings": True, "scale_decoder_outputs": True},
      False,
    ),
    ("absent", {"tie_word_embeddings": True}, False),
    ("absent", {"tie_word_embeddings": False}, False),
    ("differs", None, True),
    ("equal", None, False),
  ],
  ids=str,
)
def test_flags_and_content_tell_if_logits_are_tied(
  folder, head, config, is_untied
):
  arrays = read_arrays(folder)
  if head == "equal":
    arrays["lm_head.weight"] = arrays["shared.weight"]
  if head == "absent":
    del arrays["lm_head.weight"]
  write_arrays(folder / "model.safetensors", arrays)
  if config is None:
    (folder / "config.json").unlink()
  else:
    set_config(folder, **config)
  assert (HEAD in open_paths(folder)) == is_untied


def test_a_tied_config_with_another_head_is_refused(folder):
  set_config(folder, tie_word_embeddings=True)
  assert_refused(folder, "lm_head.weight differs from shared.weight: set tie")


def test_the_config_of_transformers_5_loads(folder):
  shutil.copy(
    folder / "config_as_written_by_transformers_5.json", folder / "config.json"
  )
  assert HEAD in open_paths(folder)


def test_copies_of_the_embedding_table_are_one_leaf(folder):
  expected = open_paths(folder)
  arrays = read_arrays(folder)
  table = arrays["shared.weight"]
  arrays["encoder.embed_tokens.weight"] = table
  arrays["decoder.embed_tokens.weight"] = table
  # The first published T5 files have a bias that is not used.
  unused = "EncDecAttention.relative_attention_bias.weight"
  arrays[f"decoder.block.0.layer.1.{unused}"] = table[:32, :4]
  write_arrays(folder / "model.safetensors", arrays)
  assert open_paths(folder) == expected
  del arrays["shared.weight"]
  write_arrays(folder / "model.safetensors", arrays)
  assert open_paths(folder) == expected
  arrays["decoder.embed_tokens.weight"] = table + 1
  write_arrays(folder / "model.safetensors", arrays)
  assert_refused(folder, "embed_tokens.weight differ: T5 has one table")


def test_unknown_tensors_keep_their_names(folder):
  arrays = read_arrays(folder)
  bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
  arrays[bias] = arrays["shared.weight"]  # As in umT5, one for each layer.
  write_arrays(folder / "model.safetensors", arrays)
  assert bias in open_paths(folder)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("feed_forward_proj", "gated-silu"),
    ("layer_norm_epsilon", 1e-5),
    ("relative_attention_max_distance", 64),
  ],
)
def test_models_that_would_be_computed_wrongly_are_refused(folder, name, value):
  set_config(folder, **{name: value})
  assert_refused(folder, f"{name}={value!r}, which is not supported")


def test_a_damaged_config_is_refused(folder):
  (folder / "config.json").write_text("{")
  assert_refused(folder, "config.json is not sound: Expecting property name")


@pytest.fixture
def sharded(folder):
  """The model in two files with an index."""
  arrays = read_arrays(folder)
  (folder / "model.safetensors").unlink()
  files = {"model-1-of-2.safetensors": {}, "model-2-of-2.safetensors": {}}
  for i, name in enumerate(sorted(arrays)):
    files[f"model-{i % 2 + 1}-of-2.safetensors"][name] = arrays[name]
  for file, content in files.items():
    write_arrays(folder / file, content)
  names = {name: file for file, content in files.items() for name in content}
  write_index(folder, {"metadata": {}, "weight_map": names})
  return folder


def write_index(folder, index):
  path = folder / "model.safetensors.index.json"
  path.write_text(json.dumps(index))


def test_shards_load_as_one_file_does(sharded):
  actual = pretrained.open_checkpoint(str(sharded)).leaves
  expected = pretrained.open_checkpoint(str(GOLDENS / "hf_t5_tiny")).leaves
  assert actual.keys() == expected.keys()
  assert all(leaves.is_equal(actual[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
  "file",
  ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", 3],
)
def test_shards_elsewhere_are_refused(sharded, file):
  write_index(sharded, {"weight_map": {"shared.weight": file}})
  assert_refused(sharded, "is no .safetensors file beside it")


def test_an_index_without_shards_is_refused(sharded):
  write_index(sharded, {"weight_map": {}})
  assert_refused(sharded, "there is no weight_map in it")


def test_a_missing_shard_is_named(sharded):
  (sharded / "model-2-of-2.safetensors").unlink()
  assert_refused(sharded, "model-2-of-2.safetensors is not a file")


def test_shards_must_hold_what_the_index_says(sharded):
  file = "model-1-of-2.safetensors"
  write_index(sharded, {"weight_map": {"shared.weight": file}})
  assert_refused(sharded, f"{file} do not agree on: .*decoder.block.0")


def test_a_tensor_under_both_names_is_refused(folder, tmp_path):
  arrays = {"shared.weight": np.ones((2, 2), np.float32)}
  stored = {k: leaves.from_array(k, x) for k, x in arrays.items()}
  stored[EMBEDDING] = stored["shared.weight"]
  with pytest.raises(ValueError, match=f"{EMBEDDING} is in the file twice"):
    hugging_face.to_t5x(stored, None)


def test_a_config_needs_the_matrices_that_tell_the_sizes():
  with pytest.raises(ValueError, match=f"a T5 needs a matrix {EMBEDDING}"):
    hugging_face.make_config({}, "float32")


@pytest.mark.parametrize("name", ["hf_t5_tiny", "hf_t5_tiny_v1_0"])
def test_the_config_made_from_shapes_is_the_one_published(name):
  found = pretrained.open_checkpoint(str(GOLDENS / name)).leaves
  made = hugging_face.make_config(found, "float32")
  published = json.loads((GOLDENS / name / "config.json").read_text())
  differing = {k for k in made if k in published and made[k] != published[k]}
  assert differing == {"dropout_rate"}  # The goldens were made without.
