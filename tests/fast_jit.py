# SPDX-License-Identifier: Apache-2.0
"""Compiles interpreted kernels fast, for their tests."""

import functools

import jax

# Interpreted kernels take longer to compile than to run.
fast_jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)
