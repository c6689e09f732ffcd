# SPDX-License-Identifier: Apache-2.0
"""What the devices of a compiled program say to each other, and how much."""

import math
import re
from typing import NamedTuple

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_OPERATION = re.compile(
  rf"= (.+?) ({'|'.join(KINDS)})(-start)?\("  # `-done` is the same one.
)
_SHAPE = re.compile(r"\b([a-z]+)(\d+)?(?:e\d+m\d+\w*)?\[([\d,]*)\]")


class Collective(NamedTuple):
  """All operations of a kind.

  Attributes:
    number: how many stand in the program; one in a loop is there once.
    num_bytes: of their results on one device, together.
  """

  number: int
  num_bytes: int


def count(program: str) -> dict[str, Collective]:
  """Counts the collectives of a program.

  Args:
    program: its HLO, from `jax.stages.Compiled.as_text`.

  Returns:
    Those that there are, by kind.
  """
  result: dict[str, Collective] = {}
  for shapes, kind, start in _OPERATION.findall(program):
    sizes = [_num_bytes(*shape) for shape in _SHAPE.findall(shapes)]
    # An all-gather's start has its operands in front of its results.
    if start and kind in ("all-gather", "collective-permute"):
      sizes = sizes[len(sizes) // 2 :]
    before = result.get(kind, Collective(0, 0))
    result[kind] = Collective(before.number + 1, before.num_bytes + sum(sizes))
  return result


def _num_bytes(letters: str, bits: str, sizes: str) -> int:
  num_bits = 8 if letters == "pred" else int(bits)
  return math.prod(map(int, filter(None, sizes.split(",")))) * num_bits // 8
