# SPDX-License-Identifier: Apache-2.0
"""Times greedy decoding with a prompt, beside transformers with PEFT.

    python benchmarks/decode.py --sizes=base,xl --peer

T5 1.1 with random weights in bfloat16, prompt 100, 512 input tokens, 16 tokens
generated in every row, batches of 32 and 1. Without `--peer` it runs where
torch is not. Each figure is the median of `--repeats`, waited for each time.
"""

import argparse
from collections.abc import Callable
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import sizes

from prompt_tuning import decoding, prompt_files, prompts, t5

NUM_NEW, PROMPT_LENGTH, INPUT_LENGTH = 16, 100, 512


def median_ms(call: Callable[[], object], repeats: int) -> float:
  """Calls twice to warm up, then measures; `call` waits for its result."""
  seconds = []
  for _ in range(repeats + 2):
    started = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - started)
  return 1e3 * statistics.median(seconds[2:])


def ours(size: str, batch_sizes: list[int], repeats: int) -> list[float]:
  """Times our own greedy decoding."""
  model = t5.Transformer(
    sizes.of_dtype(size, "bfloat16"),
    prompt=prompts.PromptConfig(length=PROMPT_LENGTH),
  )
  params = sizes.random_params(model)
  params[prompt_files.NAME] = params[prompt_files.NAME].astype(jnp.float32)
  greedy = jax.jit(
    lambda params, tokens: decoding.greedy(
      params, tokens, model=model, max_decode_length=NUM_NEW
    )
  )
  result = []
  for batch_size in batch_sizes:
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(
      rng.integers(
        2, model.config.vocab_size, (batch_size, INPUT_LENGTH), dtype=np.int32
      )
    )
    found = np.asarray(greedy(params, tokens))
    assert (found[:, :-1] > 1).all(), "a row ended early: draw other weights"
    call = lambda tokens=tokens: jax.block_until_ready(greedy(params, tokens))
    result.append(median_ms(call, repeats))
  return result


def peer(size: str, batch_sizes: list[int], repeats: int) -> list[float]:
  """Times transformers' `generate` with a PEFT prompt."""
  import peft
  import torch
  import transformers

  config = sizes.of_transformers(size)
  with torch.device("cuda"):
    base = transformers.T5ForConditionalGeneration(config).to(torch.bfloat16)
  prompted = peft.get_peft_model(
    base,
    peft.PromptTuningConfig(
      task_type="SEQ_2_SEQ_LM", num_virtual_tokens=PROMPT_LENGTH
    ),
  ).eval()
  result = []
  for batch_size in batch_sizes:
    tokens = torch.randint(2, 32000, (batch_size, INPUT_LENGTH), device="cuda")

    def call(tokens: torch.Tensor = tokens) -> None:
      with torch.inference_mode():
        prompted.generate(
          input_ids=tokens,
          attention_mask=torch.ones_like(tokens),
          min_new_tokens=NUM_NEW,
          max_new_tokens=NUM_NEW,
          do_sample=False,
        )
      torch.cuda.synchronize()

    result.append(median_ms(call, repeats))
  return result


def main() -> None:
  """Prints a table, a row as soon as it is measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", default="base,xl")
  parser.add_argument("--batch_sizes", default="32,1")
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--peer", action="store_true")
  args = parser.parse_args()
  batch_sizes = [int(x) for x in args.batch_sizes.split(",")]
  print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
  for size in args.sizes.split(","):
    sides = [("ours", ours)] + ([("transformers", peer)] if args.peer else [])
    for name, side in sides:
      found = side(size, batch_sizes, args.repeats)
      cells = "  ".join(
        f"batch {batch_size}: {ms:8.1f} ms"
        for batch_size, ms in zip(batch_sizes, found, strict=True)
      )
      print(f"{size:<6} {name:<13} {cells}", flush=True)


if __name__ == "__main__":
  main()
