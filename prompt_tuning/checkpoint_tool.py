# SPDX-License-Identifier: Apache-2.0
"""Looks into checkpoints: lists, compares, takes out, puts a prompt in.

    python -m prompt_tuning.checkpoint_tool inspect CHECKPOINT
    python -m prompt_tuning.checkpoint_tool diff CHECKPOINT OTHER
    python -m prompt_tuning.checkpoint_tool extract CHECKPOINT VARIABLE FILE
    python -m prompt_tuning.checkpoint_tool recreate CHECKPOINT PROMPT OUTPUT
    python -m prompt_tuning.checkpoint_tool prompt PROMPT OUTPUT

A checkpoint is any base that `pretrained.open_checkpoint` knows, a prompt any
file of `prompt_files`. Arrays are read one at a time.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import sys
from typing import Any

import numpy as np

from prompt_tuning import prompt_files, prompts
from prompt_tuning.pretrained import conversion, leaves, open_checkpoint
from prompt_tuning.pretrained.leaves import Leaf


def _read(leaf: Leaf) -> np.ndarray:
  return leaves.read(leaf, leaves.whole(leaf.shape), np.dtype(np.float32))


def inspect(path: str) -> Iterator[str]:
  """Yields a line per array: path, shape, dtype, bytes, root mean square."""
  found, step = open_checkpoint(path)
  total = 0
  for name in sorted(found):
    leaf = found[name]
    total += leaf.nbytes
    rms = float(np.sqrt(np.mean(np.square(_read(leaf), dtype=np.float64))))
    yield (
      f"{name:<64} {leaf.shape!s:<16} {leaf.dtype.name:<9}"
      f" {leaf.nbytes:>14,} B  rms {rms:.6g}"
    )
  yield f"{len(found)} arrays, {total:,} bytes, step {step}"


def diff(path: str, other: str) -> Iterator[str]:
  """Yields a line per array that is not the same in two checkpoints."""
  first, second = open_checkpoint(path).leaves, open_checkpoint(other).leaves
  num_equal = 0
  for name in sorted(first.keys() | second.keys()):
    if name not in second or name not in first:
      yield f"{name}: only in {path if name in first else other}"
    elif first[name].shape != second[name].shape:
      yield f"{name}: {first[name].shape} and {second[name].shape}"
    elif leaves.is_equal(first[name], second[name]):
      num_equal += 1
    else:
      change = np.abs(_read(first[name]) - _read(second[name]))
      yield f"{name}: differs by {change.max():.6g} at most"
  yield f"{num_equal} arrays are equal"


def extract(path: str, variable: str, output: str) -> None:
  """Writes one variable as a numpy array file.

  Raises:
    ValueError: if the checkpoint has no such variable.
  """
  found = open_checkpoint(path).leaves
  if variable not in found:
    words = variable.rsplit("/", 1)[0]
    near = [name for name in sorted(found) if words in name] or sorted(found)
    raise ValueError(
      f"{path} has no variable {variable!r}, but {', '.join(near[:3])}"
    )
  prompt_files.save(output, _read(found[variable]), {})


def recreate(path: str, prompt: str, output: str) -> None:
  """Writes a T5X checkpoint that is another with a prompt put in.

  Parameters only, as the original's script of that name; the prompt's place is
  `encoder/prompt/prompt/prompt`.

  Args:
    path: the base, with or without a prompt.
    prompt: a prompt file.
    output: `.../checkpoint_<step>`, which must not exist.
  """
  base = open_checkpoint(path)
  array = prompt_files.load(prompt).prompt
  width = base.leaves["token_embedder/embedding"].shape[1]
  if array.shape[1] != width:
    raise ValueError(
      f"{prompt} has width {array.shape[1]}, {path} has {width}: use the base"
      " that the prompt was tuned for"
    )
  leaf = leaves.from_array(prompt_files.NAME, array)
  spliced = base._replace(leaves=base.leaves | {prompt_files.NAME: leaf})
  conversion.write_t5x(output, spliced)


def convert_prompt(prompt: str, output: str) -> None:
  """Writes a prompt as numpy array, safetensors, or PEFT adapter (`name/`)."""
  found = prompt_files.load(prompt)
  if output.endswith("/"):
    # Where PEFT puts it.
    prompt_files.check_place(found, prompt, place=prompts.PromptConfig().place)
    base = found.metadata.get("base_model")
    prompt_files.save_peft(output, found.prompt, base_model=base)
  else:
    prompt_files.save(output, found.prompt, found.metadata)


_COMMANDS: dict[str, tuple[Callable[..., Any], Sequence[str]]] = {
  "inspect": (inspect, ("checkpoint",)),
  "diff": (diff, ("checkpoint", "other")),
  "extract": (extract, ("checkpoint", "variable", "file")),
  "recreate": (recreate, ("checkpoint", "prompt", "output")),
  "prompt": (convert_prompt, ("prompt", "output")),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs one command; a mistake is one sentence and exit code 2."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest="command", required=True)
  for name, (_, arguments) in _COMMANDS.items():
    command = commands.add_parser(name)
    for argument in arguments:
      command.add_argument(argument)
  args = parser.parse_args(argv)
  function, arguments = _COMMANDS[args.command]
  try:
    for line in function(*(getattr(args, x) for x in arguments)) or ():
      print(line)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
