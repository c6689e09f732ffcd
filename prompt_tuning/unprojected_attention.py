# SPDX-License-Identifier: Apache-2.0
"""Attention to features as to their keys and values, computing neither.

    q . (e W) = (q W^T) . e

Queries are projected back to the features, and what they see of these is
projected to values after it has been added up. A decoder has few queries and
its encoder many features: with 16 targets a T5 saves three quarters of these
products forward, and half of them backward.
"""

import jax
from jax import ad_checkpoint, lax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Features of 16 bits in 16 bytes: shorter rows of weights are slow to multiply
# on a GPU.
_ALIGNED = 8

# What the backward pass needs of the forward pass; names for `jax.checkpoint`.
KEPT = ("unprojected_weights",)


def is_cheaper(num_queries: int, head_dim: int) -> bool:
  """Tells whether queries are few enough.

  Two products with all features forward, and two backward, become two and four
  that are smaller by the number of queries over the width of a head.
  """
  return 2 * num_queries <= head_dim


@jax.custom_vjp
def attend(
  query: Float[Array, "B Q H K"],
  kernel: Float[Array, "D H K"],
  features: Float[Array, "B N D"],
  masked: Float[Array, "#B 1 #Q N"] | None,
  factors: Float[Array, "B H 1 N"] | None,
) -> Float[Array, "B Q H D"]:
  """Returns the features that each head's queries see, added up.

  Logits and softmax are computed in float32.

  Args:
    query: of each head.
    kernel: which would project features to each head's keys.
    features: what is attended to.
    masked: added to the logits, a large negative number for what may not be
      attended to. None: all features are visible.
    factors: of the attention weights, after the softmax: dropout. Neither has
      a gradient.
  """
  return _attend_fwd(query, kernel, features, masked, factors)[0]


def _attend_fwd(
  query: Array,
  kernel: Array,
  features: Array,
  masked: Array | None,
  factors: Array | None,
) -> tuple[Array, tuple]:
  num_keys = features.shape[1]
  fill = (0, -num_keys % _ALIGNED)
  features = jnp.pad(features, ((0, 0), fill, (0, 0)))
  is_key = jnp.arange(features.shape[1])[None, None, None] < num_keys
  logits = _products(_projected_back(query, kernel), features)
  if masked is not None:
    logits += _among_keys(masked, fill)
  logits = jnp.where(is_key, logits, -jnp.inf)
  if factors is not None:
    factors = _among_keys(factors.astype(features.dtype), fill)
  weights = jax.nn.softmax(logits).astype(features.dtype)
  weights = ad_checkpoint.checkpoint_name(weights, *KEPT)
  seen = _sums(_dropped(weights, factors), features)
  # Residuals are arrays: the shape of the last tells how many keys there are.
  keys = jnp.zeros((num_keys, 0))
  return seen, (query, kernel, features, weights, factors, keys)


def _attend_bwd(kept: tuple, gradient: Array) -> tuple:
  query, kernel, features, weights, factors, keys = kept
  of_weights = _dropped(_products(gradient, features), factors)
  products = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
  of_logits = (weights * (of_weights - products)).astype(query.dtype)
  # Projected back anew: in wide models all layers' would take much memory.
  wide, back = jax.vjp(_projected_back, query, kernel)
  of_features = _spread(of_logits, wide)
  of_features += _spread(_dropped(weights, factors), gradient)
  of_features = of_features[:, : keys.shape[0]].astype(features.dtype)
  of_query, of_kernel = back(_sums(of_logits, features))
  return of_query, of_kernel, of_features, None, None


attend.defvjp(_attend_fwd, _attend_bwd)


def _projected_back(
  query: Float[Array, "B Q H K"], kernel: Float[Array, "D H K"]
) -> Float[Array, "B Q H D"]:
  return jnp.einsum("BQHK,DHK->BQHD", query, kernel)


def _among_keys(
  x: Float[Array, "#B #H #Q N"], fill: tuple[int, int]
) -> Float[Array, "#B #Q #H S"]:
  """Brings what belongs to keys into the order of the weights."""
  return jnp.pad(x.swapaxes(1, 2), (*[(0, 0)] * 3, fill))


def _products(
  query: Float[Array, "B Q H D"], features: Float[Array, "B S D"]
) -> Float[Array, "B Q H S"]:
  """Multiplies each query by each feature, in float32."""
  return jnp.einsum(
    "BQHD,BND->BQHN", query, features, preferred_element_type=jnp.float32
  )


def _sums(
  weights: Float[Array, "B Q H S"], features: Float[Array, "B S D"]
) -> Float[Array, "B Q H D"]:
  """Adds up the weighted features for each query."""
  return jnp.einsum("BQHN,BND->BQHD", weights, features)


def _spread(
  weights: Float[Array, "B Q H S"], queries: Float[Array, "B Q H D"]
) -> Float[Array, "B S D"]:
  """Adds up the weighted queries for each feature."""
  # An einsum would sum over heads first, and transpose both for it on a GPU.
  summed, of_row = ((1, 2), (1, 2)), ((0,), (0,))
  return lax.dot_general(weights, queries, (summed, of_row))


def _dropped(
  weights: Float[Array, "B Q H S"], factors: Float[Array, "B 1 H S"] | None
) -> Float[Array, "B Q H S"]:
  return weights if factors is None else weights * factors
