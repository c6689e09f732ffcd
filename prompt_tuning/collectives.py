# SPDX-License-Identifier: Apache-2.0
"""What the devices of a compiled program say to each other, and how much."""

from collections.abc import Iterator
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
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LOOP = re.compile(
  r" while\(.*\bbody=%?([\w.\-]+).*\"known_trip_count\":\{\"n\":\"(\d+)\""
)
_SHAPE = re.compile(r"\b([a-z]+)(\d+)?(?:e\d+m\d+\w*)?\[([\d,]*)\]")


class Collective(NamedTuple):
  """All operations of a kind.

  Attributes:
    number: how often a run of the program comes to one.
    num_bytes: of their results on one device, together.
  """

  number: int
  num_bytes: int


def count(program: str) -> dict[str, Collective]:
  """Counts the collectives of a program, those of a loop once a turn.

  Args:
    program: its HLO, from `jax.stages.Compiled.as_text`.

  Returns:
    Those that there are, by kind.
  """
  result: dict[str, Collective] = {}
  num_runs = _num_runs(program)
  for computation, line in _lines(program):
    times = num_runs.get(computation, 1)
    for shapes, kind, start in _OPERATION.findall(line):
      sizes = [_num_bytes(*shape) for shape in _SHAPE.findall(shapes)]
      # An all-gather's start has its operands in front of its results.
      if start and kind in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :]
      number, num_bytes = result.get(kind, (0, 0))
      result[kind] = Collective(number + times, num_bytes + times * sum(sizes))
  return result


def _lines(program: str) -> Iterator[tuple[str, str]]:
  """Yields each line with the name of the computation that it stands in."""
  computation = ""
  for line in program.splitlines():
    if title := _COMPUTATION.match(line):
      computation = title[1]
    yield computation, line


def _num_runs(program: str) -> dict[str, int]:
  """Returns how often the body of each loop of a program runs.

  One whose number of turns XLA does not know is counted as if it had one.
  """
  loops: dict[str, tuple[str, int]] = {}  # By body: where it is, and turns.
  for computation, line in _lines(program):
    if loop := _LOOP.search(line):
      loops[loop[1]] = (computation, int(loop[2]))

  def runs(body: str) -> int:
    if body not in loops:
      return 1
    around, turns = loops[body]
    return turns * runs(around)

  return {body: runs(body) for body in loops}


def _num_bytes(letters: str, bits: str, sizes: str) -> int:
  num_bits = 8 if letters == "pred" else int(bits)
  return math.prod(map(int, filter(None, sizes.split(",")))) * num_bits // 8
