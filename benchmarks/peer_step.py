# SPDX-License-Identifier: Apache-2.0
"""Times the step of `gpu_step.py` in PyTorch: transformers with PEFT.

    python benchmarks/peer_step.py --size=base --kind=compiled

T5 1.1 with random bfloat16 weights, frozen, a float32 prompt of 100, 512 input
and 16 target tokens, batch 32, dropout 0.1, Adafactor. As in `gpu_step.py` one
step is in flight while the next is called; the time of a step is the median of
`--steps`, and `compile_s` that of the first. The last line is JSON. Needs
torch, transformers and peft; decode.py --peer alone does too.

Kinds: `eager` and `sdpa` are transformers as it comes. There, `sdpa` gets the
bias of T5 with its heads innermost, which the fused kernels of PyTorch refuse.
`compiled` is `sdpa` under torch.compile, with the bias laid out for them; see
`fast_attention`. `blocks` compiles each block of the network instead, and
leaves embeddings, last norms, logits and loss as they come: four programs
however many blocks there are (`graphs`), where the whole takes minutes. If
`compiled` or `blocks` fails it is tried again with the next of ATTENTION, which
is printed. `attention` says what was asked for, `attention_ops` what a step was
then seen to call: none in a compiled step means the plain products.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import json
import math
import os
import statistics
import time
from typing import Any

ATTENTION = ("cudnn", "efficient", "shipped")  # In the order of their trial.
KINDS = ("eager", "sdpa", "compiled", "blocks")


@contextlib.contextmanager
def fast_attention(first: str) -> Iterator[None]:
  """Lays attention biases out as fused kernels want them, and prefers those.

  A bias becomes contiguous, in rows of a multiple of 8 numbers.

  Args:
    first: the kernel to use if it can be, of ATTENTION; "shipped" changes
      nothing.
  """
  import torch
  from torch.nn.attention import SDPBackend, sdpa_kernel

  if first == "shipped":
    yield
    return
  backends = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.FLASH_ATTENTION,  # The one of a CPU; on a GPU it takes no bias.
    SDPBackend.MATH,
  ][ATTENTION.index(first) :]
  functional = torch.nn.functional
  attend = functional.scaled_dot_product_attention

  def aligned(*args: Any, attn_mask: Any = None, **options: Any) -> Any:
    if attn_mask is not None:
      width = attn_mask.shape[-1]
      padded = functional.pad(attn_mask, (0, -width % 8))
      attn_mask = padded.contiguous()[..., :width]
    return attend(*args, attn_mask=attn_mask, **options)

  functional.scaled_dot_product_attention = aligned
  try:
    with sdpa_kernel(backends, set_priority=True):
      yield
  finally:
    functional.scaled_dot_product_attention = attend


def network(args: argparse.Namespace, device: str) -> Any:
  """Returns the model that is measured, drawn where it is used."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # Or JAX would take the GPU's memory.
  import peft
  import sizes
  import torch
  import transformers

  config = sizes.of_transformers(
    args.size, dropout_rate=args.dropout, use_cache=False
  )
  with torch.device(device):
    base = transformers.AutoModelForSeq2SeqLM.from_config(
      config,
      dtype=torch.bfloat16,
      attn_implementation="eager" if args.kind == "eager" else "sdpa",
    )
  prompt = peft.PromptTuningConfig(
    task_type="SEQ_2_SEQ_LM",
    num_virtual_tokens=args.prompt,
    num_transformer_submodules=1,  # Or PEFT makes an unused one for a decoder.
  )
  return peft.get_peft_model(base, prompt).train()


def start(args: argparse.Namespace, device: str) -> Callable[[], Any]:
  """Returns the step, which returns its loss without waiting for it."""
  import torch
  import transformers

  torch.manual_seed(0)
  model = network(args, device)
  rows = args.batch_size // args.micro_batches
  top = model.config.vocab_size
  tokens = lambda n: torch.randint(2, top, (rows, n), device=device)
  batches = [
    (tokens(args.inputs), tokens(args.targets))
    for _ in range(args.micro_batches)
  ]
  mask = torch.ones_like(batches[0][0])
  optimizer = transformers.Adafactor(
    [x for x in model.parameters() if x.requires_grad],
    lr=0.3,
    weight_decay=1e-5,
    scale_parameter=False,
    relative_step=False,
  )
  if args.kind == "compiled":
    model = torch.compile(model, dynamic=False)
  if args.kind == "blocks":
    for block in (
      *model.base_model.encoder.block,
      *model.base_model.decoder.block,
    ):
      block.compile(dynamic=False)

  def step() -> torch.Tensor:
    for inputs, targets in batches:
      loss = model(inputs, attention_mask=mask, labels=targets).loss
      (loss / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

  return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """Measures a size, with the attention that is in force."""
  import torch

  is_cuda = torch.cuda.is_available()
  torch._dynamo.utils.counters.clear()
  step = start(args, "cuda" if is_cuda else "cpu")
  started = time.perf_counter()
  losses = [float(step())]
  compile_s = time.perf_counter() - started
  if is_cuda:
    torch.cuda.reset_peak_memory_stats()
  seconds, waiting = [], []
  started = time.perf_counter()
  for _ in range(args.steps + 3):
    losses.append(step())
    if is_cuda:
      waiting.append(torch.cuda.Event())
      waiting[-1].record()
      waiting[-2:][0].synchronize()
    now = time.perf_counter()
    seconds.append(now - started)
    started = now
  assert all(math.isfinite(loss) for loss in losses)
  peak = torch.cuda.max_memory_allocated() if is_cuda else 0
  with torch.profiler.profile(
    activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
  ) as profile:
    step()
  return {
    "step_ms": 1e3 * statistics.median(seconds[3:]),
    "peak_gib": peak / 2**30,
    "compile_s": compile_s,
    "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    "attention_ops": [
      x.key for x in profile.key_averages() if "_scaled_dot" in x.key
    ],
  }


def main() -> None:
  """Prints what was measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", default="base")
  parser.add_argument("--kind", choices=KINDS, default="compiled")
  parser.add_argument(
    "--attention",
    choices=ATTENTION,
    default="cudnn",
    help="the first that `compiled` and `blocks` try",
  )
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--micro_batches", type=int, default=1)
  parser.add_argument("--inputs", type=int, default=512)
  parser.add_argument("--targets", type=int, default=16)
  parser.add_argument("--prompt", type=int, default=100)
  parser.add_argument("--dropout", type=float, default=0.1)
  parser.add_argument("--steps", type=int, default=12)
  args = parser.parse_args()
  if args.batch_size % args.micro_batches:
    parser.error("--batch_size must be divisible by --micro_batches")
  import peft
  import torch
  import transformers

  is_compiled = args.kind in ("compiled", "blocks")
  first = args.attention if is_compiled else "shipped"
  for attention in ATTENTION[ATTENTION.index(first) :]:
    try:
      with fast_attention(attention):
        found = measure(args)
      break
    except RuntimeError as error:
      is_full = isinstance(error, torch.OutOfMemoryError)
      if is_full or attention == "shipped":
        raise
      print(f"attention {attention} failed: {error}", flush=True)
      torch.compiler.reset()
  labels = {"size": args.size, "kind": args.kind, "attention": attention}
  versions = {x.__name__: x.__version__ for x in (torch, transformers, peft)}
  print(json.dumps(found | labels | versions))


if __name__ == "__main__":
  main()
