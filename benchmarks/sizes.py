# SPDX-License-Identifier: Apache-2.0
"""The sizes of T5 1.1 that benchmarks measure, and what a step costs them."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning import pretrained, prompt_files, t5

SIZES = {
  "tiny": t5.T5Config(
    vocab_size=8192,
    emb_dim=64,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=16,
    mlp_dim=128,
  ),
  "small": t5.T5Config(),
  "base": t5.T5Config(
    emb_dim=768,
    num_heads=12,
    num_encoder_layers=12,
    num_decoder_layers=12,
    mlp_dim=2048,
  ),
  "large": t5.T5Config(
    emb_dim=1024,
    num_heads=16,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=2816,
  ),
  "xl": t5.T5Config(
    emb_dim=2048,
    num_heads=32,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=5120,
  ),
  "xxl": t5.T5Config(
    emb_dim=4096,
    num_heads=64,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=10240,
  ),
  "english_1m": t5.T5Config(
    vocab_size=8192,
    emb_dim=128,
    num_heads=2,
    num_encoder_layers=3,
    num_decoder_layers=2,
    mlp_dim=256,
  ),
  "english_4m": t5.T5Config(
    vocab_size=8192,
    emb_dim=256,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=2,
    mlp_dim=448,
  ),
  "english_16m": t5.T5Config(
    vocab_size=8192,
    emb_dim=384,
    num_encoder_layers=4,
    num_decoder_layers=4,
  ),
  "english_60m": t5.T5Config(vocab_size=8192, num_heads=8, mlp_dim=1408),
}


def of_dtype(size: str, dtype: str) -> t5.T5Config:
  """Returns a size as a run has it, activations and weights in one dtype."""
  dtype = jnp.dtype(dtype)
  return dataclasses.replace(
    SIZES[size], dtype=dtype, param_dtype=dtype, attention="auto"
  )


def of_transformers(size: str, **options: Any) -> Any:
  """Returns a size as a config of transformers, with more of its options."""
  import transformers

  config = SIZES[size]
  return transformers.T5Config(
    vocab_size=config.vocab_size,
    d_model=config.emb_dim,
    d_kv=config.head_dim,
    d_ff=config.mlp_dim,
    num_layers=config.num_encoder_layers,
    num_decoder_layers=config.num_decoder_layers,
    num_heads=config.num_heads,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,  # Of T5 1.1; transformers 5 ties them anyway.
    decoder_start_token_id=0,
    **options,
  )


def random_params(
  model: t5.Transformer,
  places: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, jax.Array]:
  """Draws weights, small enough for bfloat16, and moves each to its place."""
  shapes = t5.param_shapes(model)
  keys = jax.random.split(jax.random.key(0, impl="rbg"), len(shapes))
  draw = jax.jit(
    lambda key, shape, dtype: 0.02 * jax.random.normal(key, shape, dtype),
    static_argnums=(1, 2),
  )
  result = {}
  for key, (name, x) in zip(keys, shapes.items(), strict=True):
    drawn = draw(key, x.shape, x.dtype)
    if name.endswith("norm/scale"):  # Of about 1, or inputs are only copied.
      drawn += 1
    result[name] = jax.device_put(
      drawn, None if places is None else places[name]
    )
  return result


def write_base(path: str, config: t5.T5Config) -> None:
  """Writes a base of random weights, as `random_params` draws them."""
  pretrained.save(path, random_params(t5.Transformer(config)), 0, {})


def step_flops(
  config: t5.T5Config,
  *,
  batch_size: int,
  num_inputs: int,
  num_targets: int,
  prompt_length: int,
  is_frozen: bool = True,
) -> float:
  """Counts the floating-point operations of a training step.

  Two for each multiplication and addition of the matrix products: one product
  forward and one for the gradient of its input. The two products of attention,
  whose operands both have a gradient, cost four more. A trained weight costs a
  third product. Nothing is counted twice for what is computed again, and
  nothing for all other operations.

  Args:
    config: the sizes.
    batch_size: rows.
    num_inputs: input positions without the prompt.
    num_targets: target positions.
    prompt_length: positions of the prompt.
    is_frozen: only the prompt is trained; otherwise all weights.
  """
  num_encoded = batch_size * (num_inputs + prompt_length)
  num_decoded = batch_size * num_targets
  width, inner = config.emb_dim, config.num_heads * config.head_dim
  mlp = (len(config.mlp_activations) + 1) * width * config.mlp_dim
  attention = 4 * width * inner
  weights = (
    num_encoded * config.num_encoder_layers * (attention + mlp)
    + num_decoded * config.num_decoder_layers * (1.5 * attention + mlp)
    + num_encoded * config.num_decoder_layers * 0.5 * attention
    + num_decoded * width * config.vocab_size
  )
  pairs = inner * (
    config.num_encoder_layers * num_encoded * (num_inputs + prompt_length)
    + config.num_decoder_layers
    * num_decoded
    * (num_targets + num_inputs + prompt_length)
  )
  return 2.0 * weights * (2 if is_frozen else 3) + 2.0 * 2 * pairs * 3


def split_prompt(
  params: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the prompt in float32, and all else, or what describes them."""
  prompt = params.pop(prompt_files.NAME)
  if isinstance(prompt, jax.ShapeDtypeStruct):
    prompt = prompt.update(dtype=jnp.float32)
  else:
    prompt = prompt.astype(jnp.float32)
  return {prompt_files.NAME: prompt}, params
