# SPDX-License-Identifier: Apache-2.0
"""What a report is about: prompts, the base's embedding table, its words."""

from collections.abc import Callable, Sequence
import pathlib
import re
from typing import NamedTuple

from etils import epath
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import sentencepiece

from prompt_tuning import prompt_files, vocabulary
from prompt_tuning.pretrained import leaves, open_checkpoint

_TABLE = "token_embedder/embedding"
_ARRAY = prompt_files.NAME.replace("/", ".")


class Prompt(NamedTuple):
  """A prompt and where it came from.

  Attributes:
    name: what the report calls it.
    values: the prompt itself.
    metadata: what its file says: task, step, score.
    initial: what drift is measured from: the prompt before training or, if
      that is not at hand, the first that the run has saved; None without both.
    since: says which of the two it is.
    history: the prompt at those steps at which the run has saved it, in order.
  """

  name: str
  values: Float[np.ndarray, "P D"]
  metadata: dict[str, str]
  initial: Float[np.ndarray, "P D"] | None
  since: str
  history: Sequence[tuple[int, Float[np.ndarray, "P D"]]]


class Words(NamedTuple):
  """A vocabulary: the piece of an id, and the ids of a text."""

  piece: Callable[[int], str]
  encode: Callable[[str], list[int]]


def load_prompt(spec: str, initial: str | None) -> Prompt:
  """Reads a prompt.

  Args:
    spec: a prompt file or the MODEL_DIR of a run, whose best prompt is taken,
      or else its newest; `NAME=` may precede it.
    initial: the file of the prompt before training; None for the first that
      the run has saved, if `spec` is a MODEL_DIR.

  Raises:
    ValueError: if there is none, or `initial` has another shape.
  """
  match = re.fullmatch(r"(?:([\w.\-]+)=)?(.+)", spec, re.DOTALL)
  name, path = match.groups() if match else (None, spec)
  history = _history(pathlib.Path(path))
  found = prompt_files.load(_newest(path) if history else path)
  start, since = None, ""
  if history:
    start, since = history[0][1], f"step {history[0][0]}"
  if initial is not None:
    start, since = prompt_files.load(initial).prompt, "its initial value"
  if start is not None and start.shape != found.prompt.shape:
    raise ValueError(
      f"{path} is a prompt {found.prompt.shape}, {since} has {start.shape}:"
      " give the one that it was trained from as --initial"
    )
  metadata = dict(found.metadata)
  return Prompt(name or path, found.prompt, metadata, start, since, history)


def _steps(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
  """Lists the prompts that a run has saved, in order."""
  found = folder.glob(f"numpy_checkpoints/checkpoint_*/{_ARRAY}")
  return sorted((int(x.parent.name.split("_")[1]), x) for x in found)


def _history(folder: pathlib.Path) -> list[tuple[int, np.ndarray]]:
  return [
    (step, prompt_files.load(str(path)).prompt) for step, path in _steps(folder)
  ]


def _newest(folder: str) -> str:
  best = pathlib.Path(folder, "best", "prompt.safetensors")
  return str(best if best.exists() else _steps(pathlib.Path(folder))[-1][1])


def open_table(path: str) -> leaves.Leaf:
  """Opens the embedding table of a base, and reads nothing else of it.

  Raises:
    ValueError: if the base has none.
  """
  found = open_checkpoint(path).leaves
  if _TABLE not in found:
    raise ValueError(f"{path} has no {_TABLE}: give the base as --base")
  return found[_TABLE]


def check(prompt: Prompt, table: leaves.Leaf, base: str) -> None:
  """Refuses a prompt that was tuned for another base.

  Raises:
    ValueError: saying what differs.
  """
  width = table.shape[1]
  if prompt.values.shape[1] != width:
    raise ValueError(
      f"{prompt.name} has width {prompt.values.shape[1]}, {base} has {width}:"
      " give the base that the prompt was tuned for"
    )
  trained_on = prompt.metadata.get("base_id")
  if trained_on is None:
    return
  # Rounded as it is read: the id is that of the rounded table.
  rounded = leaves.read(
    table, leaves.whole(table.shape), np.dtype(jnp.bfloat16)
  )
  if trained_on != prompt_files.base_id(jnp.asarray(rounded)):
    raise ValueError(
      f"{prompt.name} was tuned for another base than {base}: give that one"
    )


def open_words(path: str, *, num_sentinels: int) -> Words:
  """Opens a vocabulary.

  Args:
    path: a SentencePiece model.
    num_sentinels: how many ids `<extra_id_n>` follow its pieces, the last of
      them n=0; 0 if they are in the model. Ids behind belong to no word.

  Raises:
    ValueError: if the file is none.
  """
  try:
    model = epath.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(f"--vocabulary={path} cannot be read: {error}") from error
  try:
    encode = vocabulary.from_sentencepiece(model).encode
  except ValueError as error:
    raise ValueError(f"--vocabulary={path}: {error}") from error
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  num_pieces = processor.GetPieceSize()

  def piece(token: int) -> str:
    if token < num_pieces:
      return processor.IdToPiece(token)
    sentinel = num_pieces + num_sentinels - 1 - token
    return f"<extra_id_{sentinel}>" if sentinel >= 0 else f"<unused {token}>"

  return Words(piece, encode)
