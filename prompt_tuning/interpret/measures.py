# SPDX-License-Identifier: Apache-2.0
"""Measures of one prompt, and of two.

Those of Lester et al. (2021), sec. 7, which names no formulas, and the
similarities of tasks by Vu et al. (2022, SPoT).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from prompt_tuning.interpret import neighbours

# A row that began as an embedding is that embedding, but for rounding.
_SAME = 0.999


class Drift(NamedTuple):
  """How far each position is from where it began.

  Attributes:
    distance: Euclidean.
    relative: the same in units of the norm that it began with.
    cosine: between then and now.
  """

  distance: Float[np.ndarray, " P"]
  relative: Float[np.ndarray, " P"]
  cosine: Float[np.ndarray, " P"]


def norms(prompt: Float[np.ndarray, "P D"]) -> Float[np.ndarray, " P"]:
  """Returns the Euclidean norm of each position."""
  return np.linalg.norm(prompt, axis=1)


def drift(
  prompt: Float[np.ndarray, "P D"], initial: Float[np.ndarray, "P D"]
) -> Drift:
  """Compares each position with its initial value."""
  distance = norms(prompt - initial)
  start = np.maximum(norms(initial), np.finfo(np.float32).tiny)
  cosine = np.sum(neighbours.unit(prompt) * neighbours.unit(initial), axis=1)
  return Drift(distance, distance / start, cosine)


def cosines(
  a: Float[np.ndarray, "P D"], b: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "P N"]:
  """Returns the cosine of each row of `a` with each of `b`."""
  return neighbours.unit(a) @ neighbours.unit(b).T


def tightness(
  clusters: Float[np.ndarray, "N nearest D"],
) -> Float[np.ndarray, " N"]:
  """Returns the mean cosine between two different members of each cluster.

  A cluster is the embeddings of a position's neighbours. The paper calls them
  tight by their words; this says it of their vectors.
  """
  size = clusters.shape[1]
  units = np.stack([neighbours.unit(cluster) for cluster in clusters])
  # The squared norm of the sum holds each pair twice, and a one for each.
  squared = np.square(units.sum(axis=1)).sum(axis=1)
  return (squared - size) / (size * (size - 1))


def random_vectors(
  statistics: neighbours.Statistics, *, count: int, seed: int
) -> Float[np.ndarray, "{count} D"]:
  """Draws from a normal distribution as wide as the table, column by column.

  They are what a prompt would be that says nothing: the paper's "random vectors
  drawn from the embedding space" show no clusters.
  """
  rng = np.random.default_rng(seed)
  noise = rng.standard_normal((count, len(statistics.mean)))
  return (statistics.mean + statistics.std * noise).astype(np.float32)


def duplicates(nearest: Int[np.ndarray, " P"]) -> dict[int, list[int]]:
  """Groups the positions whose nearest token is the same one.

  Returns:
    token id -> its positions, two or more; the most frequent token first.
  """
  groups: dict[int, list[int]] = {}
  for position, token in enumerate(nearest.tolist()):
    groups.setdefault(token, []).append(position)
  shared = [item for item in groups.items() if len(item[1]) > 1]
  return dict(sorted(shared, key=lambda item: -len(item[1])))


def is_among_nearest(
  prompt: Float[np.ndarray, "P D"],
  vector: Float[np.ndarray, " D"],
  kth_cosine: Float[np.ndarray, " P"],
) -> Bool[np.ndarray, " P"]:
  """Tells where a vector is as near as the k-th neighbour, or nearer.

  A label of one token is then among the k nearest. A label of several, which
  begins as the mean of their embeddings, would be if it were a token.

  Args:
    prompt: the prompt.
    vector: the embedding of the label.
    kth_cosine: of each position with its k-th neighbour.
  """
  tolerance = 1e-5  # The same cosine, computed in another order.
  return cosines(prompt, vector[None])[:, 0] >= kth_cosine - tolerance


def is_same(
  prompt: Float[np.ndarray, "P D"], vector: Float[np.ndarray, " D"]
) -> Bool[np.ndarray, " P"]:
  """Tells which positions point where a vector does."""
  return cosines(prompt, vector[None])[:, 0] > _SAME


def average_token_similarity(
  a: Float[np.ndarray, "P D"], b: Float[np.ndarray, "N D"]
) -> float:
  """Returns the cosine of two prompts' mean positions (SPoT)."""
  return float(
    cosines(a.mean(0, keepdims=True), b.mean(0, keepdims=True))[0, 0]
  )


def per_token_similarity(
  a: Float[np.ndarray, "P D"], b: Float[np.ndarray, "N D"]
) -> float:
  """Returns the mean cosine of all pairs of positions (SPoT).

  Not 1 for a prompt with itself, unless all its positions point the same way.
  """
  return float(cosines(a, b).mean())


def similarities(
  prompts: Sequence[Float[np.ndarray, "_ D"]],
) -> Mapping[str, Float[np.ndarray, "N N"]]:
  """Compares each prompt with each, in both ways; lengths may differ."""
  measures = {
    "average_token": average_token_similarity,
    "per_token": per_token_similarity,
  }
  return {
    name: np.array([[measure(a, b) for b in prompts] for a in prompts])
    for name, measure in measures.items()
  }
