# SPDX-License-Identifier: Apache-2.0
import io
import json

import numpy as np
import pytest

from prompt_tuning import answers, input_rows, predictions

TOKENS = np.array([1], np.int32)


def test_a_line_holds_what_is_known():
  file = io.StringIO()
  predictions.append(
    file,
    [
      input_rows.InputRow("ä\n", TOKENS),
      input_rows.InputRow("b", TOKENS, "yes", "boolq"),
    ],
    [
      answers.Prediction(("no",), (-0.5,)),
      answers.Prediction(("no", "yes"), (-0.1, -2.3)),
    ],
  )
  first, second = file.getvalue().splitlines()
  assert first == r'{"input": "ä\n", "prediction": "no", "score": -0.5}'
  assert second == (
    '{"input": "b", "target": "yes", "prompt": "boolq", "prediction": "no",'
    ' "score": -0.1, "candidates": [["no", -0.1], ["yes", -2.3]]}'
  )


@pytest.mark.parametrize(
  ("content", "kept"),
  [
    (b"", b""),
    (b'{"inp', b""),
    (b'{"input": "a"}\n', b'{"input": "a"}\n'),
    (b'{"input": "a"}\n{"input": "\xc3', b'{"input": "a"}\n'),
  ],
)
def test_a_torn_last_line_is_cut(tmp_path, content, kept):
  path = tmp_path / "predictions.jsonl"
  path.write_bytes(content)
  assert predictions.recover(path) == len(kept.splitlines())
  assert path.read_bytes() == kept


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
  path = tmp_path / "predictions.jsonl"
  assert predictions.recover(path) == 0
  assert list(predictions.read(path, 0)) == []


def test_rows_that_are_appended_later_are_not_read(tmp_path):
  path = tmp_path / "predictions.jsonl"
  path.write_text('{"input": "a"}\n')
  rows = predictions.read(path, predictions.recover(path))
  with open(path, "a") as file:
    file.write('{"input": "b"}\n')
  assert list(rows) == [{"input": "a"}]


@pytest.mark.parametrize("line", ["{", "[]", "{}"])
def test_a_line_that_is_no_prediction_is_located(tmp_path, line):
  path = tmp_path / "predictions.jsonl"
  path.write_text('{"input": "a"}\n' + line + "\n")
  with pytest.raises(ValueError, match="line 2 is not a prediction: delete"):
    list(predictions.read(path, 2))


@pytest.mark.parametrize(
  "row",
  [
    input_rows.InputRow("c", TOKENS),
    input_rows.InputRow("b", TOKENS, None, "x"),
  ],
)
def test_other_inputs_are_refused(tmp_path, row):
  written = [{"input": "a"}, {"input": "b"}]
  first = input_rows.InputRow("a", TOKENS, "y")
  same = input_rows.InputRow("b", TOKENS)
  predictions.check_same(tmp_path, written, [first, same, row])
  with pytest.raises(ValueError, match="for other inputs: it has 'b'"):
    predictions.check_same(tmp_path, written, [first, row])


def test_a_folder_belongs_to_one_model(tmp_path):
  folder = tmp_path / "new" / "output"
  claim = lambda identity: predictions.claim(str(folder), identity)
  identity = {"base_id": "a", "lengths": {"inputs": 8}, "scores": (1, 2)}
  claim({"base_id": "c"})
  claim(identity)  # Nothing had been predicted.
  (folder / "predictions.jsonl").write_text("{}\n")
  claim(identity)
  assert json.loads((folder / "identity.json").read_text())["base_id"] == "a"
  with pytest.raises(ValueError, match="with base_id='a', now it is 'b'"):
    claim(identity | {"base_id": "b"})
  assert sorted(x.name for x in folder.iterdir()) == [
    "identity.json",
    "predictions.jsonl",
  ]


def test_a_folder_in_a_bucket_is_refused():
  with pytest.raises(ValueError, match="'gs://a/b' must be on a disk, where"):
    predictions.claim("gs://a/b", {})
