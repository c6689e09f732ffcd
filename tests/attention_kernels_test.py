# SPDX-License-Identifier: Apache-2.0
"""Attention in one kernel: what it computes, and its gradients."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import attention, flash_attention, relative_position


def reference(query, key, value, bias, factors, lengths):
  """What the kernel is documented to compute."""
  logits = jnp.einsum("BQHK,BNHK->BHQN", query, key)
  if bias is not None:
    logits += relative_position.of_pairs(bias, query.shape[1])[None]
  is_key = jnp.arange(key.shape[1])[None] < lengths[:, None]
  logits = jnp.where(is_key[:, None, None, :], logits, -1e10)
  weights = jax.nn.softmax(logits)
  if factors is not None:
    weights *= factors
  return jnp.einsum("BHQN,BNHK->BQHK", weights, value)


def example(num_queries, num_keys, *, with_bias, with_factors):
  """Returns arguments of `attend` in float32, and weights of its output.

  The bias may be "causal".
  """
  keys = jax.random.split(jax.random.key(0), 6)
  normal = lambda i, length: jax.random.normal(keys[i], (2, length, 2, 16))
  bias = factors = None
  if with_bias:
    reach = relative_position.MAX_DISTANCE
    distances = np.clip(np.arange(1 - num_queries, num_keys), -reach, reach)
    bias = jax.random.normal(keys[4], (2, 2 * reach + 1))[:, distances + reach]
    if with_bias == "causal":
      bias = relative_position.causal(bias, masked=attention.MASKED_LOGIT)
  if with_factors:
    is_kept = jax.random.bernoulli(keys[5], 0.7, (2, 2, 1, num_keys))
    factors = is_kept / 0.7
  arrays = normal(0, num_queries), normal(1, num_keys), normal(2, num_keys)
  lengths = jnp.array([num_keys, num_keys // 3])
  return (*arrays, bias, factors, lengths), normal(3, num_queries)


@pytest.mark.parametrize(
  ("num_queries", "num_keys", "with_bias", "with_factors"),
  [
    (330, 330, True, True),  # Blocks far apart have no tile of their own.
    pytest.param(200, 200, "causal", False, marks=pytest.mark.slow),
    pytest.param(5, 150, False, True, marks=pytest.mark.slow),
  ],
)
def test_the_kernel_computes_what_the_reference_does(
  num_queries, num_keys, with_bias, with_factors
):
  """In 16 bits on a GPU, with that much less precision."""
  on_gpu = jax.default_backend() == "gpu"
  dtype, tolerance = (jnp.bfloat16, 0.02) if on_gpu else (jnp.float32, 1e-5)
  arguments, weights = example(
    num_queries, num_keys, with_bias=with_bias, with_factors=with_factors
  )
  *arrays, lengths = arguments

  def total(attend, *arrays):
    output = attend(*arrays, lengths).astype(jnp.float32)
    return jnp.sum(output * weights), output

  wanted = (0, 1, 2, 3) if with_bias else (0, 1, 2)
  grad = lambda attend: jax.jit(
    jax.grad(functools.partial(total, attend), wanted, has_aux=True)
  )
  found = grad(flash_attention.attend)(
    *jax.tree.map(lambda x: x.astype(dtype), arrays)
  )
  expected = grad(reference)(*arrays)
  for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    error = jnp.linalg.norm(one.astype(jnp.float32) - other)
    assert error < tolerance * jnp.linalg.norm(other)


@pytest.mark.parametrize(
  "dtype", [jnp.float16, pytest.param(jnp.float32, marks=pytest.mark.slow)]
)
def test_logits_may_be_large(dtype):
  """Also those of the queries with which a kernel fills up its last block."""
  arguments, weights = example(40, 40, with_bias=True, with_factors=False)
  *arrays, bias, _, lengths = arguments
  large = 12 if dtype == jnp.float16 else 95  # exp() of it is infinite.
  total = lambda *arrays: jnp.sum(
    flash_attention.attend(*arrays, None, lengths).astype(jnp.float32) * weights
  )
  given = [x.astype(dtype) for x in (*arrays, bias + large)]
  for found in jax.jit(jax.grad(total, (0, 1, 2, 3)))(*given):
    assert jnp.isfinite(found).all()


@pytest.mark.parametrize(
  "trained", ["first", pytest.param("both", marks=pytest.mark.slow)]
)
def test_parts_have_the_gradients_of_a_whole(trained):
  """Those of the first alone, if the others are not differentiated."""
  arguments, weights = example(40, 40, with_bias=True, with_factors=True)
  query, key, value, *others = arguments
  split = lambda x: (x[:, :6], x[:, 6:])

  def total(attend, first, second):
    joined = zip(first, second, strict=True)
    return jnp.sum(attend(*joined, *others) * weights)

  def whole(*arguments):
    *parts, bias, factors, lengths = arguments
    joined = (jnp.concatenate(x, axis=1) for x in parts)
    return reference(*joined, bias, factors, lengths)

  parts = list(zip(*map(split, (query, key, value)), strict=True))
  wanted = (0,) if trained == "first" else (0, 1)
  grad = lambda attend: jax.grad(functools.partial(total, attend), wanted)
  found = jax.jit(grad(flash_attention.attend))(*parts)
  expected = jax.jit(grad(whole))(*parts)
  for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  jaxpr = jax.make_jaxpr(grad(flash_attention.attend))(*parts)
  outputs = [
    [out.aval.shape for out in equation.outvars]
    for equation in jaxpr.eqns
    if equation.primitive.name == "pallas_call"
  ]
  of_key = (2, 6 if trained == "first" else 40, 2, 16)
  assert outputs[-1] == [of_key, of_key]


@pytest.mark.parametrize(
  "trained",
  [
    "whole",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("first", "both")),
  ],
)
def test_one_array_of_all_three_gives_the_same(trained):
  """With the gradients of query, key and value in one array, too."""
  arguments, weights = example(40, 40, with_bias=True, with_factors=True)
  *arrays, bias, factors, lengths = arguments
  split = lambda x: (x,) if trained == "whole" else (x[:, :6], x[:, 6:])
  parts = list(zip(*map(split, arrays), strict=True))
  wanted = (0, 1) if trained == "both" else (0,)
  given = lambda x: x[0] if trained == "whole" else tuple(x)

  def separately(*parts):
    arrays = (given(x) for x in zip(*parts, strict=True))
    output = flash_attention.attend(*arrays, bias, factors, lengths)
    return jnp.sum(output * weights), output

  def jointly(*parts):
    output = flash_attention.attend_jointly(
      given(parts), bias, factors, lengths
    )
    return jnp.sum(output * weights), output

  grad = lambda call: jax.jit(jax.grad(call, wanted, has_aux=True))
  expected, output = grad(separately)(*parts)
  stacked = [jnp.stack(x, axis=2) for x in parts]
  found, joint_output = grad(jointly)(*stacked)
  np.testing.assert_array_equal(joint_output, output)
  for one, others in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, jnp.stack(others, axis=2))


@pytest.mark.parametrize("trained", [False, True])
def test_the_kernels_are_lowered_for_a_gpu(monkeypatch, trained):
  """Also a batch of them; and only a trained bias has a gradient."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  arguments, _ = example(330, 330, with_bias=True, with_factors=True)
  *arrays, lengths = arguments
  arrays = [x.astype(jnp.bfloat16) for x in arrays]

  def total(*arrays):
    output = flash_attention.attend(*arrays, lengths)
    return jnp.sum(output.astype(jnp.float32))

  grad = jax.grad(total, (0, 1, 2, 3) if trained else (0, 1, 2))
  batched = jax.vmap(grad, in_axes=(0, None, 0, 0, 0))
  query, key, value, bias, factors = arrays
  stack = lambda x: jnp.stack([x, x])
  for call, given in (
    (grad, arrays),
    (batched, (stack(query), key, stack(value), stack(bias), stack(factors))),
  ):
    lowered = jax.jit(call).trace(*given).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("gpu$xla.gpu.triton") == (4 if trained else 3)


def test_the_gradient_of_one_array_is_completed_in_place(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  (query, _, _, *others), _ = example(
    330, 330, with_bias=True, with_factors=True
  )
  joined = jnp.stack([query] * 3, axis=2).astype(jnp.bfloat16)

  def total(joined):
    output = flash_attention.attend_jointly(joined, *others)
    return jnp.sum(output.astype(jnp.float32))

  lowered = jax.jit(jax.grad(total)).trace(joined)
  text = lowered.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("gpu$xla.gpu.triton") == 3
  assert text.count("output_operand_alias<") == 1


def test_a_mesh_divides_rows_and_heads():
  arguments, _ = example(37, 37, with_bias=True, with_factors=True)
  mesh = jax.sharding.AbstractMesh(
    (2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  total = lambda *arguments: jnp.sum(flash_attention.attend(*arguments))
  grad = jax.grad(total, (0, 1, 2, 3))
  with jax.sharding.use_abstract_mesh(mesh):
    jaxpr = str(jax.make_jaxpr(grad)(*arguments))
  assert jaxpr.count("shard_map") == 4
  assert "f32[1,37,1,16]" in jaxpr  # Of one row and one head.
  assert "psum" in jaxpr  # Of the bias: over all rows.

  *arrays, bias, factors, lengths = arguments
  joined = jnp.stack(arrays, axis=2)
  total = lambda x: jnp.sum(
    flash_attention.attend_jointly(x, bias, factors, lengths)
  )
  with jax.sharding.use_abstract_mesh(mesh):
    jaxpr = str(jax.make_jaxpr(jax.grad(total))(joined))
  assert jaxpr.count("shard_map") == 3
  assert "f32[1,37,3,1,16]" in jaxpr


@pytest.mark.slow
def test_devices_compute_what_one_does():
  script = pathlib.Path(__file__).parent / "divided_attention.py"
  result = subprocess.run(
    [sys.executable, str(script)], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr
