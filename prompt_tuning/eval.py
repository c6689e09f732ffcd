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
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import tensorboardX

import gin
from prompt_tuning import (
  atomic_files,
  configuration,
  evaluation_report,
  pretrained,
  prompt_files,
  prompts,
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
    batch_size: rows that the network reads at once: inputs times prompts.
    mode: "generation", or "rank" for the likeliest label of each task that has
      labels.
    num_buckets: how many lengths the inputs of a batch may have, chosen from
      the data; 0 for one length alone, that of TASK_FEATURE_LENGTHS.
    seed: of the base, if it has random weights.

  Raises:
    ValueError: for a number out of its range, or an unknown mode.
  """

  batch_size: int = 128
  mode: str = "generation"
  num_buckets: int = 0
  seed: int = 0

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
  _check_prompts(files, paths, config.batch_size)
  model = _with_prompt(model, files)
  checkpoint = _find_checkpoint(checkpoint_path, model)
  data = load_data()
  _check_data(data, model)
  if config.num_buckets:
    only = data._replace(train_sources=())
    buckets = task_data.with_buckets(only, config.num_buckets).buckets
    data = data._replace(buckets=buckets)
  predict_task = evaluate_lib.predict_task_fn(
    model, data, mode=config.mode, batch_size=config.batch_size
  )
  params, step = _load(checkpoint, model, seed=config.seed)
  if files:
    params[PROMPT] = _stack(files, paths, params)
  members = [predict_task(params, task) for task in data.eval_tasks]
  columns = evaluation_report.columns(data.eval_tasks, members)
  folder = epath.Path(eval_output_dir)
  for task, predictions in zip(data.eval_tasks, members, strict=True):
    rows = evaluation_report.prediction_rows(task, predictions, data.vocabulary)
    lines = "".join(f"{json.dumps(x, ensure_ascii=False)}\n" for x in rows)
    atomic_files.write(folder / "predictions" / f"{task.name}.jsonl", lines)
  _write_metrics(folder, columns, paths=paths, step=step)
  for i, path in enumerate(paths, 1):
    print(f"prompt_{i}: {path}")
  print(evaluation_report.format_table(columns), flush=True)
  return columns


def _check_data(data: task_data.TaskData, model: t5.Transformer) -> None:
  """Refuses data that the network cannot read, or that score nothing."""
  evaluate_lib.check_vocabulary(data.vocabulary, model)
  if not data.eval_tasks:
    raise ValueError(
      f"{data.name} has no validation split with metrics: choose another"
      " MIXTURE_OR_TASK_NAME"
    )


def _check_prompts(
  files: Sequence[prompt_files.PromptFile],
  paths: Sequence[str],
  batch_size: int,
) -> None:
  """Refuses prompts that cannot be rows of one batch."""
  for found, path in zip(files, paths, strict=True):
    length, first = found.prompt.shape[0], files[0].prompt.shape[0]
    if length != first:
      raise ValueError(
        f"PROMPT_FILE={path!r} has length {length}, {paths[0]!r} has {first}:"
        " the prompts of an ensemble must have one length"
      )
  if batch_size < len(files):
    raise ValueError(
      f"BATCH_SIZE={batch_size} must be at least {len(files)}: each input is a"
      " row for each of the prompts"
    )


def _with_prompt(
  model: t5.Transformer, files: Sequence[prompt_files.PromptFile]
) -> t5.Transformer:
  """Gives the network a prompt as long as the first file's, or takes it."""
  if not files:
    return model.clone(prompt=None)
  config = model.prompt or prompts.PromptConfig()
  length = files[0].prompt.shape[0]
  return model.clone(prompt=dataclasses.replace(config, length=length))


def _find_checkpoint(path: str | None, model: t5.Transformer) -> str | None:
  """Finds the checkpoint, in a MODEL_DIR its best, and checks its leaves."""
  if path is None:
    return None
  best = pathlib.Path(path).expanduser() / "best"
  steps = [x for x in best.glob("checkpoint_*") if re.search(r"_\d+$", x.name)]
  if len(steps) == 1:  # Training keeps one.
    path = str(steps[0])
  try:
    pretrained.describe(path, _base_shapes(model))
  except ValueError as error:
    message = str(error).replace("INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH")
    raise ValueError(message) from error
  return path


def _base_shapes(model: t5.Transformer) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what a base must have: all parameters but the prompt."""
  shapes = t5.param_shapes(model)
  return {name: x for name, x in shapes.items() if name != PROMPT}


def _load(
  path: str | None, model: t5.Transformer, *, seed: int
) -> tuple[trainer.Params, int]:
  """Loads the base and its step."""
  if path is None:
    print("CHECKPOINT_PATH=None: the base has random weights")
    return t5.init_params(model, seed=seed), 0
  base = pretrained.load(path, _base_shapes(model))
  return base.params, base.step


def _stack(
  files: Sequence[prompt_files.PromptFile],
  paths: Sequence[str],
  params: trainer.Params,
) -> Float[Array, "P D"] | Float[Array, "E P D"]:
  """Stacks several prompts, which must be of this base and of one length."""
  length = files[0].prompt.shape[0]
  table = params["token_embedder/embedding"]
  for found, path in zip(files, paths, strict=True):
    prompt_files.check(found, path, length=length, table=table)
  stacked = jnp.stack([jnp.asarray(x.prompt) for x in files])
  return stacked if len(files) > 1 else stacked[0]


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
  with tensorboardX.SummaryWriter(str(folder / "tensorboard")) as writer:
    for column, scores in columns.items():
      for name, value in scores.items():
        writer.add_scalar(f"{column}/{name}", value, step)


if __name__ == "__main__":
  configuration.run("prompt_tuning.eval.evaluate")
