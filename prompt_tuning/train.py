# SPDX-License-Identifier: Apache-2.0
"""Trains a prompt, or whatever the partition says; or several at once.

    python -m prompt_tuning.train --gin_file=gin/runs/demo.gin

`train` is the root that the gin files of a run configure.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from etils import epath
import jax

import gin
from prompt_tuning import (
  atomic_files,
  base_probe,
  checkpoints,
  configuration,
  distributed,
  evaluate,
  fingerprint,
  layer_stacking,
  loop,
  losses,
  optim,
  outputs,
  partitioning,
  prompt_init,
  results,
  start,
  step_program,
  t5,
  task_data,
  trainer,
  trials,
)

# All parameters and the data of a trial -> metrics.
EvaluateFn = Callable[[trainer.Params, task_data.TaskData], dict[str, float]]


def train(
  *,
  model_dir: str,
  initial_checkpoint_path: str | None,
  model: t5.Transformer,
  partition: optim.Partition,
  load_data: start.LoadData,
  config: loop.LoopConfig,
  loss: losses.LossConfig,
  initial_prompt: prompt_init.PromptInit | None = None,
) -> trials.State:
  """Trains, evaluates and saves.

  Args:
    model_dir: where checkpoints and metrics go. If it has checkpoints already,
      the run continues from the newest. The best is in `best/`, with the prompt
      as `best/prompt.safetensors`. Several trials have one checkpoint and, for
      all else, a folder `trials/<name>` each.
    initial_checkpoint_path: the base; None for random weights.
    model: the network.
    partition: which parameters are trained, by which optimizer.
    load_data: reads what they are trained and evaluated on.
    config: how long, how often, and the trials if there are several.
    loss: z-loss, label smoothing, normalisation.
    initial_prompt: an initialiser of `prompt_init`; a model with a prompt
      needs one.

  Returns:
    The last state, which is saved in `model_dir`.

  Raises:
    ValueError: for whatever is wrong with the configuration or its files.
    FloatingPointError: if the last trial left has diverged.
  """
  all_trials = trials.expand(
    config.sweep, seed=config.seed, initial_prompt=initial_prompt
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(partitioning.use(config.mesh))
    source = start.prepare(
      model,
      partition,
      load_data,
      initial_checkpoint_path,
      all_trials=all_trials,
      config=config,
    )
    data, base_step = source.data, source.step
    evaluate_fn = _evaluate_fn(model, loss, data, config)
    like, frozen_like = start.describe_states(
      source, model=model, all_trials=all_trials
    )
    shardings = step_program.state_shardings(like, model, config)
    step_fn = step_program.make_step(
      shardings,
      model,
      source.optimizer,
      loss,
      config,
      num_trials=len(all_trials),
    )
    last = epath.Path(model_dir) / f"checkpoint_{config.train_steps}"
    wait_for_step = stack.enter_context(
      contextlib.nullcontext(lambda: None)  # There is nothing left to train.
      if last.exists()
      else step_program.compiling(
        step_fn,
        partitioning.at(like, shardings),
        _laid_out(frozen_like, like, config),
        step_program.batch_of_each_shape(data, all_trials, config),
        step_program.describe_rngs(len(all_trials)),
      )
    )
    state, frozen = start.load_states(
      initial_checkpoint_path,
      source,
      model=model,
      all_trials=all_trials,
      seed=config.seed,
    )
    state = partitioning.place(state, shardings)
    print(start.parameter_table(state, frozen), flush=True)
    base = fingerprint.fingerprint(frozen)
    frozen = _laid_out(frozen, state, config)
    runs = _identities(state, data, all_trials, model, config)
    run = trials.joint(all_trials, runs)
    stack.enter_context(partitioning.gathered_parameters())
    manager = stack.enter_context(
      checkpoints.open_manager(model_dir, keep=config.checkpoint_keep)
    )
    restored = checkpoints.restore(
      manager, state, base_fingerprint=base, run=run
    )
    unlogged: Sequence[loop.StepValues] = []
    log_step = base_step - 1
    if restored is not None:
      state, metadata = restored
      unlogged = metadata["unlogged"]
      log_step = int(state.step)
      print(f"continuing {model_dir} from step {log_step}", flush=True)
    _write_config(model_dir)
    outs = stack.enter_context(
      outputs.open_outputs(
        model_dir, all_trials, runs, base_fingerprint=base, step=log_step
      )
    )
    history: list[list[results.Scores]] = []

    def evaluate_state(state: trials.State) -> str:
      states, params = trials.unstack(state), layer_stacking.unstack(frozen)
      history.append(
        [
          results.Scores(trial, evaluate_fn(params | own.trainable, own_data))
          for trial, own, own_data in zip(all_trials, states, data, strict=True)
          if own is not None
        ]
      )
      outputs.write_scores(outs, state, frozen, history[-1])
      warnings = outputs.warnings(outs, end=config.train_steps)
      return "\n".join([results.text(history[-1]), *warnings])

    def save(state: trials.State, unlogged: Sequence[loop.StepValues]) -> None:
      metadata = {"base_fingerprint": base, "run": run, "unlogged": unlogged}
      # Before the checkpoint, from which a restart goes on without them.
      outputs.write_prompts(outs, state)
      checkpoints.save(manager, state, metadata)

    if restored is None:
      outputs.forget_best(outs)
      outputs.write_prompts(outs, state)  # What drift is counted from.
      if config.probe_base:
        probes = _probes(data, model, layer_stacking.unstack(frozen))
        outputs.write_probes(outs, base_step, probes)
    if config.eval_at_start and restored is None:
      print(f"step {base_step}: {evaluate_state(state)}", flush=True)
    rngs = step_program.rngs(all_trials)
    wait_for_step()
    state = loop.fit(
      state,
      frozen,
      step_program.batches(
        data, all_trials, config, int(state.step) - base_step
      ),
      step_fn=lambda *args: step_fn(*args, rngs),
      hooks=loop.Hooks(evaluate_state, save),
      logs={name: out.log for name, out in outs.by_name.items()},
      config=config,
      unlogged=unlogged,
    )
    if len(all_trials) > 1 and int(state.step) >= config.train_steps:
      print(outputs.write_results(outs, all_trials, state))
  found = fingerprint.fingerprint(layer_stacking.unstack(frozen))
  assert found == base, "a frozen parameter changed"
  print(f"frozen parameters unchanged: fingerprint {base}")
  is_from_start = config.eval_at_start and restored is None
  if len(all_trials) == 1 and is_from_start and len(history) > 1:
    (before,), (after,) = history[0], history[-1]
    print(results.before_and_after(before.metrics, after.metrics))
  return state


def _laid_out(
  frozen: dict[str, Any], state: trials.State, config: loop.LoopConfig
) -> dict[str, Any]:
  """Stacks frozen layers, if that is wanted."""
  if not config.stack_layers:
    return frozen
  return layer_stacking.stack(frozen, trained=state.trainable)


def _write_config(model_dir: str) -> None:
  """Writes the operative config beside the checkpoints."""
  if distributed.is_first():
    path = epath.Path(model_dir) / "operative_config.gin"
    atomic_files.write(path, gin.operative_config_str())


def _identities(
  state: trials.State,
  data: Sequence[task_data.TaskData],
  all_trials: Sequence[trials.Trial],
  model: t5.Transformer,
  config: loop.LoopConfig,
) -> list[dict[str, Any]]:
  """Returns what each trial, restarted, must have in common with itself.

  The learning rates are those of the first step: a constant one is part of the
  optimizer's state, so that another would not be heeded.
  """
  kind = model.config.quantization
  rates = [
    [float(f"{x:.6g}") for x in optim.learning_rates(own.opt_state)]
    for own in trials.unstack(state)
    if own is not None  # None has stopped before the first step.
  ]
  return [
    {
      "MIXTURE_OR_TASK_NAME": own_data.name,
      "BATCH_SIZE": config.batch_size,
      "RANDOM_SEED": trial.seed,
      "TASK_FEATURE_LENGTHS": dict(own_data.feature_lengths),
      "VOCABULARY": own_data.vocabulary.sha256,
      "num_buckets": config.num_buckets,
      "num_microbatches": config.num_microbatches,
    }
    | ({"learning_rate": own if own[1:] else own[0]} if own else {})
    | ({} if kind == "none" else {"QUANTIZATION": kind})
    | ({} if model.prompt is None else {"place": model.prompt.place})
    for trial, own_data, own in zip(all_trials, data, rates, strict=True)
  ]


def _probes(
  data: Sequence[task_data.TaskData],
  model: t5.Transformer,
  frozen: trainer.Params,
) -> list[dict[str, float]]:
  """Asks the base, for each trial, whether it knows the inputs of its task."""
  return [
    base_probe.probe(
      frozen,
      own_data.eval_tasks[0].examples.inputs,
      model=model,
      vocabulary_size=own_data.vocabulary.size,
    )
    if own_data.eval_tasks
    else {}
    for own_data in data
  ]


def _evaluate_fn(
  model: t5.Transformer,
  loss: losses.LossConfig,
  data: Sequence[task_data.TaskData],
  config: loop.LoopConfig,
) -> EvaluateFn:
  """Returns what evaluates parameters: loss and metrics of a trial's tasks."""
  # One for all trials, so that nothing compiles twice.
  tasks = {task.name: task for x in data for task in x.eval_tasks}
  predict_texts = evaluate.texts_fn(
    model,
    data[0]._replace(eval_tasks=list(tasks.values())),
    mode=config.eval_mode,
    batch_size=config.batch_size,
  )
  per_token = dataclasses.replace(loss, normalizing_factor=None)
  loss_fn = jax.jit(
    functools.partial(trainer.eval_step, model=model, loss=per_token)
  )

  def evaluate_params(
    params: trainer.Params, own_data: task_data.TaskData
  ) -> dict[str, float]:
    scores = evaluate.teacher_forced(
      own_data,
      params,
      lambda params, batch: loss_fn(params, partitioning.place_batch(batch)),
      batch_size=config.batch_size,
      num_batches=config.eval_steps,
    )
    return scores | evaluate.evaluate(own_data, params, predict_texts)

  return evaluate_params


if __name__ == "__main__":
  with distributed.one_run():
    configuration.run("prompt_tuning.train.train")
