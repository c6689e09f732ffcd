# SPDX-License-Identifier: Apache-2.0
"""The files of the official GLUE and SuperGLUE archives, as rows of TFDS.

A layout says which files hold the splits of a data set and how they are read;
rows come out with the features and label numbers of `tensorflow_datasets`.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import pathlib
from typing import Any

from prompt_tuning.tasks import rows

Row = dict[str, Any]
ReadFn = Callable[[pathlib.Path, str], Iterator[rows.Located]]
_HIDDEN = -1  # A label that is not public.


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the rows of a data set are.

  Attributes:
    folder: folder below the one with all data sets.
    files: split -> names of its files.
    read_fn: (path, split) -> rows.
  """

  folder: str
  files: Mapping[str, tuple[str, ...]]
  read_fn: ReadFn


def _label(located: rows.Located, split: str, name: str = "label") -> Any:
  if split.startswith("test") and name not in located.row:
    return _HIDDEN
  return rows.column(located, name)


# SuperGLUE: one JSON object a line.


def _read_jsonl(
  path: pathlib.Path,
  split: str,
  *,
  convert_fn: Callable[[rows.Located, str], Iterator[Row]],
) -> Iterator[rows.Located]:
  for located in rows.read_jsonl(path):
    try:
      for row in convert_fn(located, split):
        yield rows.Located(located.where, row)
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"{located.where}: not laid out as in the SuperGLUE archive: {error!r}"
      ) from None


def _flat(located: rows.Located, split: str) -> Iterator[Row]:
  yield dict(located.row) | {"label": _label(located, split)}


def _wsc(located: rows.Located, split: str) -> Iterator[Row]:
  for row in _flat(located, split):
    yield row | row["target"]


def _wsc_fixed(located: rows.Located, split: str) -> Iterator[Row]:
  for row in _wsc(located, split):
    yield fix_wsc_spans(row)


def _multirc(located: rows.Located, split: str) -> Iterator[Row]:
  row = located.row
  for question in row["passage"]["questions"]:
    for answer in question["answers"]:
      yield {
        "paragraph": row["passage"]["text"],
        "question": question["question"],
        "answer": answer["text"],
        "label": _label(rows.Located(located.where, answer), split),
        "idx": {
          "paragraph": row["idx"],
          "question": question["idx"],
          "answer": answer["idx"],
        },
      }


def _record(located: rows.Located, split: str) -> Iterator[Row]:
  del split
  row = located.row
  text = row["passage"]["text"]
  entities = {
    text[span["start"] : span["end"] + 1] for span in row["passage"]["entities"]
  }
  for query in row["qas"]:
    answers = {answer["text"] for answer in query.get("answers", ())}
    yield {
      "passage": text,
      "query": query["query"],
      "entities": sorted(entities),
      "answers": sorted(answers),
      "idx": {"passage": row["idx"], "query": query["idx"]},
    }


def fix_wsc_spans(row: Row) -> Row:
  """Repairs spans that are no part of the text, as `wsc.fixed` of TFDS does.

  The first letter takes the case of the text's word at the span; full stops at
  the end go, and line breaks become spaces. Two spans of several persons cannot
  be repaired and stay.
  """
  fixed = dict(row)
  words = row["text"].split()
  for span in ("span1", "span2"):
    text = row[f"{span}_text"]
    if text in row["text"] or text.startswith(("Kamenev and", "Kamenev, ")):
      continue
    if "theyscold" in text:
      fixed["span2_index"] = 10
    is_lower = words[row[f"{span}_index"]][0].islower()
    first = text[0].lower() if is_lower else text[0].upper()
    fixed[f"{span}_text"] = (first + text[1:]).rstrip(".").replace("\n", " ")
  return fixed


def _super_glue(
  folder: str, convert_fn: Callable[[rows.Located, str], Iterator[Row]] = _flat
) -> Layout:
  return Layout(
    folder,
    {
      "train": ("train.jsonl",),
      "validation": ("val.jsonl",),
      "test": ("test.jsonl",),
    },
    functools.partial(_read_jsonl, convert_fn=convert_fn),
  )


def _diagnostic(folder: str) -> Layout:
  read_fn = functools.partial(_read_jsonl, convert_fn=_flat)
  return Layout(folder, {"test": (f"{folder}.jsonl",)}, read_fn)


SUPER_GLUE: Mapping[str, Layout] = {
  "axb": _diagnostic("AX-b"),
  "axg": _diagnostic("AX-g"),
  "boolq": _super_glue("BoolQ"),
  "cb": _super_glue("CB"),
  "copa": _super_glue("COPA"),
  "multirc": _super_glue("MultiRC", _multirc),
  "record": _super_glue("ReCoRD", _record),
  "rte": _super_glue("RTE"),
  "wic": _super_glue("WiC"),
  "wsc": _super_glue("WSC", _wsc),
  "wsc.fixed": _super_glue("WSC", _wsc_fixed),
}

# GLUE: tab-separated, mostly with a header.


def _read_tsv(
  path: pathlib.Path,
  split: str,
  *,
  features: Mapping[str, str],
  label: str = "label",
  columns: tuple[str, ...] = (),
  skip_short: bool = False,
) -> Iterator[rows.Located]:
  lines = rows.read_tsv(path, columns=columns, skip_short=skip_short)
  for located in lines:
    row = {new: rows.column(located, old) for new, old in features.items()}
    row["label"] = _label(located, split, label)
    yield rows.Located(located.where, row)


def _read_cola(path: pathlib.Path, split: str) -> Iterator[rows.Located]:
  # Only the test file has a header.
  columns = ("source", "label", "mark", "sentence") if split != "test" else ()
  return _read_tsv(
    path, split, features={"sentence": "sentence"}, columns=columns
  )


def _read_mrpc(path: pathlib.Path, split: str) -> Iterator[rows.Located]:
  """Cuts the training file in two by the pairs of dev_ids.tsv."""
  dev_ids_path = path.parent / "dev_ids.tsv"
  dev_ids = set()
  if split != "test":
    if not dev_ids_path.is_file():
      raise ValueError(f"{dev_ids_path} is missing: it names MRPC's validation")
    dev_ids = {
      tuple(line.split("\t")) for _, line in rows.read_lines(dev_ids_path)
    }
  for number, located in enumerate(rows.read_tsv(path)):
    pair = (rows.column(located, "#1 ID"), rows.column(located, "#2 ID"))
    if split != "test" and (pair in dev_ids) != (split == "validation"):
      continue
    row = {
      "sentence1": rows.column(located, "#1 String"),
      "sentence2": rows.column(located, "#2 String"),
      "label": rows.column(located, "Quality"),
      "idx": number,
    }
    yield rows.Located(located.where, row)


_SPLITS = {
  "train": ("train.tsv",),
  "validation": ("dev.tsv",),
  "test": ("test.tsv",),
}
_NLI = {"premise": "sentence1", "hypothesis": "sentence2"}
_PAIR = {"sentence1": "sentence1", "sentence2": "sentence2"}


def _glue(folder: str, features: Mapping[str, str], **kwargs: Any) -> Layout:
  read_fn = functools.partial(_read_tsv, features=features, **kwargs)
  return Layout(folder, _SPLITS, read_fn)


def _mnli(files: Mapping[str, str]) -> Layout:
  return Layout(
    "MNLI",
    {split: (f"{name}.tsv",) for split, name in files.items()},
    functools.partial(_read_tsv, features=_NLI, label="gold_label"),
  )


GLUE: Mapping[str, Layout] = {
  "ax": Layout(
    "diagnostic",
    {"test": ("diagnostic.tsv",)},
    functools.partial(_read_tsv, features=_NLI),
  ),
  "cola": Layout("CoLA", _SPLITS, _read_cola),
  "mnli": _mnli(
    {
      "train": "train",
      "validation_matched": "dev_matched",
      "validation_mismatched": "dev_mismatched",
      "test_matched": "test_matched",
      "test_mismatched": "test_mismatched",
    }
  ),
  "mnli_matched": _mnli({"validation": "dev_matched", "test": "test_matched"}),
  "mnli_mismatched": _mnli(
    {"validation": "dev_mismatched", "test": "test_mismatched"}
  ),
  "mrpc": Layout(
    "MRPC",
    {
      "train": ("msr_paraphrase_train.txt",),
      "validation": ("msr_paraphrase_train.txt",),
      "test": ("msr_paraphrase_test.txt",),
    },
    _read_mrpc,
  ),
  "qnli": _glue("QNLI", {"question": "question", "sentence": "sentence"}),
  # The published training file has three broken rows.
  "qqp": _glue(
    "QQP",
    {"question1": "question1", "question2": "question2"},
    label="is_duplicate",
    skip_short=True,
  ),
  "rte": _glue("RTE", _PAIR),
  "sst2": _glue("SST-2", {"sentence": "sentence"}),
  "stsb": _glue("STS-B", _PAIR, label="score"),
  "wnli": _glue("WNLI", _PAIR),
}
