# SPDX-License-Identifier: Apache-2.0
"""The prompts of one frozen base by name: loaded, listed, batched, evicted.

A bank is the one thing of the library that changes in place, as a cache does:
using a prompt makes it the last to be evicted.
"""

from collections import OrderedDict
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from jaxtyping import Array, Float, Int
import numpy as np

from prompt_tuning import prompt_files, prompts


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBank:
  """Prompts of one base; `empty` makes one.

  Attributes:
    base_id: `prompt_files.base_id` of the base.
    width: model width of the base, D.
    place: where prompts are put; see `prompts.PromptConfig.place`.
    capacity: how many prompts to hold at most; None for any number.
    files: the prompts by name, the one whose use is longest ago first.
  """

  base_id: str
  width: int
  place: str
  capacity: int | None = None
  files: OrderedDict[str, prompt_files.PromptFile] = dataclasses.field(
    default_factory=OrderedDict
  )


class Entry(NamedTuple):
  """What a list of prompts says about one.

  Attributes:
    name: its name in the bank.
    length: number of positions, P.
    num_bytes: in memory.
    task: what it was trained on, if its file says so.
    score: how good it was at that, if its file says so.
  """

  name: str
  length: int
  num_bytes: int
  task: str | None
  score: str | None


class Gathered(NamedTuple):
  """A prompt per row, padded in front to the longest.

  Attributes:
    prompt: zeros where it is padding.
    lengths: how many positions of a row, the last ones, are its prompt.
  """

  prompt: Float[np.ndarray, "B P D"]
  lengths: Int[np.ndarray, " B"]


def empty(
  table: Float[Array, "V D"],
  *,
  place: str = prompts.PromptConfig().place,
  capacity: int | None = None,
) -> PromptBank:
  """Makes a bank for the base with this embedding table.

  Raises:
    ValueError: for a capacity below 1.
  """
  if capacity is not None and capacity < 1:
    raise ValueError(
      f"capacity={capacity} must be 1 or more, or None for any number of"
      " prompts"
    )
  base_id = prompt_files.base_id(table)
  return PromptBank(base_id, table.shape[1], place, capacity)


def load(bank: PromptBank, name: str, path: str) -> None:
  """Reads a prompt of any format of `prompt_files` into the bank.

  A prompt of this name is replaced. Beyond the capacity the one whose use is
  longest ago is evicted.

  Raises:
    ValueError: if there is no such file, it holds no prompt, or that of
      another width, base or place.
  """
  found = prompt_files.load(path)
  width = found.prompt.shape[1]
  if width != bank.width:
    raise ValueError(
      f"PROMPT_FILE={path!r} has a prompt of width {width}, the base has"
      f" {bank.width}: use the base that it was tuned for"
    )
  trained_on = found.metadata.get("base_id", bank.base_id)
  if trained_on != bank.base_id:
    raise ValueError(
      f"PROMPT_FILE={path!r} was tuned for another base (base_id"
      f" {trained_on}, this one is {bank.base_id}): load that base"
    )
  prompt_files.check_place(found, path, place=bank.place)
  bank.files[name] = found
  bank.files.move_to_end(name)
  if bank.capacity is not None and len(bank.files) > bank.capacity:
    bank.files.popitem(last=False)


def evict(bank: PromptBank, name: str) -> None:
  """Takes a prompt out of the bank.

  Raises:
    ValueError: if it is not there.
  """
  _check_known(bank, name)
  del bank.files[name]


def entries(bank: PromptBank) -> list[Entry]:
  """Lists the prompts, the one that is evicted first in front."""
  return [
    Entry(
      name,
      prompt.shape[0],
      prompt.nbytes,
      metadata.get("task"),
      metadata.get("score"),
    )
    for name, (prompt, metadata) in bank.files.items()
  ]


def gather(bank: PromptBank, names: Sequence[str]) -> Gathered:
  """Returns the prompts of the rows of a batch, and notes their use.

  With prompts `a` of one position and `b` of two, the names `["a", "b"]` give

      . a     lengths 1
      b b             2

  Raises:
    ValueError: for a name that the bank does not have.
  """
  for name in dict.fromkeys(names):
    _check_known(bank, name)
    bank.files.move_to_end(name)
  rows = [bank.files[name].prompt for name in names]
  lengths = np.array([len(row) for row in rows], np.int32)
  prompt = np.zeros((len(rows), max(lengths), bank.width), np.float32)
  for i, row in enumerate(rows):
    prompt[i, -len(row) :] = row
  return Gathered(prompt, lengths)


def _check_known(bank: PromptBank, name: str) -> None:
  if name not in bank.files:
    known = ", ".join(sorted(bank.files)) or "no prompt at all"
    raise ValueError(
      f"the bank has no prompt {name!r}, only {known}: load it, or name one of"
      " these"
    )
