# SPDX-License-Identifier: Apache-2.0
"""Plain text files as a corpus of documents."""

from collections.abc import Callable, Iterator, Sequence
import glob
import gzip
import lzma
import pathlib

import numpy as np
import seqio
import tqdm

from prompt_tuning import batching, corpus, data, task_data
from prompt_tuning import vocabulary as vocabulary_lib


def documents(path: str) -> Iterator[str]:
  """Yields the documents of a text file, their paragraphs on lines.

  Args:
    path: UTF-8, plain, .gz or .xz, one paragraph a line, with an empty line
      between documents.

  Raises:
    ValueError: if the file is not UTF-8.
  """
  open_fns: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
  open_fn = open_fns.get(pathlib.Path(path).suffix, open)
  paragraphs: list[str] = []
  try:
    with open_fn(path, "rt", encoding="utf-8") as lines:
      for line in lines:
        if line.strip():
          paragraphs.append(line.strip())
        elif paragraphs:
          yield "\n".join(paragraphs)
          paragraphs = []
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error}") from None
  if paragraphs:
    yield "\n".join(paragraphs)


def find(pattern: str, split: str) -> list[str]:
  """Returns the files that a glob matches, in order.

  Raises:
    ValueError: if there is none.
  """
  paths = sorted(glob.glob(pattern))
  if not paths:
    raise ValueError(f"{split}: {pattern!r} matches no file")
  return paths


def from_text_files(
  *,
  name: str,
  train_files: str,
  validation_files: str,
  vocabulary: seqio.Vocabulary,
) -> task_data.TaskData:
  """Reads and tokenises text files, a document a row, for `corpus`.

  Args:
    name: what the corpus is called in the metrics.
    train_files: a glob; see `documents` for the files.
    validation_files: another one.
    vocabulary: to tokenise with.

  Raises:
    ValueError: if a glob matches no file, or a file is not UTF-8.
  """
  tokenizer = data.without_tensorflow(vocabulary)
  read = lambda pattern, split: _examples(find(pattern, split), tokenizer)
  validation = read(validation_files, "VALIDATION_FILES")
  # A cache keeps the text of targets, which a loss has no use for.
  rows = [{"targets_pretokenized": b""}] * validation.targets.num_rows
  return task_data.TaskData(
    name,
    [name],
    [(read(train_files, "TRAIN_FILES"), 1.0)],
    [task_data.EvalTask(name, validation, rows, task_data.unscored(name))],
    corpus.UNCUT,
    tokenizer,
  )


def _examples(
  paths: Sequence[str], vocabulary: vocabulary_lib.Vocabulary
) -> batching.Examples:
  """Tokenises all documents of some files; the inputs are empty."""
  rows = [
    np.array(vocabulary.encode(document), np.int32)
    for path in paths
    for document in tqdm.tqdm(
      documents(path), desc=path, unit="document", disable=None, leave=False
    )
  ]
  empty = [np.zeros(0, np.int32)] * len(rows)
  return batching.Examples(
    batching.Ragged.from_rows(empty), batching.Ragged.from_rows(rows)
  )
