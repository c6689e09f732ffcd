# SPDX-License-Identifier: Apache-2.0
"""Compiles fast what runs once, such as interpreted kernels in their tests."""

import functools

import jax

# These take longer to compile than to run.
fast_jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)
