# SPDX-License-Identifier: Apache-2.0
"""The real data sets, where they lie beside the checkout: row counts."""

import os
import pathlib
import time

import numpy as np
import pytest

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there"),
]

# Task -> examples of each split, from the data sets' README.
COUNTS = {
  "super_glue_boolq_v102": (3643, 3270, 3245),
  "super_glue_cb_v102": (250, 56, 250),
  "super_glue_copa_v102": (400, 100, 500),
  "super_glue_multirc_v102": (27243, 4848, 9693),
  "super_glue_rte_v102": (2490, 277, 3000),
  "super_glue_wic_v102": (5428, 638, 1400),
  "super_glue_wsc_v102_simple_train": (259, None, None),
  "super_glue_wsc_v102_simple_eval": (None, 104, 146),
  "glue_mrpc_v002": (3668, 408, 1725),
  "glue_mrpc_from_qqp_v002": (None, 408, None),
  "glue_qqp_v200": (21732, 7600, None),
  "glue_qqp_from_mrpc_v002": (None, 7600, None),
  "glue_rte_v002": (2490, 277, 3000),
  "glue_rte_v200": (2490, 277, 3000),
  "glue_sst2_v200": (67349, 872, 1821),
  "squad_v010_allanswers_examples": (8149, 10570, None),
  "mrqa_duo_rc_v100_examples": (None, 253, None),
  "mrqa_race_v100_examples": (None, 255, None),
  "mrqa_relation_extraction_v100_examples": (None, 255, None),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """All real rows as TFDS data sets, made by one worker for all."""
  from prompt_tuning.tasks import prepare

  root = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    root = root.parent
  folder, done = root / "tfds", root / "tfds_is_made"
  try:
    folder.mkdir()
  except FileExistsError:
    deadline = time.monotonic() + 300
    while not done.exists():
      assert time.monotonic() < deadline, "another worker has not made it"
      time.sleep(0.5)
  else:
    list(prepare.prepare(DATA, folder))
    done.touch()
  return folder


@pytest.fixture
def texts(registry, data_dir, monkeypatch):
  """Runs a task over a real split up to its text."""
  import seqio

  monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(data_dir))

  def run(name, split):
    task = registry.get(name)
    dataset = task.source.get_dataset(split, shuffle=False)
    for preprocessor in task.preprocessors:
      if preprocessor is seqio.preprocessors.tokenize:
        return list(dataset.as_numpy_iterator())
      dataset = preprocessor(dataset)
    raise AssertionError(f"{name} makes no tokens")

  return run


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_becomes_an_example(registry, texts, name):
  splits = ("train", "validation", "test")
  counts = zip(splits, COUNTS[name], strict=True)
  wanted = {split: count for split, count in counts if count is not None}
  found = {}
  for split in registry.get(name).splits:
    rows = texts(name, split)
    found[split] = len(rows)
    assert all(row["targets"] for row in rows)
  assert found == wanted


def test_record_has_an_example_an_answer(registry, texts):
  for split in ("train", "validation"):
    found = texts("super_glue_record_v102", split)
    queries = {(row["idx/passage"], row["idx/query"]) for row in found}
    assert len(queries) == 32
    answers = {
      (row["idx/passage"], row["idx/query"]): len(row["answers"])
      for row in found
    }
    assert len(found) == sum(answers.values())


def test_the_repair_of_wsc_spans_is_that_of_tfds():
  from prompt_tuning.tasks import archives, rows

  num_changed = 0
  for split in ("train", "validation", "test"):
    pairs = zip(
      *(
        rows.read_jsonl(DATA / name / f"{split}.jsonl.gz")
        for name in ("wsc", "wsc_fixed")
      ),
      strict=True,
    )
    for raw, fixed in pairs:
      assert archives.fix_wsc_spans(dict(raw.row)) == fixed.row
      num_changed += raw.row != fixed.row
  assert num_changed == 88 + 8 + 5


def test_every_pronoun_of_wsc_is_marked(texts):
  for split in ("validation", "test"):
    for row in texts("super_glue_wsc_v102_simple_eval", split):
      assert row["inputs"].count(b"*") == 2
  train = texts("super_glue_wsc_v102_simple_train", "train")
  assert all(row["inputs"].count(b"*") == 2 for row in train)


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("super_glue", "taskless_super_glue_cb_v102_examples"),
    ("super_glue", "super_glue_multirc_v102_examples"),
    ("super_glue", "super_glue_record_v102"),
    ("super_glue", "sentinel_super_glue_rte_v102_examples"),
    ("super_glue", "super_glue_wsc_and_dev_v102_simple"),
    ("glue", "glue_qqp_from_mrpc_zeroshot_v002_examples"),
    ("question_answering", "squad_to_duo_rc_examples"),
  ],
)
def test_a_cache_scores_as_seqio_does(data_dir, tmp_path, module, name):
  from prompt_tuning.tasks import scores, vocabularies

  from prompt_tuning import cache, data, task_metrics

  arguments = {
    "mixture_or_task_name": name,
    "feature_lengths": {"inputs": 64, "targets": 16},
  }
  ours = data.from_seqio(
    **arguments,
    mixture_or_task_module=f"prompt_tuning.tasks.{module}",
    vocabulary=vocabularies.english_8k(),
    tfds_data_dir=str(data_dir),
    scoring_fn=scores.find_scoring,
  )
  cache.write(str(tmp_path / "cache"), ours)
  cached = cache.from_cache(
    **arguments, cache_dir=str(tmp_path / "cache"), scoring_fn=scores.scoring
  )
  pairs = zip(ours.train_sources, cached.train_sources, strict=True)
  for (first, rate), (second, cached_rate) in pairs:
    assert rate == cached_rate
    for a, b in zip(first, second, strict=True):
      np.testing.assert_array_equal(a.tokens, b.tokens)
      np.testing.assert_array_equal(a.offsets, b.offsets)
  for first, second in zip(ours.eval_tasks, cached.eval_tasks, strict=True):
    assert list(first.rows) == list(second.rows)
    golds = [row["targets_pretokenized"].decode() for row in first.rows]
    predictions = [
      *golds[: len(golds) // 2],
      *reversed(golds[len(golds) // 2 :]),
    ]
    found = task_metrics.score(first, predictions)
    assert found == task_metrics.score(second, predictions)
    assert found
