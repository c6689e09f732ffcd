# SPDX-License-Identifier: Apache-2.0
"""Objectives over local text files, through seqio."""

import gzip

import pytest

OBJECTIVES = (
  "span_corruption",
  "span_corruption_sentinel",
  "prefix_lm",
  "bart_text_infilling",
  "bart_token_deletion",
)
TEXT = "A heron stood.\nIt slept.\n\n\nThe tide turned, and boats left.\n"


@pytest.fixture(scope="module")
def corpus(registry, tmp_path_factory):
  """Registers test_corpus_... over two files."""
  from prompt_tuning.tasks import pretraining

  folder = tmp_path_factory.mktemp("corpus")
  (folder / "a.txt").write_text(TEXT)
  (folder / "b.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
  pattern = str(folder / "*.txt*")
  pretraining.register_text_files("test_corpus", {"train": pattern})
  yield folder
  for objective in OBJECTIVES:
    registry.remove(f"test_corpus_{objective}")


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_text_is_read_with_any_objective(registry, objective):
  from prompt_tuning.tasks import vocabularies

  from prompt_tuning import data

  ours = vocabularies.english_8k()
  task = data.with_vocabulary(registry.get(f"test_corpus_{objective}"), ours)
  rows = list(task.get_dataset({"inputs": 32, "targets": 32}, "train", seed=0))
  assert rows
  for row in rows:
    assert set(row) == {"inputs", "targets"}
    targets = row["targets"].numpy().tolist()
    assert 1 < len(targets) <= 32
    assert targets[-1] == row["inputs"].numpy()[-1] == 1
    num_first = {"span_corruption": 1, "span_corruption_sentinel": 2}
    assert targets.count(8191) == num_first.get(objective, 0)


def test_a_glob_must_match():
  from prompt_tuning.tasks import pretraining

  with pytest.raises(ValueError, match=r"train: '/nowhere/\*' matches no file"):
    pretraining.register_text_files("nowhere", {"train": "/nowhere/*"})


def test_c4_has_every_objective(registry):
  assert {f"c4_v220_{objective}" for objective in OBJECTIVES} <= set(
    registry.names()
  )
