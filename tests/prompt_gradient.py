# SPDX-License-Identifier: Apache-2.0
"""The loss of a network, and its gradient, for tests of how it is computed."""

import functools

import jax

from prompt_tuning import losses, prompt_files, prompts, t5, trainer


@functools.partial(jax.jit, static_argnames="config")
def loss_and_gradient(config, params, batch):
  """Returns the loss, and its gradient with respect to a prompt.

  With dropout, if the network has any: the same one each time.
  """
  model = t5.Transformer(config, prompts.PromptConfig(length=5))
  prompt = jax.random.normal(jax.random.key(0), (5, config.emb_dim))
  run = lambda prompt: trainer.loss_fn(
    {prompt_files.NAME: prompt},
    params,
    batch,
    jax.random.key(1),
    model=model,
    loss=losses.LossConfig(),
  )[0]
  return jax.value_and_grad(run)(prompt)
