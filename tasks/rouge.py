# SPDX-License-Identifier: Apache-2.0
"""ROUGE-1, ROUGE-2 and summary-level ROUGE-L (Lin, 2004), F-measures.

Words are runs of a-z and 0-9 after lowering, without stemming. Values are plain
means over the rows; the T5 library reports the median of bootstrap means, which
differs from them by chance alone.
"""

from collections import Counter
from collections.abc import Sequence
import re

import numpy as np


def rouge(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Scores generated summaries, in percent."""
  pairs = list(zip(targets, predictions, strict=True))
  return {
    "rouge1": 100 * float(np.mean([_ngram_f1(*pair, n=1) for pair in pairs])),
    "rouge2": 100 * float(np.mean([_ngram_f1(*pair, n=2) for pair in pairs])),
    "rougeLsum": 100 * float(np.mean([_lcs_f1(*pair) for pair in pairs])),
  }


def _words(text: str) -> list[str]:
  return re.findall(r"[a-z0-9]+", text.lower())


def _f1(common: int, num_target: int, num_prediction: int) -> float:
  return 2 * common / max(1, num_target + num_prediction)


def _ngram_f1(target: str, prediction: str, *, n: int) -> float:
  wanted, found = (
    Counter(zip(*(words[i:] for i in range(n)), strict=False))
    for words in (_words(target), _words(prediction))
  )
  return _f1((wanted & found).total(), wanted.total(), found.total())


def _sentences(text: str) -> list[list[str]]:
  """Splits at line breaks, and behind a full stop that stands alone."""
  lines = text.replace(" . ", " .\n").split("\n")
  return [words for words in map(_words, lines) if words]


def _lcs_f1(target: str, prediction: str) -> float:
  """Matches each target sentence with the union of its LCS with all others.

  Each word counts at most as often as it occurs on either side.
  """
  wanted, found = _sentences(target), _sentences(prediction)
  left = Counter(word for words in found for word in words)
  num_found, common = left.total(), 0
  for words in wanted:
    union = sorted({i for other in found for i in _lcs(words, other)})
    for i in union:
      if left[words[i]] > 0:
        left[words[i]] -= 1
        common += 1
  return _f1(common, sum(map(len, wanted)), num_found)


def _lcs(a: Sequence[str], b: Sequence[str]) -> list[int]:
  """Returns positions in `a` of one longest common subsequence with `b`."""
  lengths = np.zeros((len(a) + 1, len(b) + 1), np.int32)
  for i, word in enumerate(a):
    for j, other in enumerate(b):
      lengths[i + 1, j + 1] = (
        lengths[i, j] + 1
        if word == other
        else max(lengths[i, j + 1], lengths[i + 1, j])
      )
  positions, i, j = [], len(a), len(b)
  while i and j:
    if a[i - 1] == b[j - 1]:
      i, j = i - 1, j - 1
      positions.append(i)
    elif lengths[i - 1, j] >= lengths[i, j - 1]:
      i -= 1
    else:
      j -= 1
  return positions
