# SPDX-License-Identifier: Apache-2.0
"""Compiles a program as runs do, where a tolerance asks for it.

The other tests compile with little optimisation; see conftest.py.
"""

import functools

import jax

jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
  },
)
