# SPDX-License-Identifier: Apache-2.0
import json

from prompt_tuning import metrics_log


def steps(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


def test_a_restarted_log_drops_later_and_torn_lines(tmp_path):
  with metrics_log.open_log(str(tmp_path), 0) as log:
    for step in (1, 2, 3):
      metrics_log.write(log, step, "train", {"loss": 0.5})
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 2, "spl')
  with metrics_log.open_log(str(tmp_path), 2) as log:
    assert steps(tmp_path) == [1, 2]
    metrics_log.write(log, 3, "eval", {"score": 1.0})
  assert steps(tmp_path) == [1, 2, 3]
  assert list((tmp_path / "tensorboard").glob("events*"))
  assert log.writer.file_writer is None  # Closed.
