# SPDX-License-Identifier: Apache-2.0
"""The report: all measures of some prompts of one base, ready to be written."""

from collections.abc import Mapping, Sequence
import dataclasses
import json

from jaxtyping import Float
import numpy as np

from prompt_tuning.interpret import measures, neighbours
from prompt_tuning.interpret.sources import Prompt, Words
from prompt_tuning.pretrained import leaves

_NUM_RANDOM = 200
_SEED = 0
_PERCENTILE = 95


@dataclasses.dataclass(frozen=True)
class Neighbour:
  """A piece of the vocabulary, and its cosine with a position."""

  piece: str
  cosine: float


@dataclasses.dataclass(frozen=True)
class Position:
  """A position of a prompt.

  Attributes:
    norm: Euclidean.
    tightness: see `measures.tightness`.
    neighbours: the nearest pieces, most similar first.
    labels: the labels that are among the nearest.
    drift: distance from the initial value, in norms of that; None if it is
      not known.
  """

  norm: float
  tightness: float
  neighbours: tuple[Neighbour, ...]
  labels: tuple[str, ...]
  drift: float | None


@dataclasses.dataclass(frozen=True)
class Label:
  """Where a label is found.

  Attributes:
    label: its text.
    positions: those that have it among their nearest, see
      `measures.is_among_nearest`.
    started: those that were its embedding initially, see `measures.is_same`.
    persists: whether it is still found at a position that was it initially.
    best_position: the position most similar to it.
    best_cosine: how similar that is.
  """

  label: str
  positions: tuple[int, ...]
  started: tuple[int, ...]
  persists: bool
  best_position: int
  best_cosine: float


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A prompt during training: means over its positions.

  Attributes:
    step: when it was saved.
    norm: Euclidean.
    drift: as in `Position`.
  """

  step: int
  norm: float
  drift: float


@dataclasses.dataclass(frozen=True)
class PromptReport:
  """The report on one prompt.

  Attributes:
    name: what the user calls it.
    metadata: what its file says.
    positions: in order.
    labels: one for each label.
    duplicates: nearest piece -> the positions that share it, two or more.
    cosines: between positions, `[P][P]`.
    since: what drift is measured from.
    history: the saved steps of the run; empty if they are not known.
  """

  name: str
  metadata: Mapping[str, str]
  positions: tuple[Position, ...]
  labels: tuple[Label, ...]
  duplicates: Mapping[str, tuple[int, ...]]
  cosines: tuple[tuple[float, ...], ...]
  since: str
  history: tuple[Snapshot, ...]

  @property
  def num_duplicates(self) -> int:
    """How many positions share their nearest piece with another."""
    return sum(map(len, self.duplicates.values()))


@dataclasses.dataclass(frozen=True)
class Random:
  """What random vectors would give: the measure of all others.

  Attributes:
    nearest: mean cosine with the nearest piece.
    tightness: mean.
    tightness_95: the value that 95% of them are below.
  """

  nearest: float
  tightness: float
  tightness_95: float


@dataclasses.dataclass(frozen=True)
class Report:
  """The whole report.

  Attributes:
    base: the path of the base.
    vocabulary_size: rows of its embedding table.
    vocabulary_norm: mean norm of these.
    random: the same measures of random vectors.
    prompts: in the user's order.
    similarities: measure -> prompt by prompt; see `measures.similarities`.
  """

  base: str
  vocabulary_size: int
  vocabulary_norm: float
  random: Random
  prompts: tuple[PromptReport, ...]
  similarities: Mapping[str, tuple[tuple[float, ...], ...]]

  def num_tight(self, prompt: PromptReport) -> int:
    """Counts the positions that are tighter than 95% of random vectors."""
    limit = self.random.tightness_95
    return sum(x.tightness > limit for x in prompt.positions)


def make(
  prompts: Sequence[Prompt],
  table: leaves.Leaf,
  words: Words,
  *,
  base: str,
  labels: Sequence[str],
  num_neighbours: int,
) -> Report:
  """Computes the report.

  Args:
    prompts: one or more, all for this base.
    table: the base's embedding table.
    words: its vocabulary.
    base: what to call the base.
    labels: texts to look for in every prompt.
    num_neighbours: pieces to list for a position, two or more.

  Raises:
    ValueError: if a label has no tokens, or other ids than the table.
  """
  statistics = neighbours.statistics(table)
  embedded = {
    label: _embed(label, table=table, words=words) for label in labels
  }
  control = measures.random_vectors(statistics, count=_NUM_RANDOM, seed=_SEED)
  vectors = np.concatenate([*(x.values for x in prompts), control])
  # One pass over the table finds all neighbours, a second their embeddings.
  found = neighbours.nearest(table, vectors, count=num_neighbours)
  tight = measures.tightness(neighbours.rows(table, found.ids))
  stops = np.cumsum([len(x.values) for x in prompts])
  starts = [0, *stops[:-1]]
  reports = [
    _prompt_report(
      prompt,
      neighbours.Neighbours(found.ids[a:b], found.cosines[a:b]),
      tight[a:b],
      words,
      embedded,
    )
    for prompt, a, b in zip(prompts, starts, stops, strict=True)
  ]
  similarities = measures.similarities([x.values for x in prompts])
  return Report(
    base,
    table.shape[0],
    statistics.norm_mean,
    Random(
      float(found.cosines[stops[-1] :, 0].mean()),
      float(tight[stops[-1] :].mean()),
      float(np.percentile(tight[stops[-1] :], _PERCENTILE)),
    ),
    tuple(reports),
    {name: _nested(x) for name, x in similarities.items()},
  )


def _embed(
  label: str, *, table: leaves.Leaf, words: Words
) -> Float[np.ndarray, " D"]:
  """Returns a label's embedding, as `prompt_init.class_labels` makes it."""
  ids = words.encode(label)
  if not ids:
    raise ValueError(f"--label={label!r} has no tokens: give a word")
  if max(ids) >= table.shape[0]:
    raise ValueError(
      f"--label={label!r} has the id {max(ids)}, the base's table has"
      f" {table.shape[0]} rows: give the vocabulary of the base"
    )
  return neighbours.rows(table, np.array(ids)).mean(axis=0)


def _prompt_report(
  prompt: Prompt,
  found: neighbours.Neighbours,
  tight: Float[np.ndarray, " P"],
  words: Words,
  embedded: Mapping[str, Float[np.ndarray, " D"]],
) -> PromptReport:
  """Reports on one prompt, whose neighbours are known."""
  labels = [
    _label(prompt, label, vector, found.cosines[:, -1])
    for label, vector in embedded.items()
  ]
  norms = measures.norms(prompt.values)
  moved: Sequence[float | None] = [None] * len(norms)
  if prompt.initial is not None:
    drift = measures.drift(prompt.values, prompt.initial)
    moved = drift.relative.tolist()
  positions = [
    Position(
      norm=float(norms[i]),
      tightness=float(tight[i]),
      neighbours=tuple(
        Neighbour(words.piece(token), cosine)
        for token, cosine in zip(
          found.ids[i].tolist(), found.cosines[i].tolist(), strict=True
        )
      ),
      labels=tuple(x.label for x in labels if i in x.positions),
      drift=moved[i],
    )
    for i in range(len(norms))
  ]
  shared = measures.duplicates(found.ids[:, 0])
  return PromptReport(
    prompt.name,
    prompt.metadata,
    tuple(positions),
    tuple(labels),
    {words.piece(token): tuple(where) for token, where in shared.items()},
    _nested(measures.cosines(prompt.values, prompt.values)),
    prompt.since,
    _history(prompt),
  )


def _label(
  prompt: Prompt,
  label: str,
  vector: Float[np.ndarray, " D"],
  kth_cosine: Float[np.ndarray, " P"],
) -> Label:
  near = measures.is_among_nearest(prompt.values, vector, kth_cosine)
  cosines = measures.cosines(prompt.values, vector[None])[:, 0]
  started: tuple[int, ...] = ()
  if prompt.initial is not None:
    same = measures.is_same(prompt.initial, vector)
    started = tuple(np.flatnonzero(same).tolist())
  positions = tuple(np.flatnonzero(near).tolist())
  best = int(np.argmax(cosines))
  return Label(
    label,
    positions,
    started,
    not set(positions).isdisjoint(started),
    best,
    float(cosines[best]),
  )


def _history(prompt: Prompt) -> tuple[Snapshot, ...]:
  initial = prompt.initial
  if initial is None:
    return ()
  return tuple(
    Snapshot(
      step,
      float(measures.norms(values).mean()),
      float(measures.drift(values, initial).relative.mean()),
    )
    for step, values in prompt.history
  )


def _nested(matrix: Float[np.ndarray, "N N"]) -> tuple[tuple[float, ...], ...]:
  return tuple(map(tuple, matrix.tolist()))


def to_json(report: Report) -> str:
  """Writes all that is in the report."""
  return json.dumps(dataclasses.asdict(report), ensure_ascii=False)
