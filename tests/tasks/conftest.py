# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of tasks: goldens, and tasks over given rows."""

import json
import pathlib

import pytest

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="session")
def golden_json():
  """Loads a JSON file of tests/goldens."""
  return lambda name: json.loads((GOLDENS / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def registry():
  """Seqio's registry of tasks, with all of ours in it."""
  import prompt_tuning.tasks.glue
  import prompt_tuning.tasks.pretraining
  import prompt_tuning.tasks.question_answering
  import prompt_tuning.tasks.summarization
  import prompt_tuning.tasks.super_glue  # noqa: F401
  import seqio

  return seqio.TaskRegistry


@pytest.fixture(scope="session")
def dataset_of():
  """Makes a tf.data data set of rows, with TFDS's types."""
  import tensorflow as tf

  def spec(value):
    if isinstance(value, dict):
      return {name: spec(x) for name, x in value.items()}
    if isinstance(value, list):
      dtype = tf.int32 if value and isinstance(value[0], int) else tf.string
      return tf.TensorSpec([None], dtype)
    kinds = {str: tf.string, int: tf.int32, float: tf.float32}
    return tf.TensorSpec([], kinds[type(value)])

  return lambda rows: tf.data.Dataset.from_generator(
    lambda: iter(rows), output_signature=spec(rows[0])
  )


@pytest.fixture(scope="session")
def run_text(registry, dataset_of):
  """Runs the steps of a task that come before tokens, over made-up rows."""
  import seqio

  def run(name, rows):
    dataset = dataset_of(rows)
    for preprocessor in registry.get(name).preprocessors:
      if preprocessor is seqio.preprocessors.tokenize:
        return list(dataset.as_numpy_iterator())
      dataset = preprocessor(dataset)
    raise AssertionError(f"{name} makes no tokens")

  return run


@pytest.fixture(scope="session")
def run_task(registry, dataset_of):
  """Runs a whole task through seqio, over made-up rows.

  Returns a function of (task name, rows, lengths) -> examples, with our own
  vocabulary: nothing here needs a network.
  """
  from prompt_tuning.tasks import vocabularies
  import seqio

  from prompt_tuning import data

  def run(name, rows, lengths=None):
    source = seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: dataset_of(rows),
      splits=["train"],
    )
    task = data.with_vocabulary(
      registry.get(name).replace(source=source), vocabularies.english_8k()
    )
    lengths = lengths or {"inputs": 512, "targets": 32}
    dataset = task.get_dataset(lengths, split="train", shuffle=False, seed=0)
    return list(dataset.as_numpy_iterator())

  return run
