# SPDX-License-Identifier: Apache-2.0
"""Prompts to files and back: numpy arrays, safetensors, PEFT adapters.

Formats, recognised from the files:

  numpy        the original's array file, with or without the extension .npy
  safetensors  one tensor named by T5X's path, and metadata: of which base,
               task, step and score, and where the prompt was put
  PEFT         a folder with adapter_config.json, adapter_model.safetensors

The MODEL_DIR of a run stands for its best prompt. All may lie in a bucket,
`gs://...`.
"""

from collections.abc import Mapping
import io
import json
from typing import Any, NamedTuple

from etils import epath
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from prompt_tuning import atomic_files, fingerprint
from prompt_tuning.pretrained import leaves, safetensors_files

NAME = "encoder/prompt/prompt/prompt"
# Where training puts the best prompt, in its MODEL_DIR.
BEST = "best/prompt.safetensors"
_PEFT_NAME = "prompt_embeddings"
_PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


class PromptFile(NamedTuple):
  """A prompt, float32 `[P, D]`, and what its file says about it."""

  prompt: Float[np.ndarray, "P D"]
  metadata: Mapping[str, str]


def base_id(table: Float[Array, "V D"]) -> str:
  """Identifies a base by its embedding table.

  The table is rounded to bfloat16 first, so that a base is the same whichever
  dtype it is stored in.
  """
  return fingerprint.fingerprint({"embedding": table.astype(jnp.bfloat16)})


def load(path: str) -> PromptFile:
  """Reads a prompt in any of the formats, or the best one of a MODEL_DIR.

  Raises:
    ValueError: if there is no such file, or it holds no prompt.
  """
  found = epath.Path(path)
  if not found.exists():
    raise ValueError(f"PROMPT_FILE={path!r} does not exist")
  if (found / BEST).exists():
    found = found / BEST
  if found.is_dir():
    result = _load_peft(found)
  elif found.suffix == ".safetensors":
    result = _load_safetensors(found, name=NAME)
  else:
    result = PromptFile(_load_numpy(found), {})
  prompt = result.prompt
  if prompt.ndim != 2 or 0 in prompt.shape:
    raise ValueError(
      f"PROMPT_FILE={path!r} holds an array of shape {prompt.shape}, wanted is"
      " [PROMPT_LENGTH, D]"
    )
  if not np.all(np.isfinite(prompt)):
    raise ValueError(f"PROMPT_FILE={path!r} holds values that are not finite")
  return result


def check(
  found: PromptFile, path: str, *, length: int, table: Float[Array, "V D"]
) -> None:
  """Refuses a prompt of another length, width or base.

  Raises:
    ValueError: saying which.
  """
  wanted = (length, table.shape[1])
  if found.prompt.shape != wanted:
    raise ValueError(
      f"PROMPT_FILE={path!r} holds an array of shape {found.prompt.shape}, the"
      f" model wants {wanted}: set PROMPT_LENGTH to its first number, and use"
      " the base model that it was tuned for"
    )
  trained_on = found.metadata.get("base_id")
  if trained_on is not None and trained_on != base_id(table):
    raise ValueError(
      f"PROMPT_FILE={path!r} was tuned for another base (base_id"
      f" {trained_on}, this one is {base_id(table)}): load that base"
    )


def check_place(found: PromptFile, path: str, *, place: str) -> None:
  """Refuses a prompt whose file says that it was trained in another place.

  Raises:
    ValueError: saying where; see `prompts.PromptConfig.place`.
  """
  trained_in = found.metadata.get("place", place)
  if trained_in != place:
    raise ValueError(
      f"PROMPT_FILE={path!r} was tuned as {trained_in!r}, and this model puts"
      f" it as {place!r}: set PromptConfig.join and .visibility as in training"
    )


def _load_numpy(path: epath.Path) -> Float[np.ndarray, "..."]:
  try:
    prompt = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    if not isinstance(prompt, np.ndarray):
      raise ValueError("it is an archive of several arrays")
    if prompt.dtype.str == "|V2":  # How numpy reads a bfloat16 array back.
      prompt = prompt.view(jnp.bfloat16)
    if not leaves.is_float(prompt.dtype):
      raise ValueError(f"its dtype is {prompt.dtype}")
  except Exception as error:  # numpy's parser raises many types.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise ValueError(
      f"PROMPT_FILE={str(path)!r} is not a numpy array: {reason}"
    ) from error
  return prompt.astype(np.float32)


def _load_safetensors(path: epath.Path, *, name: str) -> PromptFile:
  header = safetensors_files.open_file(path)
  if name not in header.leaves:
    found = ", ".join(sorted(header.leaves)[:3]) or "nothing"
    raise ValueError(f"{path} has no tensor {name!r}, only {found}")
  leaf = header.leaves[name]
  region = leaves.whole(leaf.shape)
  prompt = leaves.read(leaf, region, np.dtype(np.float32))
  return PromptFile(prompt, header.metadata)


def _load_peft(folder: epath.Path) -> PromptFile:
  """Reads a PEFT adapter, of P rows or of P for each of two submodules.

  Of the latter prompt tuning uses the first P, in front of the encoder's input.
  """
  missing = [name for name in _PEFT_FILES if not (folder / name).exists()]
  if missing:
    raise ValueError(
      f"{folder} is neither a MODEL_DIR, as it has no {BEST}, nor a PEFT"
      f" adapter: it has no {missing[0]}"
    )
  config = _read_peft_config(folder / _PEFT_FILES[0])
  found = _load_safetensors(folder / _PEFT_FILES[1], name=_PEFT_NAME)
  num_rows = found.prompt.shape[0]
  length = config["num_virtual_tokens"]
  if num_rows not in (length, 2 * length):
    raise ValueError(
      f"{folder} says num_virtual_tokens={length} but has {num_rows} rows"
    )
  return PromptFile(found.prompt[:length], {})


def _read_peft_config(path: epath.Path) -> dict[str, Any]:
  try:
    config = safetensors_files.read_json(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  if config.get("peft_type") != "PROMPT_TUNING":
    raise ValueError(
      f"{path} says peft_type={config.get('peft_type')!r}, wanted is"
      " 'PROMPT_TUNING'"
    )
  length = config.get("num_virtual_tokens")
  if not isinstance(length, int) or length < 1:
    raise ValueError(f"{path} says num_virtual_tokens={length!r}")
  return config


def save(
  path: str,
  prompt: Float[Array, "P D"] | Float[np.ndarray, "P D"],
  metadata: Mapping[str, str],
) -> None:
  """Writes a prompt, atomically, in the format that `path` asks for.

  Args:
    path: `.safetensors` for that format; anything else is a numpy array, which
      has no place for metadata.
    prompt: is written as float32.
    metadata: texts, such as the base's `base_id`, task, step, score and place.
  """
  array = np.asarray(prompt, np.float32)
  if path.endswith(".safetensors"):
    leaf = leaves.from_array(NAME, array)
    safetensors_files.write_file(path, {NAME: leaf}, dict(metadata), dtype=None)
    return
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  atomic_files.write(path, buffer.getvalue())


def save_peft(
  folder: str,
  prompt: Float[Array, "P D"] | Float[np.ndarray, "P D"],
  *,
  base_model: str | None,
) -> None:
  """Writes a prompt as a PEFT adapter of one submodule.

  Args:
    folder: is made if need be.
    prompt: is written as float32.
    base_model: what PEFT loads as the base: a name or a folder.
  """
  array = np.asarray(prompt, np.float32)
  config = {
    "base_model_name_or_path": base_model,
    "inference_mode": True,
    "num_transformer_submodules": 1,
    "num_virtual_tokens": array.shape[0],
    "peft_type": "PROMPT_TUNING",
    "prompt_tuning_init": "RANDOM",
    "task_type": "SEQ_2_SEQ_LM",
    "token_dim": array.shape[1],
  }
  target = epath.Path(folder)
  leaf = leaves.from_array(_PEFT_NAME, array)
  safetensors_files.write_file(
    target / _PEFT_FILES[1], {_PEFT_NAME: leaf}, {}, dtype=None
  )
  text = json.dumps(config, indent=2)
  atomic_files.write(target / _PEFT_FILES[0], text)
