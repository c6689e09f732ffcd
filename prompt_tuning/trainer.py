# SPDX-License-Identifier: Apache-2.0
"""The training step: what the paper's sec. 3 computes, and what it needs.

Parameters are flat dicts from T5X's paths ("encoder/prompt/prompt/prompt") to
arrays, split once into what is trained and what is frozen. Only the former is
differentiated, has optimizer state and is saved.
"""

from collections.abc import Mapping
import math
from typing import NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num
import optax

from prompt_tuning import losses, optim, t5

Params = dict[str, Array]
# int32 `encoder_input_tokens [B,T]`, `decoder_input_tokens`,
# `decoder_target_tokens` and `decoder_loss_weights` `[B,U]`; where rows are
# packed, `encoder_segment_ids` and `decoder_segment_ids` too.
Batch = Mapping[str, Num[Array, "B _"]]


class TrainState(NamedTuple):
  """All that a step changes.

  Attributes:
    step: number of steps taken; it continues from that of the base.
    trainable: the parameters that are trained.
    opt_state: the state of their optimizer.
  """

  step: Int[Array, ""]
  trainable: Params
  opt_state: optax.OptState


class StepMetrics(NamedTuple):
  """What a step reports, float32 scalars on the device.

  Attributes:
    sums: sums over the target tokens of the batch.
    grad_norm: global norm of the gradient.
    learning_rate: of the first rule of the partition that has one, or NaN.
    grad_rms: root mean square of the gradient's elements.
    trainable_rms: that of what is trained, after the step.
    clipped: share of the trained parameters whose update Adafactor has
      clipped; NaN for another optimizer.
  """

  sums: losses.LossSums
  grad_norm: Float[Array, ""]
  learning_rate: Float[Array, ""]
  grad_rms: Float[Array, ""]
  trainable_rms: Float[Array, ""]
  clipped: Float[Array, ""]


def apply(
  model: t5.Transformer,
  params: Params,
  batch: Batch,
  dropout_rng: Key[Array, ""] | None = None,
) -> Float[Array, "B U V"]:
  """Returns the logits of a batch; no dropout without an rng for it."""
  logits = model.apply(
    {"params": traverse_util.unflatten_dict(params, sep="/")},
    batch["encoder_input_tokens"],
    batch["decoder_input_tokens"],
    batch["decoder_target_tokens"],
    batch.get("encoder_segment_ids"),
    batch.get("decoder_segment_ids"),
    enable_dropout=dropout_rng is not None,
    rngs=None if dropout_rng is None else {"dropout": dropout_rng},
  )
  assert isinstance(logits, Array)  # No collection is mutable.
  return logits


def loss_fn(
  trainable: Params,
  frozen: Params,
  batch: Batch,
  dropout_rng: Key[Array, ""] | None,
  *,
  model: t5.Transformer,
  loss: losses.LossConfig,
) -> tuple[Float[Array, ""], losses.LossSums]:
  """Returns what is minimised, and all sums over the tokens."""
  # A prompt may be divided among devices, but none computes with a part.
  whole = {
    name: nn.with_logical_constraint(x, ("prompt", "prompt_embed"))
    for name, x in trainable.items()
    if name.endswith("/prompt")
  }
  logits = apply(model, frozen | trainable | whole, batch, dropout_rng)
  sums = losses.weighted_loss(
    logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"], loss
  )
  return sums.loss, sums


def compiler_options(config: t5.T5Config) -> dict[str, int | str]:
  """Returns XLA's options for a step, to be given to `jax.jit`.

  For a GPU XLA joins products of one input, such as those of an MLP, or query,
  key and value where they are not one array, if the result takes less than 32
  MB, and cuts that up again: in the encoder of a base model this takes longer
  than it saves, in a decoder, below 8 MB, it does not.

  Of products in e4m3 it tries, where the GPU has them, cuBLAS's kernels alone:
  Triton's take two thirds of the time to compile, and are not faster.

  Args:
    config: of the network.
  """
  if jax.default_backend() != "gpu":
    return {}
  options: dict[str, int | str] = {"xla_gpu_dot_merger_threshold_mb": 8}
  capability = getattr(jax.devices()[0], "compute_capability", "0")
  if config.quantization == "float8_products" and float(capability) >= 8.9:
    options["xla_gpu_experimental_autotune_backends"] = (
      "CUBLASLT_FISSION,CUBLASLT,NATIVE_EMITTER,BLOCK_LEVEL_EMITTER"
    )
  return options


def train_step(
  state: TrainState,
  frozen: Params,
  batch: Batch,
  rng: Key[Array, ""],
  *,
  model: t5.Transformer,
  optimizer: optax.GradientTransformation,
  loss: losses.LossConfig,
  num_microbatches: int = 1,
) -> tuple[TrainState, StepMetrics]:
  """Takes one step.

  Args:
    state: what the step changes.
    frozen: the parameters that are not trained.
    batch: its rows are cut into microbatches in order.
    rng: the same for all steps; dropout folds the step into it.
    model: the network.
    optimizer: of the trained parameters.
    loss: z-loss, label smoothing, normalisation.
    num_microbatches: parts whose gradients are summed, one at a time, to save
      memory. A normalised loss is normalised within each, as in T5X.
  """
  rngs = jax.random.split(jax.random.fold_in(rng, state.step), num_microbatches)
  microbatches = jax.tree.map(
    lambda x: nn.with_logical_constraint(  # Each divided among all devices.
      x.reshape(num_microbatches, -1, x.shape[1]), (None, "batch", None)
    ),
    dict(batch),
  )

  def add_microbatch(total: tuple, xs: tuple) -> tuple[tuple, None]:
    grad_fn = jax.grad(loss_fn, has_aux=True)
    new = grad_fn(state.trainable, frozen, *xs, model=model, loss=loss)
    return jax.tree.map(jnp.add, total, new), None

  zeros = jax.tree.map(
    jnp.zeros_like, (state.trainable, losses.LossSums(*[jnp.float32(0)] * 5))
  )
  if num_microbatches == 1:  # Without a loop around the whole step.
    first = jax.tree.map(lambda x: x[0], (microbatches, rngs))
    (grads, sums), _ = add_microbatch(zeros, first)
  else:
    (grads, sums), _ = jax.lax.scan(add_microbatch, zeros, (microbatches, rngs))
  updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
  trainable = optax.apply_updates(state.trainable, updates)
  norm, num_elements = optax.tree.norm, optax.tree.size(trainable)
  metrics = StepMetrics(
    sums,
    grad_norm=norm(grads),
    learning_rate=optim.current_learning_rate(opt_state),
    grad_rms=norm(grads) / math.sqrt(num_elements),
    trainable_rms=norm(trainable) / math.sqrt(num_elements),
    clipped=optim.clipped_share(grads, opt_state),
  )
  return TrainState(state.step + 1, trainable, opt_state), metrics


def eval_step(
  params: Params,
  batch: Batch,
  *,
  model: t5.Transformer,
  loss: losses.LossConfig,
) -> losses.LossSums:
  """Returns the loss of a batch under teacher forcing, without dropout."""
  return loss_fn(params, {}, batch, None, model=model, loss=loss)[1]
