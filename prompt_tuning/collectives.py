# SPDX-License-Identifier: Apache-2.0
"""What the devices of a compiled program say to each other, and how much."""

from collections.abc import Iterator
import functools
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
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r" while\(.*\bcondition=%?([\w.\-]+)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
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
  runs = num_runs(program)
  channels: set[str] = set()
  for computation, line in lines(program):
    # One that a TPU spreads over several fusions is written in each of them.
    if channel := _CHANNEL.search(line):
      if channel[1] in channels:
        continue
      channels.add(channel[1])
    times = runs.get(computation, 1)
    for shapes, kind, start in _OPERATION.findall(line):
      own = times * result_bytes(kind + start, shapes)
      number, num_bytes = result.get(kind, (0, 0))
      result[kind] = Collective(number + times, num_bytes + own)
  return result


def lines(program: str) -> Iterator[tuple[str, str]]:
  """Yields each line with the name of the computation that it stands in."""
  computation = ""
  for line in program.splitlines():
    if title := _COMPUTATION.match(line):
      computation = title[1]
    yield computation, line


def num_runs(program: str) -> dict[str, int]:
  """Returns how often each computation of a program runs.

  The body of a loop runs as often as XLA has noted or, as for a TPU it does
  not, as the one constant of the loop's condition says: JAX counts from 0. A
  loop of neither is counted as if it had one turn.
  """
  callers: dict[str, list[tuple[str, str]]] = {}
  limits: dict[str, list[int]] = {}
  for computation, line in lines(program):
    for called in _CALLED.findall(line):
      callers.setdefault(called, []).append((computation, line))
    if limit := _LIMIT.search(line):
      limits.setdefault(computation, []).append(int(limit[1]))

  def num_turns(line: str) -> int:
    if noted := _TURNS.search(line):
      return int(noted[1])
    condition = _CONDITION.search(line)
    constants = limits.get(condition[1], []) if condition else []
    return constants[0] if len(constants) == 1 else 1

  @functools.cache
  def runs(computation: str) -> int:
    found = callers.get(computation, [])
    return sum(num_turns(line) * runs(x) for x, line in found) or 1

  return {computation: runs(computation) for computation in callers}


def result_bytes(operation: str, shapes: str) -> int:
  """Returns the size of an operation's results, from its type in HLO.

  Some starts have their operands in front of their results, and so have all
  whose operands are a tuple: these do not count.
  """
  sizes = bytes_of(shapes)
  is_behind = operation in ("all-gather-start", "collective-permute-start")
  if is_behind or (operation.endswith("-start") and shapes.startswith("((")):
    sizes = sizes[len(sizes) // 2 :]
  return sum(sizes)


def bytes_of(shapes: str) -> list[int]:
  """Returns the size of each array in a text of HLO, such as a tuple's type."""
  result = []
  for letters, bits, sizes in _SHAPE.findall(shapes):
    num_bits = 8 if letters == "pred" else int(bits)
    number = math.prod(map(int, filter(None, sizes.split(","))))
    result.append(number * num_bits // 8)
  return result
