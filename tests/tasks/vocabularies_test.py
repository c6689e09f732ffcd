# SPDX-License-Identifier: Apache-2.0
"""Vocabularies, and reading a registered task with another one."""

import lzma

from prompt_tuning.tasks import train_vocabulary
import pytest


@pytest.fixture(scope="module")
def vocabularies():
  from prompt_tuning.tasks import vocabularies

  return vocabularies


def test_our_vocabulary_has_t5s_layout(vocabularies):
  ours = vocabularies.english_8k()
  model = ours.tokenizer
  assert ours.vocab_size == model.get_piece_size() == 8192
  assert (ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2)
  assert [model.id_to_piece(i) for i in (8191, 8190, 8092)] == [
    "<extra_id_0>",
    "<extra_id_1>",
    "<extra_id_99>",
  ]
  assert 8192 - 1 - 3 in ours.encode("a <extra_id_3> b")
  assert ours.decode([8191, *ours.encode("yes")]) == "<extra_id_0> yes"


def test_our_vocabulary_spells_every_label(vocabularies):
  from prompt_tuning.tasks import labels

  ours = vocabularies.english_8k()
  for texts in labels.LABELS.values():
    for text in texts:
      assert 2 not in ours.encode(text)
      assert ours.decode(ours.encode(text)) == text


def test_bytes_have_three_special_ids(vocabularies):
  byt5 = vocabularies.byt5()
  assert byt5.vocab_size == 259
  assert byt5.encode("a") == [ord("a") + 3]


def test_t5_and_mt5_are_opened_only_when_they_are_used(vocabularies):
  t5, mt5 = vocabularies.t5(), vocabularies.mt5()
  folder = "gs://t5-data/vocabs"
  assert t5.sentencepiece_model_file == (
    f"{folder}/cc_all.32000.100extra/sentencepiece.model"
  )
  assert t5.extra_ids == 0  # They are in the file.
  assert mt5.sentencepiece_model_file == (
    f"{folder}/mc4.250000.100extra/sentencepiece.model"
  )


def test_a_copied_task_tokenises_with_the_given_vocabulary(
  registry, vocabularies, dataset_of
):
  import seqio

  from prompt_tuning import data

  source = seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=None: dataset_of(
      [{"sentence": "good", "label": 1, "idx": 0}]
    ),
    splits=["train"],
  )
  task = registry.get("task_index_glue_sst2_v200").replace(source=source)
  copy = data.with_vocabulary(task, vocabularies.byt5())
  (example,) = copy.get_dataset(
    {"inputs": 99, "targets": 99}, "train", shuffle=False
  ).as_numpy_iterator()
  byt5 = vocabularies.byt5()
  # SST-2 is task 6: its sentinel is the seventh from the end.
  assert example["inputs"].tolist() == (
    [259 - 1 - 6, *byt5.encode("sentence: good"), 1]
  )
  assert example["targets"].tolist() == [*byt5.encode("positive"), 1]
  assert copy.name == task.name
  assert copy.metric_fns == task.metric_fns
  assert copy.output_features["targets"].add_eos
  # The registered task still has T5's.
  original = registry.get("task_index_glue_sst2_v200").output_features
  assert "cc_all" in original["inputs"].vocabulary.sentencepiece_model_file


@pytest.fixture
def corpus(tmp_path):
  """A text of 200 made-up words of three syllables."""
  syllables = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu"]
  words = [
    syllables[i % 10] + syllables[i // 10 % 10] + syllables[(i * 7 + 3) % 10]
    for i in range(200)
  ]
  path = tmp_path / "corpus.txt"
  path.write_text("\n".join(" ".join(words[i::7]) for i in range(7)) * 20)
  return str(path)


def test_a_trained_vocabulary_has_the_layout(corpus, tmp_path, vocabularies):
  model = train_vocabulary.train([corpus], size=220, num_sentences=1000)
  path = tmp_path / "own.model"
  path.write_bytes(model)
  own = vocabularies.sentencepiece(str(path))
  assert own.vocab_size == 220
  assert (own.pad_id, own.eos_id, own.unk_id) == (0, 1, 2)
  assert own.tokenizer.id_to_piece(219) == "<extra_id_0>"
  assert own.tokenizer.id_to_piece(120) == "<extra_id_99>"
  # Every printable character of ASCII is a piece, seen or not.
  text = "not_entailment (Z?)"
  assert 2 not in own.encode(text)
  assert own.decode(own.encode(text)) == text


def test_training_is_repeatable(corpus):
  first, second = (
    train_vocabulary.train([corpus], size=220, num_sentences=1000)
    for _ in range(2)
  )
  assert first == second


def test_a_corpus_may_be_compressed(tmp_path):
  (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one\n\n two \n"))
  (tmp_path / "b.txt").write_text("three\n")
  paths = [str(tmp_path / name) for name in ("a.txt.xz", "b.txt")]
  assert list(train_vocabulary.paragraphs(paths)) == ["one", "two", "three"]
