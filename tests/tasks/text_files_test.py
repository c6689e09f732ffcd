# SPDX-License-Identifier: Apache-2.0
"""Plain text as a corpus of documents."""

import lzma

import numpy as np
import pytest

TEXT = "A heron stood.\nIt slept.\n\n\nThe tide turned, and boats left.\n"


def test_documents_end_at_empty_lines(tmp_path):
  from prompt_tuning.tasks import text_files

  path = tmp_path / "a.txt.xz"
  path.write_bytes(lzma.compress(TEXT.encode()))
  assert list(text_files.documents(str(path))) == [
    "A heron stood.\nIt slept.",
    "The tide turned, and boats left.",
  ]


def test_text_must_be_utf_8(tmp_path):
  from prompt_tuning.tasks import text_files

  path = tmp_path / "a.txt"
  path.write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match=r"a\.txt is not UTF-8: .*0xe9"):
    list(text_files.documents(str(path)))


def test_a_corpus_has_a_document_a_row(tmp_path):
  from prompt_tuning.tasks import text_files, vocabularies

  (tmp_path / "a.txt").write_text(TEXT)
  (tmp_path / "b.txt").write_text("One more.\n")
  ours = vocabularies.english_8k()
  found = text_files.from_text_files(
    name="herons",
    train_files=str(tmp_path / "*.txt"),
    validation_files=str(tmp_path / "b.txt"),
    vocabulary=ours,
  )
  ((train, rate),) = found.train_sources
  assert rate == 1.0
  assert train.inputs.lengths.tolist() == [0, 0, 0]
  texts = [
    found.vocabulary.decode(train.targets.padded(np.array([i]), 64)[0].tolist())
    for i in range(3)
  ]
  assert texts[1].startswith("The tide turned, and boats left.")
  assert found.eval_tasks[0].examples.targets.num_rows == 1


def test_a_glob_of_text_files_must_match():
  from prompt_tuning.tasks import text_files

  with pytest.raises(
    ValueError, match=r"TRAIN_FILES: '/nowhere/\*' matches no"
  ):
    text_files.find("/nowhere/*", "TRAIN_FILES")
