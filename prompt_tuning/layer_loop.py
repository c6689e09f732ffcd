# SPDX-License-Identifier: Apache-2.0
"""The layers of a stack, one after the other, and what they keep."""

from collections.abc import Callable, Mapping
import operator
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning import (
  attention,
  dropout,
  flash_attention,
  layers,
  unprojected_attention,
)
from prompt_tuning.t5_config import T5Config

# The sum of a layer's residual branch; a name for `jax.checkpoint`.
RESIDUAL = "residual"

# A layer, its input and the factors of its dropout -> its output.
_Apply = Callable[..., Float[Array, "B S D"]]


def run_layers(
  parent: nn.Module,
  layer_type: type[nn.Module],
  num_layers: int,
  apply: _Apply,
  x: attention.Features,
  config: T5Config,
  factors: dropout.Factors | None,
) -> Float[Array, "B S D"]:
  """Runs the layers of a stack, submodules of `parent`, one after the other.

  They are scanned where `parent` has their parameters stacked; see
  `layer_stacking`. Otherwise a program has each of them, but layers of the same
  shapes are traced as one function, which saves most of the time before XLA;
  not where variables are written, as in decoding, nor in an eager call.

  Args:
    parent: the encoder or decoder.
    layer_type: of the layers.
    num_layers: how many.
    apply: of a layer, its input and the factors of its dropout.
    x: input of the first layer, that of the encoder perhaps in two parts.
    config: the sizes.
    factors: of the dropout in all layers, from `dropout.draw_for_layers`.
  """
  if not parent.is_initializing():
    in_scan = parent.has_variable("params", "layers")
    apply = _rematerialized(apply, config, in_scan=in_scan)
    if in_scan:
      x = jnp.concatenate(jax.tree.leaves(x), axis=1)
      scan = nn.scan(
        lambda layer, x, own: (apply(layer, x, own), None),
        variable_axes={"params": 0},
        split_rngs={},
        length=num_layers,
      )
      return scan(layer_type(config, name="layers"), x, factors)[0]
  assert parent.scope is not None  # It is being called.
  one = None
  # What a layer writes, such as a cache, belongs to it alone. And a call that
  # is not compiled is to compile nothing.
  if not parent.scope.mutable and _is_compiled(x):
    one = _traced_once(layer_type(config, parent=None), apply)
  for i in range(num_layers):
    own = jax.tree.map(operator.itemgetter(i), factors)
    name = f"layers_{i}"
    params: Mapping[str, Any] | None = parent.get_variable("params", name)
    if one is None or params is None:  # Then Flax says what is missing.
      x = apply(layer_type(config, name=name), x, own)
    else:
      with jax.named_scope(name):
        x = one(params, x, own)
  assert isinstance(x, Array)  # There is a layer.
  return x


def _is_compiled(x: attention.Features) -> bool:
  """Tells whether a call is traced for a program; true in an eager vmap too."""
  part = jax.tree.leaves(x)[0]
  if not isinstance(part, jax.core.Tracer):
    return False
  return part.to_concrete_value() is None  # It has one in an eager gradient.


def _traced_once(layer: nn.Module, apply: _Apply) -> _Apply:
  """Returns a function of a layer's parameters, input and dropout."""
  apply_to = nn.apply(apply, layer)

  @jax.jit
  def one_layer(
    params: Mapping[str, Any],
    x: attention.Features,
    factors: dropout.Factors | None,
  ) -> Float[Array, "B S D"]:
    return apply_to({"params": params}, x, factors)

  return one_layer


def _rematerialized(
  apply: _Apply, config: T5Config, *, in_scan: bool
) -> _Apply:
  """Lets the backward pass of a layer compute again what it does not keep."""
  if config.remat == "none":
    return apply
  kept = []
  if config.remat == "minimal":
    kept += [RESIDUAL, *layers.PRODUCTS]
    kept += [*flash_attention.KEPT, *unprojected_attention.KEPT]
  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  return nn.remat(apply, policy=policy, prevent_cse=not in_scan)
