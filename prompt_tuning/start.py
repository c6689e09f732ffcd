# SPDX-License-Identifier: Apache-2.0
"""Where a run starts: its data, its base, and the first state of each trial."""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
import optax

from prompt_tuning import (
  batching,
  evaluate,
  loop,
  optim,
  partitioning,
  pretrained,
  prompt_files,
  quantization,
  t5,
  task_data,
  trainer,
  trials,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

PROMPT = prompt_files.NAME

LoadData = Callable[..., task_data.TaskData]


class Source(NamedTuple):
  """What a run begins with.

  Attributes:
    data: of each trial.
    target: what a base has, and where; see `base_target`.
    step: that of the base.
    labels: of what is trained; see `optim.Partition.labels`.
    optimizer: of what is trained.
  """

  data: Sequence[task_data.TaskData]
  target: Mapping[str, jax.ShapeDtypeStruct]
  step: int
  labels: Mapping[str, int]
  optimizer: optax.GradientTransformation


def prepare(
  model: t5.Transformer,
  partition: optim.Partition,
  load_data: LoadData,
  initial_checkpoint_path: str | None,
  *,
  all_trials: Sequence[trials.Trial],
  config: loop.LoopConfig,
) -> Source:
  """Reads the data of each trial, and of the base no more than its step.

  First, whatever fails fast.
  """
  partitioning.check_batch_size(
    config.batch_size, num_microbatches=config.num_microbatches
  )
  shapes = t5.param_shapes(model)
  labels = partition.labels(shapes)
  _check_frozen(labels, model.config.quantization)
  if config.probe_base and any(name != PROMPT for name in labels):
    raise ValueError(
      "loop.LoopConfig.probe_base=True needs a frozen base, but the partition"
      " trains some of it: set it to False"
    )
  _check_initial_prompts(all_trials, model)
  target = base_target(model, config.mesh)
  path = initial_checkpoint_path
  step = 0 if path is None else pretrained.describe(path, target).step
  if step >= config.train_steps:
    raise ValueError(
      f"TRAIN_STEPS={config.train_steps} must be above {step}, the step of the"
      " base, from which steps are counted"
    )
  data = _load_data(load_data, all_trials, config)
  for trial_data in data:
    evaluate.check_vocabulary(trial_data.vocabulary, model)
  return Source(data, target, step, labels, partition.optimizer(shapes))


def base_target(
  model: t5.Transformer, config: partitioning.MeshConfig
) -> dict[str, jax.ShapeDtypeStruct]:
  """Describes what a base has, on the current mesh: all but the prompt."""
  target = partitioning.placed(t5.param_shapes(model), model, config)
  return {name: x for name, x in target.items() if name != PROMPT}


def load_base(
  path: str | None,
  target: Mapping[str, jax.ShapeDtypeStruct],
  *,
  model: t5.Transformer,
  seed: int,
) -> pretrained.Base:
  """Loads a base or, from no path, draws its weights; quantises it if wanted.

  Args:
    path: see `pretrained.open_checkpoint`.
    target: from `base_target`.
    model: the network.
    seed: of random weights.
  """
  if path is not None:
    base = pretrained.load(path, target)
  else:
    print("there is no checkpoint: the base has random weights")
    drawn = t5.init_params(model, seed=seed)
    places = {name: x.sharding for name, x in target.items()}
    params = partitioning.place({name: drawn[name] for name in target}, places)
    base = pretrained.Base(params, 0)
  params = quantization.quantize(base.params, model.config.quantization)
  return base._replace(params=params)


def _check_frozen(labels: Mapping[str, int], kind: str) -> None:
  """Refuses to train what is to be quantised."""
  trained = [x for x in labels if quantization.is_quantized(x, kind)]
  if trained:
    raise ValueError(
      f"QUANTIZATION={kind!r} needs frozen layers, but the partition trains"
      f" /{trained[0]}: set it to 'none'"
    )


def _check_initial_prompts(
  all_trials: Sequence[trials.Trial], model: t5.Transformer
) -> None:
  """Refuses a prompt without an initial value."""
  missing = any(trial.initial_prompt is None for trial in all_trials)
  if model.prompt is not None and missing:
    raise ValueError(
      "the model has a prompt, which needs an initial value: add a file of"
      " gin/prompts, such as --gin_file=gin/prompts/from_class_labels.gin"
    )


def _load_data(
  load_data: LoadData,
  all_trials: Sequence[trials.Trial],
  config: loop.LoopConfig,
) -> list[task_data.TaskData]:
  """Reads the data of each trial, every task once."""
  if config.num_buckets and len(all_trials) > 1:
    raise ValueError(
      f"num_buckets={config.num_buckets} needs one trial, found"
      f" {len(all_trials)}, whose batches must have one length: set"
      " LoopConfig.num_buckets to 0"
    )
  tasks = dict.fromkeys(trial.task for trial in all_trials)
  argument = "mixture_or_task_name"
  if tasks.keys() != {None} and argument not in (
    inspect.signature(load_data).parameters
  ):
    raise ValueError(
      f"MIXTURE_OR_TASK_NAME={list(tasks)} must be one name: LOAD_DATA reads no"
      " other task than its own"
    )
  by_task = {
    task: load_data() if task is None else load_data(**{argument: task})
    for task in tasks
  }
  for data in by_task.values():
    if not data.train_sources and data.batches_fn is None:
      raise ValueError(
        f"{data.name} has no train split: choose another MIXTURE_OR_TASK_NAME"
      )
  if len({data.vocabulary.sha256 for data in by_task.values()}) > 1:
    raise ValueError(
      f"MIXTURE_OR_TASK_NAME={list(tasks)} have different vocabularies: trials"
      " of one run share theirs"
    )
  return [_with_buckets(by_task[trial.task], config) for trial in all_trials]


def describe_states(
  source: Source,
  *,
  model: t5.Transformer,
  all_trials: Sequence[trials.Trial],
) -> tuple[trials.State, dict[str, jax.ShapeDtypeStruct]]:
  """Describes what `load_states` returns; frozen parameters with places."""
  target = quantization.quantize(source.target, model.config.quantization)
  prompt = {}
  if model.prompt is not None:
    prompt[PROMPT] = t5.param_shapes(model)[PROMPT]
  state, frozen = jax.eval_shape(
    functools.partial(_first_states, source=source, all_trials=all_trials),
    target,
    [prompt] * len(all_trials),
  )
  return state, {name: target.get(name, x) for name, x in frozen.items()}


def load_states(
  path: str | None,
  source: Source,
  *,
  model: t5.Transformer,
  all_trials: Sequence[trials.Trial],
  seed: int,
) -> tuple[trials.State, trainer.Params]:
  """Loads the base, draws the prompts and initialises the optimizer.

  Args:
    path: of the base; see `load_base`.
    source: from `prepare`.
    model: the network.
    all_trials: which there are.
    seed: of random weights.

  Returns:
    The first state, and the frozen parameters of all trials.
  """
  params, _ = load_base(path, source.target, model=model, seed=seed)
  prompts = _draw_prompts(
    params, source.data, all_trials=all_trials, model=model
  )
  return _first_states(params, prompts, source=source, all_trials=all_trials)


def _draw_prompts(
  params: Mapping[str, Array],
  data: Sequence[task_data.TaskData],
  *,
  all_trials: Sequence[trials.Trial],
  model: t5.Transformer,
) -> list[dict[str, Array]]:
  """Draws the prompt of each trial, by path, if the network has one."""
  if model.prompt is None:
    return [{} for _ in all_trials]
  return [
    {PROMPT: _draw_prompt(trial, model, params, own.vocabulary)}
    for trial, own in zip(all_trials, data, strict=True)
  ]


def _first_states(
  params: Mapping[str, Array],
  prompts: Sequence[Mapping[str, Array]],
  *,
  source: Source,
  all_trials: Sequence[trials.Trial],
) -> tuple[trials.State, trainer.Params]:
  """Splits base and prompts, and initialises the optimizer of each trial."""
  states = []
  for trial, prompt in zip(all_trials, prompts, strict=True):
    own = {**params, **prompt}
    trainable, frozen = optim.split(own, source.labels)
    opt_state = source.optimizer.init(trainable)
    if trial.learning_rate is not None:
      opt_state = optim.with_learning_rate(opt_state, trial.learning_rate)
    step = jnp.int32(source.step)
    states.append(trainer.TrainState(step, trainable, opt_state))
  if PROMPT in frozen and len(all_trials) > 1:
    raise ValueError(
      f"{len(all_trials)} trials need prompts that are trained: let the"
      f" partition match /{PROMPT}"
    )
  return trials.stack(states), frozen


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


def _draw_prompt(
  trial: trials.Trial,
  model: t5.Transformer,
  params: Mapping[str, Array],
  vocabulary: vocabulary_lib.Vocabulary,
) -> Array:
  """Draws the initial value of a prompt."""
  assert trial.initial_prompt is not None
  assert model.prompt is not None
  # 0 is dropout's.
  rng = jax.random.fold_in(jax.random.key(trial.seed), 1)
  table = partitioning.gather(params["token_embedder/embedding"])
  return trial.initial_prompt(
    rng, model.prompt.length, table, vocabulary.encode
  )


def parameter_table(state: trials.State, frozen: trainer.Params) -> str:
  """Lists what a trial trains, and counts it beside what is frozen."""
  states = trials.unstack(state)
  assert states[0] is not None  # None has stopped before the first step.
  trainable = states[0].trainable
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
  if len(states) > 1:
    rows.append(f"{len(states)} trials at once, of as many parameters each")
  return "\n".join(rows)
