# SPDX-License-Identifier: Apache-2.0
"""Trains a prompt, or whatever the partition says.

    python -m prompt_tuning.train --gin_file=gin/runs/demo.gin

`train` is the root that the gin files of a run configure.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
import optax

import gin
from prompt_tuning import (
  batching,
  checkpoints,
  configuration,
  evaluate,
  fingerprint,
  loop,
  losses,
  metrics_log,
  optim,
  pretrained,
  prompt_files,
  prompt_init,
  t5,
  task_data,
  trainer,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

PROMPT = prompt_files.NAME


def train(
  *,
  model_dir: str,
  initial_checkpoint_path: str | None,
  model: t5.Transformer,
  partition: optim.Partition,
  load_data: Callable[[], task_data.TaskData],
  config: loop.LoopConfig,
  loss: losses.LossConfig,
  initial_prompt: prompt_init.PromptInit | None = None,
) -> trainer.TrainState:
  """Trains, evaluates and saves.

  Args:
    model_dir: where checkpoints and metrics go. If it has checkpoints already,
      the run continues from the newest. The best is in `best/`, with the prompt
      as `best/prompt.safetensors`.
    initial_checkpoint_path: the base; None for random weights.
    model: the network.
    partition: which parameters are trained, by which optimizer.
    load_data: reads what they are trained and evaluated on.
    config: how long, how often.
    loss: z-loss, label smoothing, normalisation.
    initial_prompt: an initialiser of `prompt_init`; a model with a prompt
      needs one.

  Returns:
    The last state, which is saved in `model_dir`.

  Raises:
    ValueError: for whatever is wrong with the configuration or its files.
    FloatingPointError: if the loss is not finite.
  """
  data, params, base_step = _load(
    model, partition, load_data, initial_checkpoint_path, config
  )
  if model.prompt is not None:
    params[PROMPT] = _draw_prompt(
      initial_prompt, model, params, data.vocabulary, seed=config.seed
    )
  trainable, frozen = optim.split(params, partition.labels(params))
  optimizer = partition.optimizer(params)
  del params
  print(_parameter_table(trainable, frozen), flush=True)
  base = fingerprint.fingerprint(frozen)
  state = trainer.TrainState(
    jnp.int32(base_step), trainable, optimizer.init(trainable)
  )
  with (
    checkpoints.open_manager(model_dir, keep=config.checkpoint_keep) as manager,
    checkpoints.open_manager(f"{model_dir}/best", keep=1) as best_manager,
  ):
    run = _identity(data, config)
    restored = checkpoints.restore(
      manager, state, base_fingerprint=base, run=run
    )
    unlogged: loop.StepValues = []
    if restored is None:
      log = metrics_log.open_log(model_dir, base_step - 1)
    else:
      state, metadata = restored
      unlogged = metadata["unlogged"]
      log = metrics_log.open_log(model_dir, int(state.step))
      print(f"continuing {model_dir} from step {int(state.step)}", flush=True)
    config_path = pathlib.Path(model_dir) / "operative_config.gin"
    config_path.write_text(gin.operative_config_str(), encoding="utf-8")

    history: list[Mapping[str, float]] = []
    evaluate_fn = _evaluate_fn(model, loss, data, config)
    identity = {"base_fingerprint": base, "run": run}

    def evaluate_state(state: trainer.TrainState) -> Mapping[str, float]:
      scores = evaluate_fn(frozen | state.trainable)
      history.append(scores)
      if "score" in scores and checkpoints.save_best(
        best_manager, state, scores["score"], identity
      ):
        described = {"task": data.name, "score": repr(scores["score"])}
        _write_prompt(f"{model_dir}/best", state, frozen, described)
      return scores

    def save(state: trainer.TrainState, unlogged: loop.StepValues) -> None:
      checkpoints.save(manager, state, {**identity, "unlogged": unlogged})
      checkpoints.write_prompts(model_dir, state)

    if config.eval_at_start and restored is None:
      scores = evaluate_state(state)
      metrics_log.write(log, base_step, "eval", scores)
      print(f"step {base_step}: {loop.format_scores(scores)}", flush=True)
    state = loop.fit(
      state,
      frozen,
      _batches(data, config, start_step=int(state.step) - base_step),
      step_fn=_step_fn(model, optimizer, loss, config),
      hooks=loop.Hooks(evaluate_state, save),
      log=log,
      config=config,
      unlogged=unlogged,
    )
  assert fingerprint.fingerprint(frozen) == base, "a frozen parameter changed"
  print(f"frozen parameters unchanged: fingerprint {base}")
  if config.eval_at_start and len(history) > 1:
    print(_before_and_after(history[0], history[-1]))
  return state


def _load(
  model: t5.Transformer,
  partition: optim.Partition,
  load_data: Callable[[], task_data.TaskData],
  initial_checkpoint_path: str | None,
  config: loop.LoopConfig,
) -> tuple[task_data.TaskData, trainer.Params, int]:
  """Reads data and base, the base's step too; first whatever fails fast."""
  shapes = t5.param_shapes(model)
  partition.labels(shapes)
  # What a base must have: all parameters but the prompt.
  target = {name: x for name, x in shapes.items() if name != PROMPT}
  path = initial_checkpoint_path
  if path is not None:
    pretrained.describe(path, target)
  data = _with_buckets(load_data(), config)
  _check_vocabulary(data.vocabulary, model)
  if path is None:
    print("INITIAL_CHECKPOINT_PATH=None: the base has random weights")
    return data, t5.init_params(model, seed=config.seed), 0
  return data, *_load_base(path, target, config)


def _identity(
  data: task_data.TaskData, config: loop.LoopConfig
) -> dict[str, Any]:
  """Returns what a restarted run must have in common with itself."""
  return {
    "MIXTURE_OR_TASK_NAME": data.name,
    "BATCH_SIZE": config.batch_size,
    "RANDOM_SEED": config.seed,
    "num_buckets": config.num_buckets,
    "num_microbatches": config.num_microbatches,
  }


def _batches(
  data: task_data.TaskData, config: loop.LoopConfig, *, start_step: int
) -> Iterator[batching.Batch]:
  """Returns the batches from a step on, counted from that of the base."""
  if data.train_batches is not None:
    return data.train_batches(
      batch_size=config.batch_size, seed=config.seed, start_step=start_step
    )
  return batching.train_batches(
    data.train_sources,
    batch_size=config.batch_size,
    feature_lengths=data.feature_lengths,
    seed=config.seed,
    start_step=start_step,
    buckets=data.buckets,
  )


def _step_fn(
  model: t5.Transformer,
  optimizer: optax.GradientTransformation,
  loss: losses.LossConfig,
  config: loop.LoopConfig,
) -> loop.StepFn:
  """Returns the compiled `trainer.train_step` of state, frozen and batch."""
  step_fn = functools.partial(
    trainer.train_step,
    model=model,
    optimizer=optimizer,
    loss=loss,
    num_microbatches=config.num_microbatches,
  )
  rng = jax.random.key(config.seed)
  return functools.partial(jax.jit(step_fn, donate_argnums=0), rng=rng)


def _with_buckets(
  data: task_data.TaskData, config: loop.LoopConfig
) -> task_data.TaskData:
  """Chooses the buckets, if they are wanted, and says what they save."""
  if not config.num_buckets:
    return data
  result = task_data.with_buckets(data, config.num_buckets)
  before, after = (
    batching.padding_share(
      data.train_sources,
      batch_size=config.batch_size,
      feature_lengths=data.feature_lengths,
      seed=config.seed,
      buckets=buckets,
    )
    for buckets in ((), result.buckets)
  )
  lengths = ", ".join(map(str, result.buckets))
  print(
    f"buckets of inputs: {lengths}; padding {before:.1%} -> {after:.1%}",
    flush=True,
  )
  return result


def _check_vocabulary(
  vocabulary: vocabulary_lib.Vocabulary, model: t5.Transformer
) -> None:
  """Refuses a vocabulary with ids beyond the model's embedding table."""
  size = model.config.vocab_size
  if vocabulary.size > size:
    raise ValueError(
      f"the vocabulary has {vocabulary.size} ids, the model's embedding table"
      f" {size} rows: choose VOCABULARY or the model to fit"
    )


def _load_base(
  path: str,
  target: Mapping[str, jax.ShapeDtypeStruct],
  config: loop.LoopConfig,
) -> tuple[trainer.Params, int]:
  """Loads the base and its step, which must lie before the last one."""
  base = pretrained.load(path, target)
  if base.step >= config.train_steps:
    raise ValueError(
      f"TRAIN_STEPS={config.train_steps} must be above {base.step}, the step"
      " of the base, from which steps are counted"
    )
  return base.params, base.step


def _draw_prompt(
  initial_prompt: prompt_init.PromptInit | None,
  model: t5.Transformer,
  params: trainer.Params,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  seed: int,
) -> Array:
  """Draws the prompt's initial value."""
  if initial_prompt is None or model.prompt is None:
    raise ValueError(
      "the model has a prompt, which needs an initial value: add a file of"
      " gin/prompts, such as --gin_file=gin/prompts/from_class_labels.gin"
    )
  # 0 is dropout's.
  rng = jax.random.fold_in(jax.random.key(seed), 1)
  table = params["token_embedder/embedding"]
  return initial_prompt(rng, model.prompt.length, table, vocabulary.encode)


def _write_prompt(
  folder: str,
  state: trainer.TrainState,
  frozen: trainer.Params,
  metadata: Mapping[str, str],
) -> None:
  """Writes `prompt.safetensors`, if it is the prompt that is trained."""
  table = frozen.get("token_embedder/embedding")
  if PROMPT in state.trainable and table is not None:
    described = {
      **metadata,
      "step": str(int(state.step)),
      "base_id": prompt_files.base_id(table),
    }
    prompt = jax.device_get(state.trainable[PROMPT])
    prompt_files.save(f"{folder}/prompt.safetensors", prompt, described)


def _parameter_table(trainable: trainer.Params, frozen: trainer.Params) -> str:
  """Lists what is trained, and counts it beside what is frozen."""
  count = lambda params: sum(x.size for x in params.values())
  num_trained, num_frozen = count(trainable), count(frozen)
  share = num_trained / (num_trained + num_frozen)
  rows = [
    f"trainable  {num_trained:>14,}  {share:.4%}",
    f"frozen     {num_frozen:>14,}  {1 - share:.4%}",
  ]
  names = list(trainable)
  rows += [f"  {name} {tuple(trainable[name].shape)}" for name in names[:5]]
  if len(names) > 5:
    rows.append(f"  and {len(names) - 5} more")
  return "\n".join(rows)


def _evaluate_fn(
  model: t5.Transformer,
  loss: losses.LossConfig,
  data: task_data.TaskData,
  config: loop.LoopConfig,
) -> Callable[[trainer.Params], dict[str, float]]:
  """Returns what evaluates all parameters: loss and metrics of every task."""
  predict_texts = evaluate.texts_fn(
    model, data, mode=config.eval_mode, batch_size=config.batch_size
  )
  loss_fn = jax.jit(
    functools.partial(trainer.eval_step, model=model, loss=loss)
  )

  def evaluate_params(params: trainer.Params) -> dict[str, float]:
    scores = evaluate.teacher_forced(
      data,
      params,
      loss_fn,
      batch_size=config.batch_size,
      num_batches=config.eval_steps,
    )
    return scores | evaluate.evaluate(data, params, predict_texts)

  return evaluate_params


def _before_and_after(
  before: Mapping[str, float], after: Mapping[str, float]
) -> str:
  """Writes each metric before and after training."""
  names = [name for name in after if loop.is_shown(name)]
  width = max(map(len, names))
  return "\n".join(
    f"{name:<{width}}  before {before[name]:8.4g}  after {after[name]:8.4g}"
    for name in names
  )


if __name__ == "__main__":
  configuration.run("prompt_tuning.train.train")
