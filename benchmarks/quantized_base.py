# SPDX-License-Identifier: Apache-2.0
"""What 8 bits do to a pretrained base: its loss, and the gradient of a prompt.

    python -m prompt_tuning.cache_task ... --gin.CACHE_DIR="'/tmp/sst2'"
    python benchmarks/quantized_base.py --cache=/tmp/sst2

For each QUANTIZATION: bytes of the parameters, the loss per target token, and
the cosine of the prompt's gradient with that on the base as it is, over the
first batches of a tokenised cache in the base's vocabulary. The prompt is the
embeddings of the most frequent tokens, or a trained one (`--prompt_file`). No
dropout. The score after training on such a base is that of
`python -m prompt_tuning.train` with QUANTIZATION.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import real_lengths

from prompt_tuning import (
  base_sizes,
  batching,
  losses,
  pretrained,
  prompt_files,
  prompts,
  quantization,
  t5,
  task_data,
  trainer,
  weights,
)


def batches(args: argparse.Namespace) -> Iterator[batching.Batch]:
  """Yields the first batches of the cache."""
  stream = task_data.train_batches(
    real_lengths.read_cache(args.cache),
    batch_size=args.batch_size,
    seed=0,
    start_step=0,
  )
  for _, batch in zip(range(args.batches), stream, strict=False):
    yield batch


@functools.partial(jax.jit, static_argnames="model")
def loss_and_gradient(
  prompt: jax.Array,
  params: trainer.Params,
  batch: batching.Batch,
  *,
  model: t5.Transformer,
) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of a batch, and the gradient of the prompt."""
  run = lambda prompt: trainer.loss_fn(
    {prompt_files.NAME: prompt},
    params,
    batch,
    None,
    model=model,
    loss=losses.LossConfig(),
  )[0]
  return jax.value_and_grad(run)(prompt)


def main() -> None:
  """Prints a line for each kind."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--cache", required=True)
  parser.add_argument("--base", default=weights.english_4m())
  parser.add_argument("--prompt_file")
  parser.add_argument("--prompt", type=int, default=20)
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--batches", type=int, default=8)
  args = parser.parse_args()
  sizes = dataclasses.replace(
    base_sizes.read(args.base), dtype=jnp.dtype(args.dtype), dropout_rate=0.0
  )
  prompt = None
  if args.prompt_file is not None:
    prompt = jnp.asarray(prompt_files.load(args.prompt_file).prompt)
  data = list(batches(args))
  exact = []
  for kind in quantization.KINDS:
    model = t5.Transformer(dataclasses.replace(sizes, quantization=kind))
    base = pretrained.load(args.base, t5.param_shapes(model)).params
    if prompt is None:
      prompt = base["token_embedder/embedding"][2 : 2 + args.prompt]
    params = quantization.quantize(base, kind)
    model = model.clone(prompt=prompts.PromptConfig(length=len(prompt)))
    found = [
      jax.device_get(loss_and_gradient(prompt, params, batch, model=model))
      for batch in data
    ]
    exact = exact or found
    num_tokens = [np.sum(batch["decoder_loss_weights"]) for batch in data]
    cosines = [
      cosine(a, b) for (_, a), (_, b) in zip(found, exact, strict=True)
    ]
    print(
      f"{kind:<16} {sum(x.nbytes for x in params.values()) / 2**20:8.2f} MiB,"
      f" loss {sum(x for x, _ in found) / sum(num_tokens):.4f}, cosine"
      f" {np.mean(cosines):.4f}, least {min(cosines):.4f}",
      flush=True,
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the cosine of the angle between two arrays."""
  return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
  main()
