# SPDX-License-Identifier: Apache-2.0
"""Evaluates a prompt, several of them as an ensemble, or a model without one.

    python -m prompt_tuning.eval --gin_file=gin/models/t5_1_1_small.gin \
      --gin_file=gin/runs/seqio.gin --gin_file=gin/runs/eval.gin \
      --gin.CHECKPOINT_PATH=... --gin.PROMPT_FILE=... --gin.EVAL_OUTPUT_DIR=...

`evaluate` is the root that the gin files of a run configure.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
import re

from etils import epath
import jax.numpy as jnp
from jaxtyping import Array, Float

import gin
from prompt_tuning import (
  atomic_files,
  configuration,
  distributed,
  evaluation_report,
  event_files,
  partitioning,
  pretrained,
  prompt_files,
  prompts,
  start,
  t5,
  task_data,
  trainer,
)
from prompt_tuning import (
  evaluate as evaluate_lib,
)

PROMPT = prompt_files.NAME


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How to evaluate.

  Attributes:
    batch_size: most rows that the network reads at once, of all devices
      together: inputs times prompts.
    mode: "generation", or "rank" for the likeliest label of each task that has
      labels.
    num_buckets: how many lengths the inputs of a batch may have, chosen from
      the data; 0 for one length alone, that of TASK_FEATURE_LENGTHS.
    seed: of the base, if it has random weights.
    mesh: how the devices share the model.

  Raises:
    ValueError: for a number out of its range, or an unknown mode.
  """

  batch_size: int = 128
  mode: str = "generation"
  num_buckets: int = 0
  seed: int = 0
  mesh: partitioning.MeshConfig = partitioning.MeshConfig()

  def __post_init__(self) -> None:
    if self.batch_size < 1:
      raise ValueError(f"BATCH_SIZE={self.batch_size} must be 1 or more")
    if self.num_buckets < 0:
      raise ValueError(f"NUM_BUCKETS={self.num_buckets} must be 0 or more")
    if self.mode not in ("generation", "rank"):
      raise ValueError(
        f"EVAL_MODE={self.mode!r} must be 'generation' or 'rank'"
      )


def evaluate(
  *,
  eval_output_dir: str,
  checkpoint_path: str | None,
  prompt_file: str | Sequence[str] | None,
  model: t5.Transformer,
  load_data: Callable[[], task_data.TaskData],
  config: EvalConfig,
) -> Mapping[str, evaluation_report.Scores]:
  """Evaluates, writes what it finds and prints a table of it.

  All devices of all processes share the rows; the first process writes.

  Args:
    eval_output_dir: gets `metrics.json`, `predictions/<task>.jsonl`,
      `tensorboard/` and the operative config.
    checkpoint_path: the base; also the MODEL_DIR of a run that trained all
      parameters, for its best checkpoint. None for random weights.
    prompt_file: of a prompt, see `prompt_files`, or of several of one length,
      which are an ensemble; None for a model without a prompt.
    model: the network. Whether it has a prompt, and of which length, follows
      from `prompt_file`.
    load_data: reads what it is evaluated on.
    config: how.

  Returns:
    The columns of the table; see `evaluation_report.columns`.

  Raises:
    ValueError: for whatever is wrong with the configuration or its files.
  """
  paths = [prompt_file] if isinstance(prompt_file, str) else prompt_file or []
  files = [prompt_files.load(path) for path in paths]
  model = _with_prompt(model, files)
  with partitioning.use(config.mesh):
    _check_prompts(files, paths, model, config.batch_size)
    checkpoint = _find_checkpoint(checkpoint_path)
    target = start.base_target(model, config.mesh)
    if checkpoint is not None:
      pretrained.describe(checkpoint, target)
    data = _with_buckets(load_data(), config.num_buckets)
    _check_data(data, model)
    predict_task = evaluate_lib.predict_task_fn(
      model, data, mode=config.mode, batch_size=config.batch_size
    )
    params, step = start.load_base(
      checkpoint, target, model=model, seed=config.seed
    )
    if files:
      prompt = {PROMPT: _stack(files, paths, params)}
      places = partitioning.state_shardings(prompt, model, config.mesh)
      params |= partitioning.place(prompt, places)
    with partitioning.gathered_parameters():
      members = [predict_task(params, task) for task in data.eval_tasks]
  columns = evaluation_report.columns(data.eval_tasks, members)
  if distributed.is_first():
    folder = epath.Path(eval_output_dir)
    _write_predictions(folder, data, members)
    _write_metrics(folder, columns, paths=paths, step=step)
  for i, path in enumerate(paths, 1):
    print(f"prompt_{i}: {path}")
  print(evaluation_report.format_table(columns), flush=True)
  return columns


def _with_buckets(
  data: task_data.TaskData, num_buckets: int
) -> task_data.TaskData:
  """Chooses buckets, if they are wanted, from the rows that are evaluated."""
  if not num_buckets or not data.eval_tasks:
    return data
  only = data._replace(train_sources=())
  buckets = task_data.with_buckets(only, num_buckets).buckets
  return data._replace(buckets=buckets)


def _check_data(data: task_data.TaskData, model: t5.Transformer) -> None:
  """Refuses data that the network cannot read, or without texts."""
  evaluate_lib.check_vocabulary(data.vocabulary, model)
  # The pieces of a corpus have a loss alone, and no rows.
  if not any(task.rows for task in data.eval_tasks):
    raise ValueError(
      f"{data.name} has no validation split to predict: choose another"
      " MIXTURE_OR_TASK_NAME"
    )


def _check_prompts(
  files: Sequence[prompt_files.PromptFile],
  paths: Sequence[str],
  model: t5.Transformer,
  batch_size: int,
) -> None:
  """Refuses prompts of other places, or that cannot be rows of one batch."""
  for found, path in zip(files, paths, strict=True):
    assert model.prompt is not None  # There are prompts.
    prompt_files.check_place(found, path, place=model.prompt.place)
    length, first = found.prompt.shape[0], files[0].prompt.shape[0]
    if length != first:
      raise ValueError(
        f"PROMPT_FILE={path!r} has length {length}, {paths[0]!r} has {first}:"
        " the prompts of an ensemble must have one length"
      )
  evaluate_lib.num_inputs(batch_size, max(len(files), 1))


def _with_prompt(
  model: t5.Transformer, files: Sequence[prompt_files.PromptFile]
) -> t5.Transformer:
  """Gives the network a prompt as long as the first file's, or takes it."""
  if not files:
    return model.clone(prompt=None)
  config = model.prompt or prompts.PromptConfig()
  length = files[0].prompt.shape[0]
  return model.clone(prompt=dataclasses.replace(config, length=length))


def _find_checkpoint(path: str | None) -> str | None:
  """Finds the checkpoint, in a MODEL_DIR its best."""
  if path is None:
    return None
  best = pathlib.Path(path).expanduser() / "best"
  steps = [x for x in best.glob("checkpoint_*") if re.search(r"_\d+$", x.name)]
  return str(steps[0]) if len(steps) == 1 else path  # Training keeps one.


def _stack(
  files: Sequence[prompt_files.PromptFile],
  paths: Sequence[str],
  params: trainer.Params,
) -> Float[Array, "P D"] | Float[Array, "E P D"]:
  """Stacks several prompts, which must be of this base and of one length."""
  length = files[0].prompt.shape[0]
  table = partitioning.gather(params["token_embedder/embedding"])
  for found, path in zip(files, paths, strict=True):
    prompt_files.check(found, path, length=length, table=table)
  stacked = jnp.stack([jnp.asarray(x.prompt) for x in files])
  return stacked if len(files) > 1 else stacked[0]


def _write_predictions(
  folder: epath.Path,
  data: task_data.TaskData,
  members: Sequence[Sequence[evaluate_lib.Predictions]],
) -> None:
  """Writes the predictions for each task as JSON lines."""
  for task, predictions in zip(data.eval_tasks, members, strict=True):
    rows = evaluation_report.prediction_rows(task, predictions, data.vocabulary)
    lines = "".join(f"{json.dumps(x, ensure_ascii=False)}\n" for x in rows)
    atomic_files.write(folder / "predictions" / f"{task.name}.jsonl", lines)


def _write_metrics(
  folder: epath.Path,
  columns: Mapping[str, evaluation_report.Scores],
  *,
  paths: Sequence[str],
  step: int,
) -> None:
  """Writes metrics as JSON and for TensorBoard, and the configuration."""
  content = {"step": step, "prompts": list(paths), "metrics": columns}
  atomic_files.write(folder / "metrics.json", json.dumps(content, indent=2))
  atomic_files.write(
    folder / "operative_config.gin", gin.operative_config_str()
  )
  with event_files.SummaryWriter(str(folder / "tensorboard")) as writer:
    for column, scores in columns.items():
      for name, value in scores.items():
        writer.add_scalar(f"{column}/{name}", value, step)


if __name__ == "__main__":
  with distributed.one_run():
    configuration.run("prompt_tuning.eval.evaluate")
