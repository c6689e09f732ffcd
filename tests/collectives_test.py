# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning import collectives, partitioning


def test_collectives_are_counted_with_their_bytes():
  program = """
    %a = f32[4,8]{1,0} all-gather(%x), dimensions={0}
    %b = (f32[2]{0}, bf16[3]{0}) all-reduce(%y, %z), to_apply=%add
    %c = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
    %d = f32[16]{0} all-gather-done(%c)
    %e = pred[] all-reduce(%p), to_apply=%or
    %f = ((f32[7]{0}), f32[7]{0}) all-reduce-start(%q), to_apply=%add
    %g = f32[7]{0} all-reduce-done(%f)
    %h = (f32[5]{0}, f32[6]{0}) all-reduce-start(%r, %s), to_apply=%add
  """
  assert collectives.count(program) == {
    "all-gather": (2, 4 * 8 * 4 + 16 * 4),
    "all-reduce": (4, 2 * 4 + 3 * 2 + 1 + 7 * 4 + 5 * 4 + 6 * 4),
  }


def test_those_of_a_loop_are_counted_once_a_turn():
  def add_up(x):
    """Sums over the devices in each turn of two loops, one in the other."""
    turn = lambda x, _: (x - jnp.tanh(x).sum(axis=0, keepdims=True), None)
    turns = lambda x, _: jax.lax.scan(turn, x, length=3)
    return jax.lax.scan(turns, x, length=2)[0]

  with partitioning.use(partitioning.MeshConfig()) as mesh:
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((4, 5), jnp.float32, sharding=rows)
    program = jax.jit(add_up).lower(x).compile().as_text()
  assert collectives.count(program) == {"all-reduce": (6, 6 * 5 * 4)}


def test_a_program_for_a_tpu_is_read_too():
  """Its loops note no number of turns, its gathers are spread over fusions."""
  program = """
%start (x: bf16[2]) -> bf16[8] {
  %gather.1 = bf16[8]{0:T(8)} all-gather(%x), channel_id=7, dimensions={0}
}
%done (x: bf16[8]) -> bf16[8] {
  %gather.2 = bf16[8]{0:T(8)} all-gather(%x), channel_id=7, dimensions={0}
}
%condition (state: (s32[], bf16[2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
%body (state: (s32[], bf16[2])) -> (s32[], bf16[2]) {
  %a = bf16[8]{0:T(8)} fusion(%x), kind=kCustom, calls=%start
  %b = bf16[8]{0:T(8)} fusion(%a), kind=kCustom, calls=%done
}
ENTRY %main (x: bf16[2]) -> bf16[2] {
  %loop = (s32[], bf16[2]) while(%state), condition=%condition, body=%body
}
"""
  assert collectives.count(program) == {"all-gather": (24, 24 * 8 * 2)}
