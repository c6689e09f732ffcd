# SPDX-License-Identifier: Apache-2.0
"""The training step that benchmarks measure, and the batches that it takes."""

import functools
from typing import Any

import jax
import numpy as np
import optax

from prompt_tuning import losses, t5, trainer


def random_batch(
  rng: np.random.Generator,
  vocab_size: int,
  *,
  num_rows: int,
  num_inputs: int,
  num_targets: int,
) -> dict[str, np.ndarray]:
  """Draws rows without padding; arrays are int32 `[num_rows, ...]`."""
  tokens = lambda n: rng.integers(2, vocab_size, (num_rows, n), np.int32)
  return {
    "encoder_input_tokens": tokens(num_inputs),
    "decoder_input_tokens": tokens(num_targets),
    "decoder_target_tokens": tokens(num_targets),
    "decoder_loss_weights": np.ones((num_rows, num_targets), np.int32),
  }


def step(
  model: t5.Transformer,
  optimizer: optax.GradientTransformation,
  **settings: Any,
) -> functools.partial:
  """Returns `trainer.train_step` as a run has it, before it is compiled."""
  return functools.partial(
    trainer.train_step,
    model=model,
    optimizer=optimizer,
    loss=losses.LossConfig(),
    **settings,
  )


def jit(
  step_fn: functools.partial, model: t5.Transformer, **options: Any
) -> jax.stages.Wrapped:
  """Returns the program of a step, with the options that a run has."""
  return jax.jit(
    step_fn,
    donate_argnums=0,
    compiler_options=trainer.compiler_options(model.config),
    **options,
  )
