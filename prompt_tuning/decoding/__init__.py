# SPDX-License-Identifier: Apache-2.0
"""Generation from a T5 over a key-value cache, and scores of given targets."""

from prompt_tuning.decoding.beams import (
  NO_HYPOTHESIS,
  BeamConfig,
  beam,
  beam_search,
)
from prompt_tuning.decoding.sampling import (
  GREEDY,
  SCORED_GREEDY,
  SamplingConfig,
  generate,
  greedy,
  sample,
)
from prompt_tuning.decoding.scoring import (
  TargetScores,
  score_labels,
  score_targets,
  target_scores,
)
from prompt_tuning.decoding.steps import EOS, Start

__all__ = [
  "EOS",
  "GREEDY",
  "NO_HYPOTHESIS",
  "SCORED_GREEDY",
  "BeamConfig",
  "SamplingConfig",
  "Start",
  "TargetScores",
  "beam",
  "beam_search",
  "generate",
  "greedy",
  "sample",
  "score_labels",
  "score_targets",
  "target_scores",
]
