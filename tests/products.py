# SPDX-License-Identifier: Apache-2.0
"""The products that a function computes, for tests of what is computed."""

import jax
import jax.extend
from jax.interpreters import partial_eval as pe


def products(function, *arguments):
  """Returns the results of all products that are needed, and of what they are.

  Shapes, each with the dtype of the first factor.
  """
  jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
  jaxpr, _ = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  found = []

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "dot_general":
        result, factor = equation.outvars[0].aval, equation.invars[0].aval
        found.append((result.shape, factor.dtype))
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        visit(inner)

  visit(jaxpr)
  return found
