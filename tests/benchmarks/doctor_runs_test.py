# SPDX-License-Identifier: Apache-2.0
"""The spoiled runs that are shown to the doctor."""

import doctor_runs
import sentencepiece


def test_a_foreign_vocabulary_has_the_same_words_and_other_ids(tmp_path):
  doctor_runs.write_foreign_vocabulary(tmp_path / "foreign.model")
  own, foreign = (
    sentencepiece.SentencePieceProcessor(model_file=str(path))
    for path in (
      doctor_runs.ROOT / "tasks/english_8k.model",
      tmp_path / "foreign.model",
    )
  )
  words = [[x.id_to_piece(i) for i in range(8192)] for x in (own, foreign)]
  assert sorted(words[0]) == sorted(words[1])
  same = {i for i, (a, b) in enumerate(zip(*words, strict=True)) if a == b}
  assert same >= {0, 1, 2, *range(8092, 8192)}
  assert len(same) < 500
  assert foreign.decode(foreign.encode("A good book.")) == "A good book."
