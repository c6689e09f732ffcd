# SPDX-License-Identifier: Apache-2.0
"""SuperGLUE (Wang et al., 2019) 1.0.2, with Definite Pronoun Resolution.

WSC is generation of the referent: it trains on rows with the right one, and is
scored on all (`..._simple_train`, `..._simple_eval`).
"""

import functools

from prompt_tuning.tasks import labels, preprocessors, registration, scores
import seqio

# TFDS config -> features that are read.
FEATURES = {
  "axb": ("hypothesis", "premise"),
  "axg": ("hypothesis", "premise"),
  "boolq": ("passage", "question"),
  "cb": ("hypothesis", "premise"),
  "copa": ("choice1", "choice2", "premise", "question"),
  "multirc": ("question", "answer", "paragraph"),
  "rte": ("hypothesis", "premise"),
  "wic": ("sentence1", "sentence2", "word"),
}

# The diagnostic sets are read by a model of RTE.
_NAMED_LIKE = {"axb": "rte", "axg": "rte"}

_TASK_INDICES = {
  "boolq": 0,
  "cb": 1,
  "copa": 2,
  "multirc": 3,
  "record": 4,
  "rte": 5,
  "wic": 6,
  "wsc": 7,
}

# Rows of the training splits; of ReCoRD one a query and answer.
_TRAINING_ROWS = {
  "boolq": 9427,
  "cb": 250,
  "copa": 400,
  "multirc": 27243,
  "record": 138854,
  "rte": 2490,
  "wic": 5428,
}
_WSC_TRAINING_ROWS = 259
_DPR_TRAINING_ROWS = 1322


def _source(
  config: str, splits: tuple[str, ...] | None = None
) -> seqio.TfdsDataSource:
  return seqio.TfdsDataSource(f"super_glue/{config}:1.0.2", splits=splits)


def _register_classification() -> None:
  for config, features in FEATURES.items():
    named_like = _NAMED_LIKE.get(config, config)
    to_text = [
      functools.partial(
        preprocessors.classification,
        name=named_like,
        features=features,
        labels=labels.LABELS[f"super_glue_{config}"],
      )
    ]
    if config == "axb":
      names = {"premise": "sentence1", "hypothesis": "sentence2"}
      to_text.insert(0, functools.partial(preprocessors.rename, names=names))
    registration.add_variants(
      f"super_glue_{config}_v102",
      _source(config, ("test",) if config in _NAMED_LIKE else None),
      to_text,
      scoring=scores.SCORINGS[f"super_glue_{config}"],
      task_index=_TASK_INDICES[named_like],
    )


def _register_generation() -> None:
  registration.add_variants(
    "super_glue_record_v102",
    _source("record"),
    [preprocessors.record],
    scoring=scores.SCORINGS["super_glue_record"],
    task_index=_TASK_INDICES["record"],
  )
  registration.add_variants(
    "super_glue_wsc_v102_simple_train",
    _source("wsc.fixed", ("train",)),
    [preprocessors.wsc, preprocessors.only_true_referents],
    scoring=None,
    task_index=_TASK_INDICES["wsc"],
  )
  registration.add_variants(
    "super_glue_wsc_v102_simple_eval",
    _source("wsc.fixed", ("validation", "test")),
    [preprocessors.wsc],
    scoring=scores.SCORINGS["super_glue_wsc"],
    task_index=_TASK_INDICES["wsc"],
  )
  registration.add_variants(
    "dpr_v001_simple",
    seqio.TfdsDataSource("definite_pronoun_resolution:1.1.0"),
    [preprocessors.pronoun_resolution],
    # In the original the post-processor of `_examples` is a tuple, which cannot
    # be called, and task_index_dpr has the metrics of another task.
    scoring=scores.SCORINGS["dpr"],
    task_index=_TASK_INDICES["wsc"],
  )


def _register_wsc_mixtures() -> None:
  for variant in registration.VARIANTS:
    for suffix in registration.SUFFIXES:
      wsc = f"{variant}super_glue_wsc_v102_simple"
      # As in the original, the plain mixture logs no training texts.
      train_suffix = suffix if variant else ""
      registration.add_mixture(
        f"{variant}super_glue_wsc_and_dev_v102_simple{suffix}",
        {f"{wsc}_train{train_suffix}": 1.0, f"{wsc}_eval{suffix}": 1.0},
      )


def _register_multi_task_mixtures() -> None:
  """Registers all tasks by their number of rows, and all alike."""
  for variant in registration.VARIANTS:
    wsc = f"{variant}super_glue_wsc_v102_simple"
    rates = {
      f"{variant}super_glue_{config}_v102_examples": float(num_rows)
      for config, num_rows in _TRAINING_ROWS.items()
    }
    rates[f"{wsc}_train"] = _WSC_TRAINING_ROWS
    dpr = {f"{variant}dpr_v001_simple_examples": _DPR_TRAINING_ROWS}
    # Rate 0: there to be evaluated.
    only_evaluated = {f"{wsc}_eval_examples": 0.0}
    for name, group in (
      ("super_glue", rates),
      ("super_glue_with_dpr", rates | dpr),
    ):
      stem = f"{variant}{name}_v102_examples"
      registration.add_mixture(f"{stem}_proportional", group | only_evaluated)
      equal = dict.fromkeys(group, 1.0)
      registration.add_mixture(f"{stem}_equal", equal | only_evaluated)


_register_classification()
_register_generation()
_register_wsc_mixtures()
_register_multi_task_mixtures()
