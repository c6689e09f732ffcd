# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import pretrained
from prompt_tuning.pretrained import formats, t5x

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SCALE = "encoder/encoder_norm/scale"


@pytest.fixture
def checkpoint(tmp_path):
  """A copy of a T5X checkpoint that may be damaged."""
  path = tmp_path / "checkpoint_3"
  shutil.copytree(GOLDENS / "t5x_checkpoint/checkpoint_3", path)
  return path


def assert_refused(path, match):
  with pytest.raises(ValueError, match=match):
    pretrained.open_checkpoint(str(path))


def test_a_path_that_does_not_exist_is_one_sentence():
  assert_refused(
    "/nowhere/at/all",
    r"^the checkpoint '/nowhere/at/all' does not exist: give the "
    r"folder of a T5X checkpoint \(checkpoint_<step>\), of a Hugging Face "
    r"model, or a .safetensors file$",
  )


def test_other_files_and_folders_are_refused(tmp_path):
  file = tmp_path / "notes.txt"
  file.write_text("nothing")
  assert_refused(file, "notes.txt' is no checkpoint: give the folder")
  assert_refused(tmp_path, "holds no checkpoint that is known: give the folder")
  assert_refused("a" * 5000, "cannot be read: .*File name too long")
  assert_refused("~nobody-has-this-name/x", "cannot be read: ")


def test_a_folder_of_several_steps_names_the_newest(tmp_path):
  for name in ("checkpoint_9", "checkpoint_10", "checkpoint_11.tmp-5"):
    (tmp_path / name).mkdir()
  (tmp_path / "checkpoint_12").write_text("a file")
  newest = tmp_path / "checkpoint_10"
  assert_refused(tmp_path, f"several steps: name one, as {newest}$")


def test_several_files_must_be_told_apart(tmp_path):
  params = {SCALE: jnp.ones(3)}
  for name in ("b", "a"):
    pretrained.save(str(tmp_path / f"{name}.safetensors"), params, 1, {})
  first = tmp_path / "a.safetensors"
  assert_refused(tmp_path, f"2 .safetensors files: name one, as {first}")


def test_pickled_weights_are_never_read(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
  assert_refused(tmp_path, "holds pickled weights.*safe_serialization=True")


def test_names_in_our_own_file_must_be_paths(tmp_path):
  path = tmp_path / "base.safetensors"
  pretrained.save(str(path), {"encoder/../../etc": jnp.ones(3)}, 1, {})
  assert_refused(path, r"'encoder/../../etc' is no path of a parameter")


def test_the_step_of_our_own_file_must_be_a_number(tmp_path):
  path = tmp_path / "base.safetensors"
  pretrained.save(str(path), {SCALE: jnp.ones(3)}, -3, {})
  assert_refused(path, "base.safetensors has step='-3' in its metadata")


def test_links_out_of_the_folder_are_refused(checkpoint, tmp_path):
  chunk = checkpoint / "target.encoder.encoder_norm.scale/0"
  outside = chunk.replace(tmp_path / "outside")
  chunk.symlink_to(outside)
  assert_refused(checkpoint, f"{chunk} is a link out of its folder, to")
  # A link that stays inside is no harm.
  chunk.unlink()
  chunk.symlink_to(outside.replace(checkpoint / "spare"))
  pretrained.open_checkpoint(str(checkpoint))


def test_links_to_folders_are_refused(checkpoint, tmp_path):
  array = checkpoint / "target.encoder.encoder_norm.scale"
  array.symlink_to(array.replace(tmp_path / "outside"))
  assert_refused(checkpoint, f"{array} is a link to a folder")


def test_what_is_no_plain_file_is_refused(checkpoint):
  chunk = checkpoint / "target.encoder.encoder_norm.scale/0"
  chunk.unlink()
  os.mkfifo(chunk)
  assert_refused(checkpoint, f"{chunk} is not a file")


def test_hugging_face_links_may_lead_into_its_cache_only(tmp_path):
  folder = tmp_path / "models--t5/snapshots/1234"
  blobs = tmp_path / "models--t5/blobs"
  folder.mkdir(parents=True)
  blobs.mkdir()
  for name in ("model.safetensors", "config.json"):
    shutil.copy(GOLDENS / "hf_t5_tiny" / name, blobs / f"blob-{name}")
    (folder / name).symlink_to(f"../../blobs/blob-{name}")
  for path in (folder, folder / "model.safetensors"):
    assert len(pretrained.open_checkpoint(str(path)).leaves) == 66
  config = (blobs / "blob-config.json").replace(tmp_path / "elsewhere")
  (folder / "config.json").unlink()
  (folder / "config.json").symlink_to(config)
  for path in (folder, folder / "model.safetensors"):
    assert_refused(path, "config.json is a link out of its folder")


def test_an_index_that_is_too_large_is_not_read(checkpoint):
  os.truncate(checkpoint / "checkpoint", t5x.MAX_INDEX_BYTES + 1)
  assert_refused(checkpoint, "checkpoint is too large to be an index")


def test_a_bucket_is_described_to_tensorstore():
  path = "gs://t5-data/pretrained_models/t5x/t5_1_1_small/checkpoint_1000000"
  assert formats.gcs_kvstore(path) == {
    "driver": "gcs",
    "bucket": "t5-data",
    "path": "pretrained_models/t5x/t5_1_1_small/checkpoint_1000000/",
  }
  assert formats.gcs_kvstore(f"{path}/") == formats.gcs_kvstore(path)


@pytest.mark.parametrize("path", ["gs://", "gs://bucket", "gs:///folder"])
def test_a_bucket_needs_a_folder(path):
  assert_refused(path, f"'{path}' must look like gs://bucket/folder")


def test_nothing_is_read_by_opening(checkpoint):
  for chunk in checkpoint.glob("*/0*"):
    chunk.write_bytes(b"garbage")
  leaves = pretrained.open_checkpoint(str(checkpoint)).leaves
  target = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in leaves.items()
  }
  with pytest.raises(ValueError, match="target.* cannot be read: .*inflate"):
    pretrained.load(str(checkpoint), target)
