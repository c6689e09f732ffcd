# SPDX-License-Identifier: Apache-2.0
"""Predicts the rows of a file, of standard input or of a task.

    python -m prompt_tuning.infer \
      --gin_file=gin/models/t5_1_1_base.gin --gin_file=gin/runs/infer.gin \
      --gin.CHECKPOINT_PATH=... --gin.PROMPT_FILE=... --gin.INPUT_FILE=... \
      --gin.TASK_FEATURE_LENGTHS=... --gin.INFER_OUTPUT_DIR=...

`infer` is the root that the gin files of a run configure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import tqdm

import gin
from prompt_tuning import (
  atomic_files,
  configuration,
  distributed,
  fingerprint,
  inference,
  input_rows,
  partitioning,
  predictions,
  t5,
  task_data,
)
from prompt_tuning import (
  prompts as prompts_lib,
)

# What the bank calls the prompt of the rows that name none.
_DEFAULT = "PROMPT_FILE"


def infer(
  *,
  output_dir: str,
  checkpoint_path: str,
  network: t5.Transformer,
  prompt_file: str | None,
  prompt_files: Mapping[str, str],
  load_data: Callable[[], input_rows.Source | task_data.TaskData],
  config: inference.InferenceConfig,
  mesh: partitioning.MeshConfig,
) -> None:
  """Writes `predictions.jsonl`, batch by batch, in the order of the rows.

  The same command again continues after the last whole row that is written.
  All devices of all processes share the rows of a batch; each process reads
  all inputs and what is written, and the first alone writes.

  Args:
    output_dir: where that file goes.
    checkpoint_path: the base.
    network: its sizes, and where a prompt is put.
    prompt_file: the prompt of every row that names none; None if there is none.
    prompt_files: prompts by the names that rows, or tasks, call them by.
    load_data: reads what is predicted.
    config: how.
    mesh: how the devices share the model.

  Raises:
    ValueError: for whatever is wrong with the configuration or its files.
  """
  files = dict(prompt_files)
  if prompt_file is not None:
    files[_DEFAULT] = prompt_file
  data = load_data()
  if isinstance(data, task_data.TaskData):
    data = input_rows.from_tasks(data, set(files))
  path = pathlib.Path(output_dir, "predictions.jsonl")
  with partitioning.use(mesh):
    partitioning.check_batch_size(config.batch_size)
    model = inference.load(
      checkpoint_path,
      vocabulary=data.vocabulary,
      prompts=files,
      network=network,
      mesh=mesh,
    )
    predictions.claim(output_dir, _identity(model, config))
    if distributed.is_first():
      atomic_files.write(
        f"{output_dir}/operative_config.gin", gin.operative_config_str()
      )
    with partitioning.gathered_parameters():
      num_rows = _write(path, data, model, config)
  print(f"{num_rows} predictions in {path}", flush=True)


def _identity(
  model: inference.Model, config: inference.InferenceConfig
) -> dict[str, Any]:
  """Returns what all predictions of a folder must have in common."""
  place = model.network.prompt or prompts_lib.PromptConfig()
  prompts = {
    name: jnp.asarray(file.prompt) for name, file in model.bank.files.items()
  }
  return {
    "base_id": model.bank.base_id,
    "prompts": fingerprint.fingerprint(prompts),
    "ACTIVATION_DTYPE": str(jnp.dtype(model.network.config.dtype)),
    "QUANTIZATION": model.network.config.quantization,
    "DECODER": repr(config.decoder),
    "TASK_FEATURE_LENGTHS": dict(config.feature_lengths),
    "RANDOM_SEED": config.seed,
    "VOCABULARY": model.vocabulary.sha256,
    "join": getattr(place.join, "__name__", repr(place.join)),
    "visibility": list(place.visibility),
  }


def _write(
  path: pathlib.Path,
  source: input_rows.Source,
  model: inference.Model,
  config: inference.InferenceConfig,
) -> int:
  """Writes what is missing of a file; returns how many rows it has then."""
  num_written = distributed.of_first(
    predictions.recover(path) if distributed.is_first() else 0
  )
  written = predictions.read(path, num_written)
  default = _DEFAULT if _DEFAULT in model.bank.files else None
  num_rows = 0
  with (
    open(
      path if distributed.is_first() else os.devnull, "a", encoding="utf-8"
    ) as file,
    tqdm.tqdm(
      total=source.num_rows,
      unit="row",
      disable=None if distributed.is_first() else True,
    ) as progress,
  ):
    # A batch begins where it began before, so that a draw is the same.
    for rows in _batches(source.rows, config.batch_size):
      old = list(itertools.islice(written, len(rows)))
      predictions.check_same(path, old, rows)
      if len(old) < len(rows):
        names = [row.prompt or default for row in rows]
        _check_names(names, set(model.bank.files), first_row=num_rows)
        found = inference.predict_batch(
          model,
          [row.tokens for row in rows],
          names,
          config=config,
          first_row=num_rows,
        )
        predictions.append(file, rows[len(old) :], found[len(old) :])
      num_rows += len(rows)
      progress.update(len(rows))
  if num_rows < num_written:
    raise ValueError(
      f"{path} has {num_written} rows, the input {num_rows}: choose another"
      " INFER_OUTPUT_DIR"
    )
  return num_rows


def _check_names(
  names: Sequence[str | None], known: set[str], *, first_row: int
) -> None:
  """Refuses to answer a row that names no prompt with that of another task."""
  if known and None in names:
    raise ValueError(
      f"row {first_row + names.index(None) + 1} names no prompt: name one of"
      f" {', '.join(sorted(known))} (PROMPT_FIELD), or set PROMPT_FILE for rows"
      " that name none"
    )


def _batches(
  rows: Iterator[input_rows.InputRow], batch_size: int
) -> Iterator[list[input_rows.InputRow]]:
  while batch := list(itertools.islice(rows, batch_size)):
    yield batch


if __name__ == "__main__":
  with distributed.one_run():
    configuration.run("prompt_tuning.infer.infer")
