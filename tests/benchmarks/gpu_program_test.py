# SPDX-License-Identifier: Apache-2.0
"""The list of a program's kernels; a GPU's compiler is not at hand here."""

import subprocess
import sys

import gpu_program
import pytest

PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_add (p.1: bf16[4,8]) -> bf16[4,8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %add.1 = bf16[4,8]{1,0} add(%p.1, %p.1)
}

%body (state.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x.1 = bf16[4,8]{1,0} get-tuple-element(%state.1), index=1
  ROOT %turn = (s32[], bf16[4,8]{1,0}) fusion(%x.1), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/jvp(Transformer)/layers_1/add"}
}

%condition (state.2: (s32[], bf16[4,8])) -> pred[] {
  %state.2 = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%state.2, %state.2), direction=LT
}

%rarely (state.3: (s32[], bf16[4,8])) -> bf16[4,8] {
  %state.3 = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %copy.1 = bf16[4,8]{1,0} copy(%state.3)
}

ENTRY %main (x: bf16[4,8], w: f32[8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %w = f32[8]{0} parameter(1)
  %scaled = bf16[4,8]{1,0} fusion(%x, %w, %x), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/transpose(jvp(Transformer))/layers_0/mul"}
  %pair = (s32[], bf16[4,8]{1,0}) tuple(%w, %scaled)
  %sent = bf16[4,8]{1,0} all-reduce-start(%x), to_apply=%fused_add
  %summed = bf16[4,8]{1,0} all-reduce-done(%sent)
  %branch = bf16[4,8]{1,0} conditional(%w, %pair), branch_computations={%rarely, %rarely}
  ROOT %loop = (s32[], bf16[4,8]{1,0}) while(%pair), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_kernels_are_counted_with_what_they_read_and_write():
  turns, copy, backward, sent = gpu_program.kernels(PROGRAM)
  assert backward.place == "jit(step)/transpose(jvp(Transformer))/layers_0/mul"
  assert (backward.number, backward.num_bytes) == (1, 64 + 64 + 32)
  assert turns.place == "jit(step)/jvp(Transformer)/layers_1/add"
  # The array of a state of 64 + 4 bytes is read, another state is written.
  assert (turns.number, turns.num_bytes) == (5, 5 * (64 + 4 + 64))
  assert (copy.place, copy.num_bytes) == ("copy", 64 + 64 + 4)
  assert (sent.place, sent.num_bytes) == ("all-reduce-start", 64 + 64)


def test_layers_are_taken_together(capsys):
  kernels = [
    gpu_program.Kernel(f"jit(f)/jvp(Transformer)/layers_{i}/mul", 1, 2_000_000)
    for i in range(3)
  ]
  args = gpu_program.argparse.Namespace(lines=1, memory_rate=1e9)
  gpu_program.show(iter(kernels), args)
  _, total, row = capsys.readouterr().out.splitlines()
  assert total.split() == ["3", "6.0", "6.000", "all"]
  assert row.split() == ["3", "6.0", "6.000", "forward", "layers_*/mul"]


@pytest.mark.slow
def test_a_step_is_compiled_for_several_gpus():
  pytest.importorskip("jax_cuda12_plugin", reason="has no compiler for a GPU")
  flags = ["--size=tiny", "--devices=2", "--batch_size=2", "--inputs=30"]
  program = subprocess.run(
    [sys.executable, gpu_program.__file__, *flags],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "all-reduce: 3, " in program.stdout
  assert "all-gather" not in program.stdout  # Kernels too are divided.
