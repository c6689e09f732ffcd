# SPDX-License-Identifier: Apache-2.0
"""The data sets that `prepare` can write, and where their rows may be."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import functools
import pathlib

from prompt_tuning.tasks import archives, rows


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set that can be prepared.

  Attributes:
    tfds_names: what it is in TFDS, "name/config:version", for each version.
    layouts: where its rows may be, in order of preference.
  """

  tfds_names: tuple[str, ...]
  layouts: tuple[archives.Layout, ...]


def _read_rows(path: pathlib.Path, split: str) -> Iterator[rows.Located]:
  del split
  return rows.read_jsonl(path)


def _read_renamed(
  path: pathlib.Path, split: str, *, names: Mapping[str, str]
) -> Iterator[rows.Located]:
  """Renames features; `names` is old -> new."""
  del split
  for located in rows.read_jsonl(path):
    row = {names.get(name, name): value for name, value in located.row.items()}
    yield rows.Located(located.where, row)


def _read_mrqa(path: pathlib.Path, split: str) -> Iterator[rows.Located]:
  """Turns rows like SQuAD's into MRQA's, whose texts come without tokens."""
  del split
  for located in rows.read_jsonl(path):
    answers = rows.column(located, "answers")
    spans = zip(answers["text"], answers["answer_start"], strict=True)
    row = {
      "subset": path.parent.name,
      "qid": rows.column(located, "id"),
      "context": rows.column(located, "context"),
      "question": rows.column(located, "question"),
      "answers": answers["text"],
      "context_tokens": [],
      "question_tokens": [],
      "detected_answers": [
        {
          "text": text,
          "char_spans": [{"start": start, "end": start + len(text) - 1}],
          "token_spans": [],
        }
        for text, start in spans
      ],
    }
    yield rows.Located(located.where, row)


def _local(
  folder: str,
  read_fn: archives.ReadFn = _read_rows,
  *,
  splits: Iterable[str] = ("train", "validation", "test"),
) -> archives.Layout:
  return archives.Layout(
    folder, {split: (f"{split}.jsonl",) for split in splits}, read_fn
  )


def _super_glue(config: str) -> DataSet:
  folder = config.replace(".", "_")
  return DataSet(
    (f"super_glue/{config}:1.0.2",),
    (_local(folder), archives.SUPER_GLUE[config]),
  )


def _glue(config: str, *more: archives.Layout, folder: str = "") -> DataSet:
  archive = archives.GLUE[config]
  return DataSet(
    (f"glue/{config}:1.0.0", f"glue/{config}:2.0.0"),
    (_local(folder or config, splits=archive.files), archive, *more),
  )


def _mrqa(config: str, layout: archives.Layout) -> DataSet:
  return DataSet((f"mrqa/{config}:1.0.0",), (layout,))


def _mrqa_out_of_domain(config: str, folder: str) -> DataSet:
  # TFDS calls all of such a set "test". Our rows come in two parts.
  files = {"test": ("train.jsonl", "validation.jsonl")}
  return _mrqa(config, archives.Layout(folder, files, _read_mrqa))


# GLUE's RTE holds the rows of SuperGLUE's under other names.
_RTE_RENAMED = _local(
  "rte",
  functools.partial(
    _read_renamed, names={"premise": "sentence1", "hypothesis": "sentence2"}
  ),
)

_MRQA_IN_DOMAIN = (
  "hotpot_qa",
  "natural_questions",
  "news_qa",
  "search_qa",
  "trivia_qa",
)
_MRQA_OUT_OF_DOMAIN = (
  "bio_asq",
  "drop",
  "race",
  "relation_extraction",
  "textbook_qa",
)

DATA_SETS: Mapping[str, DataSet] = {
  **{
    config.replace(".", "_"): _super_glue(config)
    for config in archives.SUPER_GLUE
  },
  **{config: _glue(config) for config in archives.GLUE if config != "rte"},
  "glue_rte": _glue("rte", _RTE_RENAMED, folder="glue_rte"),
  "squad": DataSet(("squad/v1.1:3.0.0",), (_local("squad"),)),
  "dpr": DataSet(("definite_pronoun_resolution:1.1.0",), (_local("dpr"),)),
  **{
    f"mrqa_{config}": _mrqa(config, _local(f"mrqa_{config}", _read_mrqa))
    for config in _MRQA_IN_DOMAIN
  },
  **{
    f"mrqa_{config}": _mrqa_out_of_domain(config, f"mrqa_{config}")
    for config in _MRQA_OUT_OF_DOMAIN
  },
  "mrqa_duorc": _mrqa_out_of_domain("duo_rc", "mrqa_duorc"),
}

# Rows of the published splits, to tell when a data set is not complete.
PUBLISHED_ROWS: Mapping[str, Mapping[str, int]] = {
  "super_glue/boolq": {"train": 9427, "validation": 3270, "test": 3245},
  "super_glue/cb": {"train": 250, "validation": 56, "test": 250},
  "super_glue/copa": {"train": 400, "validation": 100, "test": 500},
  "super_glue/multirc": {"train": 27243, "validation": 4848, "test": 9693},
  "super_glue/record": {"train": 100730, "validation": 10000, "test": 10000},
  "super_glue/rte": {"train": 2490, "validation": 277, "test": 3000},
  "super_glue/wic": {"train": 5428, "validation": 638, "test": 1400},
  "super_glue/wsc": {"train": 554, "validation": 104, "test": 146},
  "super_glue/wsc.fixed": {"train": 554, "validation": 104, "test": 146},
  "glue/mrpc": {"train": 3668, "validation": 408, "test": 1725},
  "glue/qqp": {"train": 363846, "validation": 40430, "test": 390965},
  "glue/rte": {"train": 2490, "validation": 277, "test": 3000},
  "glue/sst2": {"train": 67349, "validation": 872, "test": 1821},
  "definite_pronoun_resolution": {"train": 1322, "test": 564},
  "squad/v1.1": {"train": 87599, "validation": 10570},
  "mrqa/duo_rc": {"test": 1501},
  "mrqa/race": {"test": 674},
  "mrqa/relation_extraction": {"test": 2948},
}
