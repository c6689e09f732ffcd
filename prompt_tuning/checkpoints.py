# SPDX-License-Identifier: Apache-2.0
"""The training state to disk and back: what is trained, never the base.

`MODEL_DIR/checkpoint_<step>/` is an Orbax checkpoint of the trained parameters
and their optimizer state, `MODEL_DIR/best/checkpoint_<step>/` the one with the
best score; `MODEL_DIR/numpy_checkpoints/checkpoint_<step>/` has each prompt as
a numpy array, where the original puts it. Several trials share the first, with
a leading axis; the others each has in its own folder.
"""

from collections.abc import Mapping
import math
from typing import Any

from etils import epath
import jax
from jaxtyping import Array
import orbax.checkpoint as ocp

from prompt_tuning import (
  distributed,
  fingerprint,
  partitioning,
  prompt_files,
  trainer,
  trials,
)

Metadata = Mapping[str, Any]


def open_manager(model_dir: str, *, keep: int) -> ocp.CheckpointManager:
  """Opens `model_dir` for checkpoints, of which the newest `keep` stay.

  Saving is asynchronous; `close` or `wait_until_finished` before leaving.
  """
  return ocp.CheckpointManager(
    epath.Path(model_dir).absolute(),
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      step_prefix="checkpoint",
      create=True,
      enable_async_checkpointing=True,
      # Processes meet by this name: two managers may save one step at once.
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        barrier_sync_key_prefix=model_dir
      ),
    ),
    item_names=("state", "metadata"),
  )


def _flatten(state: trials.State) -> dict[str, Array]:
  """Names the arrays of a state by their place in it."""
  leaves, _ = jax.tree.flatten_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def _described(arrays: Mapping[str, Array]) -> dict[str, list[int | str]]:
  """Returns shape and dtype of arrays, as JSON."""
  return {name: [*x.shape, x.dtype.name] for name, x in arrays.items()}


def save(
  manager: ocp.CheckpointManager,
  state: trials.State,
  metadata: Metadata,
) -> None:
  """Starts saving a state, with a fingerprint that shows later damage.

  Args:
    manager: from `open_manager`.
    state: its step names the checkpoint.
    metadata: JSON with at least `base_fingerprint` and `run`; `restore`
      compares these and returns all of it.
  """
  arrays = _flatten(state)
  described = {
    **metadata,
    "arrays": _described(arrays),
    "state_fingerprint": fingerprint.fingerprint(arrays),
  }
  manager.save(
    int(state.step),
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(arrays),
      metadata=ocp.args.JsonSave(described),
    ),
  )


def restore(
  manager: ocp.CheckpointManager,
  like: trials.State,
  *,
  base_fingerprint: str,
  run: Metadata,
) -> tuple[trials.State, Metadata] | None:
  """Restores the newest sound checkpoint; None if there is no checkpoint.

  A damaged one is passed over with a printed line, and renamed to
  `damaged_checkpoint_<step>` if there is a sound one before it.

  Args:
    manager: from `open_manager`.
    like: a state of the same structure, shapes, dtypes and shardings.
    base_fingerprint: of the frozen parameters, which must be those that the
      checkpoint was trained on.
    run: what must be as in the metadata's `run`, because the order of the rows
      and the dropout of a step follow from it: they are not saved themselves.

  Raises:
    ValueError: if the checkpoint belongs to another base, partition or run, or
      every checkpoint is damaged.
    OSError, jax.errors.JaxRuntimeError: if it cannot be read at the moment.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  damaged = []
  for step in steps:
    try:
      metadata = _read_metadata(manager, step)
      path = f"{manager.directory}/checkpoint_{step}"
      _check_run(path, metadata["run"], run)
      state = _read(manager, step, like, metadata)
    except _Damaged as error:
      print(f"checkpoint_{step} is damaged and not used: {error}", flush=True)
      damaged.append(step)
      continue
    found = metadata["base_fingerprint"]
    if found != base_fingerprint:
      raise ValueError(
        f"{path} was trained on another base (fingerprint {found}, now"
        f" {base_fingerprint}): use its base or another MODEL_DIR"
      )
    for later in damaged:  # Nothing is saved behind a step that is there.
      _set_aside(manager, later)
    return state, metadata
  if steps:
    raise ValueError(
      f"every checkpoint of {manager.directory} is damaged: use another"
      " MODEL_DIR, or delete them to start again"
    )
  return None


def _set_aside(manager: ocp.CheckpointManager, step: int) -> None:
  """Renames a checkpoint, so that its step can be saved again."""
  folder = epath.Path(manager.directory)
  if distributed.is_first():
    aside = folder / f"damaged_checkpoint_{step}"
    if aside.exists():
      aside.rmtree()
    (folder / f"checkpoint_{step}").rename(aside)
  distributed.of_first(step)  # Waits for the first.
  manager.reload()


def _check_run(path: str, before: Metadata, now: Metadata) -> None:
  """Refuses a checkpoint of another run, by the first difference."""
  for name in {**now, **before}:
    if before.get(name) != now.get(name):
      raise ValueError(
        f"{path} was trained with {name}={before.get(name)!r}, now it is"
        f" {now.get(name)!r}: use the same, or another MODEL_DIR"
      )


def save_best(
  manager: ocp.CheckpointManager,
  state: trainer.TrainState,
  score: float,
  metadata: Metadata,
) -> None:
  """Saves a state with its score.

  Args:
    manager: of a folder for the best checkpoint alone, which keeps one.
    state: see `save`.
    score: for which `is_best` holds.
    metadata: see `save`.
  """
  save(manager, state, {**metadata, "score": score})


def is_best(manager: ocp.CheckpointManager, score: float) -> bool:
  """Tells whether a score is above that of the best checkpoint."""
  return score > best_score(manager)


def best_score(manager: ocp.CheckpointManager) -> float:
  """Returns the score of the best checkpoint; minus infinity without one."""
  manager.wait_until_finished()
  step = manager.latest_step()
  if step is None:
    return -math.inf
  try:
    return float(_read_metadata(manager, step)["score"])
  except _Damaged:
    return -math.inf


class _Damaged(Exception):
  """A checkpoint that cannot be read as it was written."""


def _read(
  manager: ocp.CheckpointManager,
  step: int,
  like: trials.State,
  metadata: Metadata,
) -> trials.State:
  """Reads one checkpoint and compares it with its fingerprint."""
  arrays = _flatten(like)
  found, wanted = metadata["arrays"], _described(arrays)
  if found != wanted:
    names = sorted({**found, **wanted})
    changed = [x for x in names if found.get(x) != wanted.get(x)]
    raise ValueError(
      f"{manager.directory}/checkpoint_{step} was trained with another"
      f" partition, prompt, optimizer or dtype: {', '.join(changed[:3])}"
      " differ; use another MODEL_DIR"
    )
  restored = _restore(manager, step, state=ocp.args.StandardRestore(arrays))
  if fingerprint.fingerprint(restored) != metadata["state_fingerprint"]:
    raise _Damaged("its fingerprint does not match")
  leaves = [restored[name] for name in arrays]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _read_metadata(manager: ocp.CheckpointManager, step: int) -> Metadata:
  """Reads what `save` wrote beside the arrays, and checks that it is whole."""
  metadata = _restore(manager, step, metadata=ocp.args.JsonRestore())
  wanted = {"arrays", "state_fingerprint", "base_fingerprint", "run"}
  if not isinstance(metadata, dict) or not wanted <= metadata.keys():
    raise _Damaged("its metadata are not whole")
  return metadata


def _restore(
  manager: ocp.CheckpointManager, step: int, **item: ocp.args.CheckpointArgs
) -> Any:
  """Reads one item of a checkpoint.

  What says nothing about its files, such as no network or no memory, is raised
  as it is.
  """
  try:
    found = manager.restore(step, args=ocp.args.Composite(**item))
  except Exception as error:  # Orbax raises many types.
    is_passing = isinstance(error, OSError | jax.errors.JaxRuntimeError)
    if is_passing and not isinstance(error, FileNotFoundError):
      raise
    line = (str(error) or type(error).__name__).splitlines()[0]
    raise _Damaged(line[:200]) from error
  (name,) = item
  return found[name]


def write_prompts(model_dir: str, state: trainer.TrainState) -> None:
  """Writes each trained prompt as a numpy array, atomically.

  To `numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt`, a
  `.npy` file without the extension, as the original does.
  """
  folder = f"{model_dir}/numpy_checkpoints/checkpoint_{int(state.step)}"
  for name, x in state.trainable.items():
    if name.endswith("/prompt"):
      path = f"{folder}/{name.replace('/', '.')}"
      prompt_files.save(path, jax.device_get(partitioning.gather(x)), {})
