# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given targets; rank classification over labels."""

from typing import NamedTuple

from flax import traverse_util
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from prompt_tuning import losses, t5, trainer
from prompt_tuning.decoding import steps


class TargetScores(NamedTuple):
  """Log-probabilities of the targets of a batch.

  Attributes:
    sums: over the tokens of each row.
    means: per token; 0 for a row without any.
    tokens: of each token, times its loss weight.
  """

  sums: Float[Array, " B"]
  means: Float[Array, " B"]
  tokens: Float[Array, "B U"]


def target_scores(
  logits: Float[Array, "B U V"],
  targets: Int[Array, "B U"],
  weights: Num[Array, "B U"],
) -> TargetScores:
  """Scores targets under the logits of their positions, in float32."""
  weights = weights.astype(jnp.float32)
  tokens = -losses.cross_entropy(logits, targets)[0] * weights
  sums = jnp.sum(tokens, axis=1)
  return TargetScores(
    sums, sums / jnp.maximum(jnp.sum(weights, axis=1), 1.0), tokens
  )


def score_targets(
  params: trainer.Params,
  batch: trainer.Batch,
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
) -> TargetScores:
  """Returns the log-probabilities of the targets of each row.

  Args:
    params: all parameters, by path.
    batch: as in training; `decoder_loss_weights` says which tokens count.
    prompt_lengths: see `t5.Transformer.encode`.
    model: the network.
  """
  targets = batch["decoder_target_tokens"]
  logits = model.apply(
    {"params": traverse_util.unflatten_dict(params, sep="/")},
    batch["encoder_input_tokens"],
    batch["decoder_input_tokens"],
    targets,
    enable_dropout=False,
    prompt_lengths=prompt_lengths,
  )
  assert isinstance(logits, Array)  # No collection is mutable.
  return target_scores(logits, targets, batch["decoder_loss_weights"])


def score_labels(
  params: trainer.Params,
  encoder_input_tokens: Int[Array, "B T"],
  label_tokens: Int[Array, "N U"],
  prompt_lengths: Int[Array, " B"] | None = None,
  *,
  model: t5.Transformer,
  per_token: bool = False,
) -> Float[Array, "B N"]:
  """Returns the log-probability of every label after every input.

  Rank classification predicts the label with the highest. Each input is
  encoded once, whatever the number of labels; keys and values of the encoded
  input are shared too.

  Args:
    params: all parameters, by path.
    encoder_input_tokens: 0 is padding.
    label_tokens: the candidates, with EOS where it shall count; 0 is padding.
    prompt_lengths: see `t5.Transformer.encode`.
    model: the network.
    per_token: divide by the label's number of tokens, against the advantage
      of short labels. The sum otherwise, as in T5X.
  """
  variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
  encoded = steps.encode(
    params, encoder_input_tokens, prompt_lengths, model=model
  )
  num_rows, num_labels = encoder_input_tokens.shape[0], label_tokens.shape[0]
  targets = jnp.tile(label_tokens, (num_rows, 1))
  logits = model.apply(
    variables,
    encoded,
    encoder_input_tokens,
    jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    targets,
    enable_dropout=False,
    prompt_lengths=prompt_lengths,
    method=model.decode,
  )
  assert isinstance(logits, Array)  # No collection is mutable.
  weights = (targets > 0).astype(jnp.float32)
  scores = target_scores(logits, targets, weights)
  found = scores.means if per_token else scores.sums
  return found.reshape(num_rows, num_labels)
