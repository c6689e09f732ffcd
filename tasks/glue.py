# SPDX-License-Identifier: Apache-2.0
"""GLUE (Wang et al., 2018), and transfer between its two paraphrase tasks.

Version v002 reads `tensorflow_datasets` 1.0.0 (the paper's), v200 reads 2.0.0.
"""

import functools

from prompt_tuning.tasks import labels, preprocessors, registration, scores
import seqio

VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}

# TFDS config -> features that are read.
FEATURES = {
  "ax": ("hypothesis", "premise"),
  "cola": ("sentence",),
  "mnli": ("hypothesis", "premise"),
  "mnli_matched": ("hypothesis", "premise"),
  "mnli_mismatched": ("hypothesis", "premise"),
  "mrpc": ("sentence1", "sentence2"),
  "qnli": ("question", "sentence"),
  "qqp": ("question1", "question2"),
  "rte": ("sentence1", "sentence2"),
  "sst2": ("sentence",),
  "wnli": ("sentence1", "sentence2"),
}

# Configs that are other splits of a task, and named like it in the inputs.
_NAMED_LIKE = {
  "ax": "mnli",
  "mnli_matched": "mnli",
  "mnli_mismatched": "mnli",
}

_TASK_INDICES = {
  name: index
  for index, name in enumerate(
    ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
  )
}
_SPLITS = {"ax": ("test",)}
_TRANSFERS = (("qqp", "mrpc"), ("mrpc", "qqp"))


def _source(
  config: str, version: str, splits: tuple[str, ...] | None
) -> seqio.TfdsDataSource:
  return seqio.TfdsDataSource(f"glue/{config}:{version}", splits=splits)


def _to_text(config: str) -> functools.partial:
  if config == "stsb":
    return functools.partial(preprocessors.similarity, name=config)
  return functools.partial(
    preprocessors.classification,
    name=_NAMED_LIKE.get(config, config),
    features=FEATURES[config],
    labels=labels.LABELS[f"glue_{config}"],
  )


def _register() -> None:
  for tag, version in VERSIONS.items():
    for config in (*FEATURES, "stsb"):
      registration.add_variants(
        f"glue_{config}_{tag}",
        _source(config, version, _SPLITS.get(config)),
        [_to_text(config)],
        scoring=scores.SCORINGS[f"glue_{config}"],
        task_index=_TASK_INDICES[_NAMED_LIKE.get(config, config)],
      )


def _register_transfer() -> None:
  """Registers the validation rows of one task, answered in another's labels.

  There is no training split: its targets would be in the wrong labels.
  """
  for trained, evaluated in _TRANSFERS:
    registration.add_variants(
      f"glue_{evaluated}_from_{trained}_v002",
      _source(evaluated, VERSIONS["v002"], ("validation",)),
      [_to_text(evaluated)],
      scoring=scores.SCORINGS[f"glue_{evaluated}_from_{trained}"],
      task_index=_TASK_INDICES[evaluated],
    )


def _register_mixtures() -> None:
  for variant in registration.VARIANTS:
    for suffix in registration.SUFFIXES:
      for tag in VERSIONS:
        # All three are of the same variant. In the original, the mixtures of
        # the other variants hold the plain tasks, so the name is not removed.
        registration.add_mixture(
          f"{variant}glue_mnli_and_dev_{tag}{suffix}",
          {
            f"{variant}glue_{config}_{tag}{suffix}": 1.0
            for config in ("mnli", "mnli_matched", "mnli_mismatched")
          },
        )
      for trained, evaluated in _TRANSFERS:
        transfer = f"{variant}glue_{evaluated}_from_{trained}"
        registration.add_mixture(
          f"{transfer}_zeroshot_v002{suffix}",
          {
            f"{variant}glue_{trained}_v002": 1.0,
            f"{transfer}_v002{suffix}": 1.0,
          },
        )


_register()
_register_transfer()
_register_mixtures()
