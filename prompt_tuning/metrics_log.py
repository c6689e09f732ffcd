# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run as JSON lines and for TensorBoard.

`metrics.jsonl` holds what is the same whenever the run is repeated, and after
a restart goes on as if there had been none; times go to TensorBoard alone.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
from typing import NamedTuple

from etils import epath

from prompt_tuning import atomic_files, event_files


class MetricsLog(NamedTuple):
  """Where a run writes its metrics.

  Attributes:
    path: the file of JSON lines, on a disk or in a bucket.
    writer: the writer of TensorBoard's event files.
  """

  path: epath.Path
  writer: event_files.SummaryWriter


@contextlib.contextmanager
def open_log(model_dir: str, step: int) -> Iterator[MetricsLog]:
  """Opens the log of a run that continues at `step`.

  Lines of later steps, written before a crash, are dropped. TensorBoard's file
  is written every five seconds; a process that is killed loses what it has not.
  """
  path = epath.Path(model_dir) / "metrics.jsonl"
  kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
  atomic_files.write(path, "".join(kept))
  # It knows buckets itself.
  writer = event_files.SummaryWriter(
    str(epath.Path(model_dir) / "tensorboard"),
    purge_step=step + 1,
    flush_secs=5,
  )
  with contextlib.closing(writer):
    yield MetricsLog(path, writer)


def _lines(path: epath.Path) -> list[str]:
  """Reads the whole lines of the file; a torn last one is left out."""
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [line for line in lines if line.endswith("\n")]


def write(
  log: MetricsLog, step: int, split: str, values: Mapping[str, float]
) -> None:
  """Appends one line, and one scalar per value for TensorBoard."""
  line = json.dumps({"step": step, "split": split, **values})
  atomic_files.append(log.path, f"{line}\n")
  write_scalars(log, step, split, values)


def write_scalars(
  log: MetricsLog, step: int, split: str, values: Mapping[str, float]
) -> None:
  """Writes values for TensorBoard alone, as `split/name`."""
  for name, value in values.items():
    log.writer.add_scalar(f"{split}/{name}", value, step)
