# SPDX-License-Identifier: Apache-2.0
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import checkpoints, optim, trainer

PROMPT = "encoder/prompt/prompt/prompt"
BASE = "0123"
RUN = {"RANDOM_SEED": 0}
IDENTITY = {"base_fingerprint": BASE, "run": RUN}


def make_state(step):
  prompt = jnp.arange(60.0).reshape(3, 20) * step
  trainable = {PROMPT: prompt}
  opt_state = optim.adafactor().init(trainable)
  return trainer.TrainState(jnp.int32(step), trainable, opt_state)


def save(folder, *steps, keep=2):
  with checkpoints.open_manager(str(folder), keep=keep) as manager:
    for step in steps:
      metadata = IDENTITY | {"unlogged": [[0.1] * 7]}
      checkpoints.save(manager, make_state(step), metadata)


def restore(folder, like=None, base=BASE, run=RUN):
  with checkpoints.open_manager(str(folder), keep=2) as manager:
    return checkpoints.restore(
      manager, like or make_state(0), base_fingerprint=base, run=run
    )


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
  save(tmp_path, 4, 8)
  state, metadata = restore(tmp_path)
  assert int(state.step) == 8
  np.testing.assert_array_equal(
    state.trainable[PROMPT], make_state(8).trainable[PROMPT]
  )
  assert metadata["unlogged"] == [[0.1] * 7]


def test_only_the_newest_stay(tmp_path):
  save(tmp_path, 1, 2, 3, keep=2)
  names = sorted(x.name for x in tmp_path.glob("checkpoint_*"))
  assert names == ["checkpoint_2", "checkpoint_3"]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert restore(tmp_path) is None


def test_every_damaged_file_is_noticed(tmp_path, capsys):
  """Each file truncated, zeroed or removed in turn: an older one is used."""
  save(tmp_path / "sound", 4, 8)
  newest = tmp_path / "sound" / "checkpoint_8"
  files = [x.relative_to(newest) for x in newest.rglob("*") if x.is_file()]
  assert len(files) > 5
  num_older = 0
  for file in files:
    for damage in ("truncated", "zeroed", "removed"):
      folder = tmp_path / "damaged"
      shutil.rmtree(folder, ignore_errors=True)
      shutil.copytree(tmp_path / "sound", folder)
      path = folder / "checkpoint_8" / file
      data = path.read_bytes()
      if damage == "removed":
        path.unlink()
      elif damage == "zeroed":
        path.write_bytes(bytes(len(data)))
      else:
        path.write_bytes(data[: len(data) // 2])
      state, metadata = restore(folder)
      step = int(state.step)
      # What is read is what was written, whichever it is.
      np.testing.assert_array_equal(
        state.trainable[PROMPT], make_state(step).trainable[PROMPT]
      )
      assert metadata["unlogged"] == [[0.1] * 7]
      output = capsys.readouterr().out
      assert (step == 4) == ("checkpoint_8 is damaged and not used" in output)
      # Its step can be saved again, and it is not lost.
      aside = folder / "damaged_checkpoint_8"
      assert aside.exists() == (step == 4)
      assert (folder / "checkpoint_8").exists() == (step == 8)
      num_older += step == 4
  assert num_older >= 6


@pytest.mark.parametrize(
  "error", [OSError("no network"), jax.errors.JaxRuntimeError("no memory")]
)
def test_a_read_that_fails_for_now_is_no_damage(tmp_path, monkeypatch, error):
  save(tmp_path, 4, 8)
  real_restore, failed = checkpoints.ocp.CheckpointManager.restore, []

  def restore_later(manager, step, *args, **kwargs):
    if not failed and "state" in str(kwargs["args"]):
      failed.append(step)
      raise error
    return real_restore(manager, step, *args, **kwargs)

  monkeypatch.setattr(
    checkpoints.ocp.CheckpointManager, "restore", restore_later
  )
  with pytest.raises(type(error)):
    restore(tmp_path)
  assert failed == [8]
  state, _ = restore(tmp_path)
  assert int(state.step) == 8


def test_nothing_sound_is_an_error(tmp_path):
  save(tmp_path, 4)
  for path in (tmp_path / "checkpoint_4" / "metadata").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(ValueError, match="every checkpoint of .* is damaged"):
    restore(tmp_path)


def test_another_base_or_prompt_is_refused(tmp_path):
  save(tmp_path, 4)
  with pytest.raises(ValueError, match=r"another base \(fingerprint 0123, now"):
    restore(tmp_path, base="4567")
  longer = make_state(0)
  longer.trainable[PROMPT] = jnp.zeros((4, 20))
  with pytest.raises(ValueError, match=f"trainable/{PROMPT} differ"):
    restore(tmp_path, like=longer)
  other = make_state(0)
  other.trainable[PROMPT] = other.trainable[PROMPT].astype(jnp.bfloat16)
  with pytest.raises(ValueError, match=f"dtype: trainable/{PROMPT} differ"):
    restore(tmp_path, like=other)


def test_another_run_is_refused(tmp_path):
  save(tmp_path, 4)
  with pytest.raises(ValueError, match="with RANDOM_SEED=0, now it is 1"):
    restore(tmp_path, run={"RANDOM_SEED": 1})


@pytest.mark.parametrize("scores", [(1.0, 3.0, 2.0), (3.0, 3.0, 1.0)])
def test_the_best_is_the_first_with_the_highest_score(tmp_path, scores):
  with checkpoints.open_manager(str(tmp_path), keep=1) as manager:
    for step, score in enumerate(scores, 1):
      is_best = checkpoints.is_best(manager, score)
      assert is_best == (score > max(scores[: step - 1], default=-np.inf))
      if is_best:
        checkpoints.save_best(manager, make_state(step), score, IDENTITY)
    manager.wait_until_finished()
    assert checkpoints.best_score(manager) == max(scores)
  names = [x.name for x in tmp_path.glob("checkpoint_*")]
  assert names == [f"checkpoint_{scores.index(max(scores)) + 1}"]
