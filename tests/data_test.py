# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture
def read():
  """Reads a task of three rows, of which a preprocessor may drop some."""
  from prompt_tuning.tasks import vocabularies
  import seqio
  import tensorflow as tf

  from prompt_tuning import data, task_data

  def rows(split, shuffle_files, seed=None):
    texts = ["one", "two", "three"]
    return tf.data.Dataset.from_tensor_slices(
      {"inputs": texts, "targets": texts}
    )

  def call(name, num_kept, splits=("train", "validation")):
    feature = seqio.Feature(vocabularies.english_8k())
    seqio.TaskRegistry.add(
      name,
      seqio.FunctionDataSource(
        rows, splits, num_input_examples=dict.fromkeys(splits, 3)
      ),
      preprocessors=[
        lambda dataset: dataset.take(num_kept),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={"inputs": feature, "targets": feature},
      metric_fns=[lambda targets, predictions: {"num": len(targets)}],
    )
    return data.from_seqio(
      mixture_or_task_name=name,
      feature_lengths={"inputs": 8, "targets": 8},
      scoring_fn=lambda name: task_data.Scoring(
        str, default=("num",), labels=("one", name)
      ),
    )

  return call


def test_rows_that_preprocessing_drops_are_counted(read, capsys):
  read("all_kept", 3)
  assert "rows" not in capsys.readouterr().out
  read("one_dropped", 2)
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    f"one_dropped {split}: 2 rows, 1 fewer than its source has: preprocessing"
    " drops them"
    for split in ("train", "validation")
  ]


def test_a_task_without_a_train_split_is_read_but_not_trained_on(read):
  from prompt_tuning import loop, start, trials

  load_data = lambda: read("no_train", 3, ("validation",))
  data = load_data()
  assert not data.train_sources
  assert [task.name for task in data.eval_tasks] == ["no_train"]
  all_trials = trials.expand(trials.Sweep(), seed=0, initial_prompt=None)
  with pytest.raises(ValueError, match="no_train has no train split: choose"):
    start._load_data(lambda: data, all_trials, loop.LoopConfig(1))


def test_a_task_carries_its_name_and_labels(read):
  data = read("named", 3)
  assert (data.name, data.train_names) == ("named", ["named"])
  (task,) = data.eval_tasks
  assert task.scoring.labels == ("one", "named")
  assert task.scoring.default == ("num",)
  assert data.vocabulary.decode(data.vocabulary.encode("three")) == "three"


def test_tasks_of_different_vocabularies_are_refused(read):
  from prompt_tuning.tasks import vocabularies
  import seqio

  from prompt_tuning import data, task_data

  read("of_pieces", 3)
  task = seqio.TaskRegistry.get("of_pieces")
  feature = seqio.Feature(vocabularies.byt5())
  seqio.TaskRegistry.add(
    "of_bytes",
    task.source,
    preprocessors=task.preprocessors,
    output_features={"inputs": feature, "targets": feature},
    metric_fns=task.metric_fns,
  )
  seqio.MixtureRegistry.add("of_both", ["of_pieces", "of_bytes"], 1.0)
  arguments = {
    "mixture_or_task_name": "of_both",
    "feature_lengths": {"inputs": 8, "targets": 8},
    "scoring_fn": task_data.unscored,
  }
  with pytest.raises(
    ValueError, match="have another vocabulary than the targets of of_"
  ):
    data.from_seqio(**arguments)
  data.from_seqio(**arguments, vocabulary=vocabularies.byt5())
