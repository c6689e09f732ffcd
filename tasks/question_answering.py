# SPDX-License-Identifier: Apache-2.0
"""SQuAD 1.1, the MRQA 2019 sets, and transfer from the one to the others.

The out-of-domain sets have no training split; what TFDS calls their test split
is `validation` here (Lester et al., 2021, sec. 5).
"""

from prompt_tuning.tasks import preprocessors, registration, scores
import seqio

IN_DOMAIN = (
  "hotpot_qa",
  "natural_questions",
  "news_qa",
  "search_qa",
  "trivia_qa",
)
OUT_OF_DOMAIN = (
  "bio_asq",
  "drop",
  "duo_rc",
  "race",
  "relation_extraction",
  "textbook_qa",
)
_SQUAD = "squad_v010_allanswers_examples"


def _register() -> None:
  registration.add(
    _SQUAD,
    seqio.TfdsDataSource("squad/v1.1:3.0.0"),
    [preprocessors.question_answering],
    scoring=scores.SCORINGS["squad"],
  )
  for config in IN_DOMAIN + OUT_OF_DOMAIN:
    splits = None if config in IN_DOMAIN else {"validation": "test"}
    registration.add(
      f"mrqa_{config}_v100_examples",
      seqio.TfdsDataSource(f"mrqa/{config}:1.0.0", splits=splits),
      [preprocessors.question_answering],
      scoring=scores.SCORINGS[f"mrqa_{config}"],
    )


def _register_mixtures() -> None:
  transfers = {config: (config,) for config in OUT_OF_DOMAIN}
  for name, configs in (transfers | {"mrqa": OUT_OF_DOMAIN}).items():
    tasks = [_SQUAD, *(f"mrqa_{config}_v100_examples" for config in configs)]
    registration.add_mixture(
      f"squad_to_{name}_examples", dict.fromkeys(tasks, 1.0)
    )


_register()
_register_mixtures()
