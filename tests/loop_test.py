# SPDX-License-Identifier: Apache-2.0
"""The loop around a step that does nothing."""

import time

import jax.numpy as jnp

from prompt_tuning import loop, losses, metrics_log, trainer


def test_evaluating_and_saving_do_not_count_as_training(monkeypatch, tmp_path):
  now, speeds = [0.0], []
  monkeypatch.setattr(time, "monotonic", lambda: now[0])

  def passes(seconds, result=""):
    now[0] += seconds
    return result

  def step_fn(state, frozen, batch):
    sums = losses.LossSums(*jnp.ones(5))
    others = jnp.ones(len(trainer.StepMetrics._fields) - 1)
    return passes(2.0, (state, trainer.StepMetrics(sums, *others)))

  def write_scalars(log, step, split, values):
    if "steps_per_second" in values:
      speeds.append(values["steps_per_second"])

  monkeypatch.setattr(metrics_log, "write_scalars", write_scalars)
  with metrics_log.open_log(str(tmp_path), 0) as log:
    loop.fit(
      trainer.TrainState(jnp.int32(0), {}, ()),
      {},
      iter([{}] * 8),
      step_fn=step_fn,
      hooks=loop.Hooks(lambda _: passes(100.0), lambda *_: passes(10.0)),
      logs={"": log},
      config=loop.LoopConfig(
        train_steps=8, eval_period=3, checkpoint_period=2, log_period=2
      ),
    )
  assert speeds == [0.5] * 4
