# SPDX-License-Identifier: Apache-2.0
"""The parameters of all layers of a stack, side by side in one array each.

A network runs stacked layers as a loop (`layer_loop`), which is compiled once
instead of once a layer. Checkpoints know nothing of it: parameters have T5X's
paths on disk, in a partition and in a fingerprint.

    encoder/layers_0/mlp/wo/kernel [F,D]
    encoder/layers_1/mlp/wo/kernel [F,D]    encoder/layers/mlp/wo/kernel [L,F,D]
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

_LAYER = re.compile(r"(?P<stack>\w+)/layers_(?P<index>\d+)/(?P<rest>.+)")
_STACKED = re.compile(r"(?P<stack>\w+)/layers/(?P<rest>.+)")

Params = dict[str, Shaped[Array, "..."]]
_Leaf = TypeVar("_Leaf", jax.Array, jax.ShapeDtypeStruct)


def stack(
  params: dict[str, _Leaf], *, trained: Iterable[str] = ()
) -> dict[str, _Leaf]:
  """Stacks the layers of the encoder, and those of the decoder.

  Args:
    params: frozen parameters by path, or what describes them. They leave this
      dict as they are stacked, so that at no time there are two copies of all.
    trained: paths of those that are not in it. A stack with one of them stays
      as it is.

  Returns:
    All parameters.
  """
  kept = {match["stack"] for match in map(_LAYER.fullmatch, trained) if match}
  groups: dict[str, list[tuple[int, str]]] = {}
  for name in params:
    match = _LAYER.fullmatch(name)
    if match and match["stack"] not in kept:
      stacked = f"{match['stack']}/layers/{match['rest']}"
      groups.setdefault(stacked, []).append((int(match["index"]), name))
  result = {}
  for stacked, names in groups.items():
    result[stacked] = _stack([params.pop(name) for _, name in sorted(names)])
  return params | result


def _stack(layers: list[Any]) -> Any:
  """Stacks arrays that are placed alike, and places the result like them."""
  first, place = layers[0], None
  if isinstance(first.sharding, NamedSharding):
    spec = PartitionSpec(None, *first.sharding.spec)
    place = NamedSharding(first.sharding.mesh, spec)
  if isinstance(first, jax.ShapeDtypeStruct):
    shape = (len(layers), *first.shape)
    return jax.ShapeDtypeStruct(shape, first.dtype, sharding=place)
  return jax.jit(lambda *xs: jnp.stack(xs), out_shardings=place)(*layers)


def unstack(
  params: Mapping[str, Shaped[Array, "..."]],
) -> Params:
  """Returns the parameters under T5X's paths; stacked ones are copied."""
  result: Params = {}
  for name, x in params.items():
    match = _STACKED.fullmatch(name)
    if match is None:
      result[name] = x
      continue
    for i in range(len(x)):
      result[f"{match['stack']}/layers_{i}/{match['rest']}"] = x[i]
  return result
