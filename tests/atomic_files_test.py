# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

from prompt_tuning import atomic_files

# `gs://` as a dictionary in memory, so that a real `epath` path is tested. TF's
# file system, which `epath` would prefer, has no such bucket.
BUCKET = """
import fsspec
from fsspec.implementations import memory

class Bucket(memory.MemoryFileSystem):
  protocol = ("gs", "gcs")

  def __init__(self, finalize_on_close=True):
    super().__init__()

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("gs:/"))

  def open(self, path, mode="rb", **kwargs):
    assert not mode.startswith("a"), "a bucket knows no appending"
    return super().open(path, mode, **kwargs)

fsspec.register_implementation("gcs", Bucket, clobber=True)
"""


@pytest.fixture
def in_bucket():
  """Runs a program that finds an empty bucket at `gs://bucket/`."""

  def run(program):
    result = subprocess.run(
      [sys.executable, "-c", BUCKET + program],
      env=os.environ | {"EPATH_USE_TF": "0"},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stderr

  return run


def test_a_file_is_replaced_as_a_whole(tmp_path):
  path = tmp_path / "new" / "file"
  atomic_files.write(path, "é")
  assert path.read_bytes() == "é".encode()
  with atomic_files.replacing(path) as file:
    file.write(b"first half")
    file.flush()
    assert path.read_text() == "é"
    file.write(b", second half")
  assert path.read_text() == "first half, second half"
  assert [x.name for x in path.parent.iterdir()] == ["file"]


def write_half(path):
  with atomic_files.replacing(path) as file:
    file.write(b"half")
    raise RuntimeError


def test_an_error_leaves_what_was_there(tmp_path):
  path = tmp_path / "file"
  path.write_text("before")
  with pytest.raises(RuntimeError):
    write_half(path)
  assert path.read_text() == "before"
  assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
  tmp_path, monkeypatch
):
  path = tmp_path / "file"
  synced = []
  real_fsync = os.fsync

  def fsync(descriptor):
    synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
    real_fsync(descriptor)

  monkeypatch.setattr(os, "fsync", fsync)
  atomic_files.write(path, b"content")
  (file, is_there), (folder, is_renamed) = synced
  assert file.startswith(f"{tmp_path}/.file.tmp")
  assert folder == str(tmp_path)
  assert not is_there
  assert is_renamed


def test_text_is_appended(tmp_path):
  path = tmp_path / "file"
  atomic_files.append(path, "a\n")
  atomic_files.append(path, "é\n")
  assert path.read_text() == "a\né\n"


def test_a_run_can_log_and_save_its_prompt_in_a_bucket(in_bucket):
  in_bucket("""
import json
from etils import epath
import numpy as np
from prompt_tuning import atomic_files, metrics_log, prompt_files

class Writer:
  def add_scalar(self, *args): pass
  def flush(self): pass
  def close(self): pass

folder = "gs://bucket/run"
metrics_log.event_files.SummaryWriter = lambda *args, **kwargs: Writer()
with metrics_log.open_log(folder, 0) as log:
  for step in (1, 2, 3):
    metrics_log.write(log, step, "train", {"loss": 0.5})
with metrics_log.open_log(folder, 2) as log:
  metrics_log.write(log, 4, "eval", {"score": 1.0})
lines = epath.Path(f"{folder}/metrics.jsonl").read_text().splitlines()
assert [json.loads(line)["step"] for line in lines] == [1, 2, 4], lines

prompt = np.arange(6, dtype=np.float32).reshape(2, 3)
for name in ("best/prompt.safetensors", "prompt.npy"):
  prompt_files.save(f"{folder}/{name}", prompt, {"task": "rte"})
prompt_files.save_peft(f"{folder}/adapter", prompt, base_model="t5")
for path in (folder, f"{folder}/prompt.npy", f"{folder}/adapter"):
  assert np.array_equal(prompt_files.load(path).prompt, prompt)
assert prompt_files.load(folder).metadata == {"task": "rte"}

try:
  with atomic_files.replacing(f"{folder}/half") as file:
    file.write(b"half")
    raise RuntimeError
except RuntimeError:
  pass
names = sorted(x.name for x in epath.Path(folder).iterdir())
assert names == ["adapter", "best", "metrics.jsonl", "prompt.npy"], names
""")
