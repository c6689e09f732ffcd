# SPDX-License-Identifier: Apache-2.0
"""The data door: seqio tasks to tokenised examples.

Beside the tasks themselves and `t5x_adapter`, this alone knows seqio.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import difflib
import importlib
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
import tqdm

from prompt_tuning import batching, task_data
from prompt_tuning import vocabulary as vocabulary_lib

# Targets of no more distinct texts than this are labels: none may be cut.
_MAX_LABELS = 100


def from_seqio(
  *,
  mixture_or_task_name: str,
  mixture_or_task_module: str | Sequence[str] | None = None,
  feature_lengths: Mapping[str, int],
  vocabulary: seqio.Vocabulary | None = None,
  use_cached: bool = False,
  tfds_data_dir: str | None = None,
  scoring_fn: Callable[[str], task_data.Scoring | None] = lambda name: None,
) -> task_data.TaskData:
  """Reads and tokenises a task or mixture.

  Args:
    mixture_or_task_name: its name in seqio's registry.
    mixture_or_task_module: the module whose import registers it, or several;
      None if it is registered already.
    feature_lengths: number of tokens of `inputs` and `targets`; the prompt
      comes on top.
    vocabulary: read the task with this vocabulary instead of its own.
    use_cached: read seqio's own cached tasks instead of the sources.
    tfds_data_dir: where the TFDS data sets are; None for TFDS's default.
    scoring_fn: name of a task -> its labels and default metric, if known.

  Raises:
    ValueError: for a name or module that does not exist, a data set that is
      not there, a split without rows, a label that does not fit, or a
      vocabulary that is neither SentencePiece's nor bytes.
  """
  if jax.default_backend() != "cpu":
    for kind in ("GPU", "TPU"):  # TensorFlow would take JAX's memory.
      tf.config.set_visible_devices([], kind)
  if tfds_data_dir is not None:
    seqio.set_tfds_data_dir_override(tfds_data_dir)
  check_lengths(feature_lengths)
  _import(mixture_or_task_module)
  tasks = _get_tasks(mixture_or_task_name)
  if vocabulary is not None:
    tasks = [(with_vocabulary(x, vocabulary), rate) for x, rate in tasks]
  read = lambda task, split: _read_split(
    task, split, feature_lengths, use_cached=use_cached
  )
  train_names, train_sources, eval_tasks = [], [], []
  for task, rate in tasks:
    splits = _splits(task)
    if "train" in splits and rate > 0:
      rows = read(task, "train")
      _check_labels(task, rows, feature_lengths["targets"])
      train_names.append(task.name)
      train_sources.append((_examples(rows), rate))
    if "validation" in splits and task.metric_fns:
      rows = read(task, "validation")
      eval_tasks.append(_eval_task(task, rows, scoring_fn(task.name)))
  return task_data.TaskData(
    mixture_or_task_name,
    train_names,
    train_sources,
    eval_tasks,
    dict(feature_lengths),
    without_tensorflow(_common_vocabulary(tasks)),
  )


def _common_vocabulary(
  tasks: Sequence[tuple[seqio.Task, float]],
) -> seqio.Vocabulary:
  """Returns the vocabulary of all tasks, of inputs and targets alike."""
  first, _ = tasks[0]
  result = first.output_features["targets"].vocabulary
  for task, _ in tasks:
    for name in ("inputs", "targets"):
      vocabulary = task.output_features[name].vocabulary
      if vocabulary is not result and vocabulary != result:
        raise ValueError(
          f"the {name} of {task.name} have another vocabulary than the targets"
          f" of {first.name}: set VOCABULARY, for all of them"
        )
  return result


def without_tensorflow(
  vocabulary: seqio.Vocabulary,
) -> vocabulary_lib.Vocabulary:
  """Makes the same vocabulary without TensorFlow.

  Raises:
    ValueError: for a kind that there is no such form of.
  """
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return vocabulary_lib.from_sentencepiece(vocabulary.sp_model)
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return vocabulary_lib.from_bytes(vocabulary.vocab_size)
  raise ValueError(
    f"VOCABULARY is a {type(vocabulary).__name__}: wanted is a"
    " SentencePieceVocabulary or a ByteVocabulary"
  )


def check_lengths(feature_lengths: Mapping[str, int]) -> None:
  """Refuses lengths of other features than inputs and targets."""
  if set(feature_lengths) != {"inputs", "targets"}:
    raise ValueError(
      f"TASK_FEATURE_LENGTHS={dict(feature_lengths)} must have the keys"
      " 'inputs' and 'targets'"
    )


def _import(modules: str | Sequence[str] | None) -> None:
  """Imports the modules that register tasks."""
  for module in [modules] if isinstance(modules, str) else modules or []:
    try:
      importlib.import_module(module)
    except ModuleNotFoundError as error:
      raise ValueError(
        f"MIXTURE_OR_TASK_MODULE={module!r} cannot be imported: {error}"
      ) from error


def _get_tasks(name: str) -> list[tuple[seqio.Task, float]]:
  """Finds the tasks of a task or mixture, with their mixing rates."""
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  if name not in known:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    raise ValueError(
      f"MIXTURE_OR_TASK_NAME={name!r} is not registered"
      + (f"; did you mean {', '.join(near)}?" if near else "")
      + " Is MIXTURE_OR_TASK_MODULE the module that registers it?"
    )
  provider = seqio.get_mixture_or_task(name)
  if isinstance(provider, seqio.Mixture):
    tasks = seqio.get_subtasks(provider)
    return [(task, float(provider.get_rate(task))) for task in tasks]
  return [(provider, 1.0)]


def with_vocabulary(
  task: seqio.Task, vocabulary: seqio.Vocabulary
) -> seqio.Task:
  """Copies a task so that all its features use another vocabulary.

  The copy has the task's name but is not registered.
  """
  features = {
    name: dataclasses.replace(feature, vocabulary=vocabulary)
    for name, feature in task.output_features.items()
  }
  return task.replace(output_features=features)


def _splits(task: seqio.Task) -> Sequence[str]:
  """Returns the names of the splits, which the source itself may not know."""
  try:
    return list(task.splits)
  except (ValueError, OSError, AssertionError) as error:
    raise ValueError(_unreadable(task, error)) from error


def _unreadable(task: seqio.Task, error: Exception) -> str:
  """Says that a task's data set is not there, and how to make it."""
  reason = (str(error) or type(error).__name__).splitlines()[0]
  return (
    f"the data set of {task.name} cannot be read ({reason}): pass"
    " --tfds_data_dir, or make it with `python -m prompt_tuning.tasks.prepare`"
  )


def _read_split(
  task: seqio.Task,
  split: str,
  feature_lengths: Mapping[str, int],
  *,
  use_cached: bool,
) -> list[task_data.Row]:
  """Reads, tokenises and trims the rows of one split, in file order."""
  try:
    dataset = task.get_dataset(
      sequence_length=dict(feature_lengths),
      split=split,
      use_cached=use_cached,
      shuffle=False,
    )
  except (AssertionError, OSError) as error:
    raise ValueError(_unreadable(task, error)) from error
  rows: Iterable[task_data.Row] = tqdm.tqdm(
    dataset.as_numpy_iterator(),
    desc=f"{task.name} {split}",
    unit="row",
    disable=None,
    leave=False,
  )
  result = list(rows)
  if not result:
    raise ValueError(f"the {split} split of {task.name} has no rows")
  num_dropped = (task.num_input_examples(split) or 0) - len(result)
  if num_dropped > 0:
    print(
      f"{task.name} {split}: {len(result)} rows, {num_dropped} fewer than its"
      " source has: preprocessing drops them",
      flush=True,
    )
  return result


def _examples(rows: Sequence[task_data.Row]) -> batching.Examples:
  inputs, targets = (
    batching.Ragged.from_rows([np.asarray(row[name]) for row in rows])
    for name in ("inputs", "targets")
  )
  return batching.Examples(inputs, targets)


def _eval_task(
  task: seqio.Task,
  rows: Sequence[task_data.Row],
  known: task_data.Scoring | None,
) -> task_data.EvalTask:
  """Keeps what scoring needs: the fields but for the tokens."""
  fields = [
    {k: _plain(x) for k, x in row.items() if k not in ("inputs", "targets")}
    for row in rows
  ]
  return task_data.EvalTask(
    task.name,
    _examples(rows),
    fields,
    task_data.Scoring(
      task.postprocess_fn,
      task.predict_metric_fns,
      known.default if known else (),
      known.labels if known else (),
    ),
  )


def _plain(value: Any) -> Any:
  """Turns numpy's values into Python's; text stays bytes."""
  return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _check_labels(
  task: seqio.Task, rows: Sequence[task_data.Row], length: int
) -> None:
  """Refuses a target length that would cut a label."""
  labels = {row.get("targets_pretokenized", b"") for row in rows}
  if len(labels) > min(_MAX_LABELS, len(rows) // 2):
    return  # Free text, which may be cut.
  vocabulary = task.output_features["targets"].vocabulary
  for label in sorted(labels):
    num_tokens = len(vocabulary.encode(label.decode())) + 1
    if num_tokens > length:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS['targets']={length} is too short for the label"
        f" {label.decode()!r} of {task.name}, which has {num_tokens} tokens"
        " with EOS"
      )
