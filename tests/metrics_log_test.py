# SPDX-License-Identifier: Apache-2.0
import json

import tensorflow as tf

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
  assert log.writer.file_writer is None  # Closed.


def test_tensorboard_reads_every_value_at_its_step(tmp_path):
  with metrics_log.open_log(str(tmp_path), 4) as log:
    metrics_log.write(log, 5, "train", {"loss": 0.5, "grad_rms": 2.0})
    metrics_log.write_scalars(log, 6, "timing", {"seconds": 0.25})
  (path,) = (tmp_path / "tensorboard").glob("events*")
  events = list(tf.compat.v1.train.summary_iterator(str(path)))
  assert [
    (value.tag, event.step, value.simple_value)
    for event in events
    for value in event.summary.value
  ] == [
    ("train/loss", 5, 0.5),
    ("train/grad_rms", 5, 2.0),
    ("timing/seconds", 6, 0.25),
  ]
  # From here on it drops what an earlier run has written.
  assert [x.step for x in events if x.HasField("session_log")] == [5]
  assert steps(tmp_path) == [5]
