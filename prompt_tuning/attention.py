# SPDX-License-Identifier: Apache-2.0
"""Attention as T5 has it: plainly, in one kernel, from a cache, or unprojected.

Where few queries attend to many features, as a decoder's to its encoder's, keys
and values are not computed; see `unprojected_attention`.
"""

import math
from typing import Any

from flax import linen as nn
import jax
from jax import ad_checkpoint, lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning import (
  flash_attention,
  layers,
  quantization,
  unprojected_attention,
)

# An array, or two parts of one.
Features = (
  Float[Array, "B _ D"] | tuple[Float[Array, "B _ D"], Float[Array, "B _ D"]]
)

# Added to the logit of a position that may not be attended to. A query without
# any visible key thereby attends to all keys alike, as in T5X.
MASKED_LOGIT = -1e10


def _masked(mask: Bool[Array, "..."]) -> Float[Array, "..."]:
  """Returns what is added to logits; True = may attend."""
  return jnp.where(mask, 0.0, MASKED_LOGIT)


def _is_visible(
  lengths: Int[Array, " B"], num_keys: int
) -> Bool[Array, "B 1 1 {num_keys}"]:
  """Returns the mask that `flash_attention.attend` makes of lengths."""
  places = jnp.arange(num_keys)[None, None, None]
  return places < jnp.maximum(lengths, 1)[:, None, None, None]


class Attention(nn.Module):
  """Multi-head attention without 1/sqrt(K): it is in the query's initialiser.

  Attributes:
    num_heads: number of heads, H.
    head_dim: width of a head, K.
    float32_logits: compute the attention logits in float32 whatever `dtype`.
    dtype: dtype of the activations.
    param_dtype: dtype in which the kernels are stored.
    in_float8: see `layers.Projection`.
  """

  num_heads: int
  head_dim: int
  float32_logits: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  in_float8: bool = False

  @nn.compact
  def __call__(
    self,
    inputs_q: Features,
    inputs_kv: Features,
    mask: Bool[Array, "#B 1 #Q _"] | None,
    bias: Float[Array, "1 H M M"] | Float[Array, "H _"] | None,
    *,
    lengths: Int[Array, " B"] | None = None,
    dropout: Float[Array, "B H 1 N"] | None = None,
    decode: bool = False,
    keep: bool = False,
  ) -> Float[Array, "B Q D"]:
    """Attends from `inputs_q` to `inputs_kv`.

    Args:
      inputs_q: where the queries come from; with `lengths` they may be given
        in two parts, as to `flash_attention.attend`.
      inputs_kv: where the keys and values come from, in the same parts.
      mask: True = may attend. None: every key is visible. While decoding it is
        as long as the cache, whose empty places need not be masked.
      bias: added to the logits; the relative position bias of all positions,
        with `lengths` by relative position, as `flash_attention.attend` has
        it.
      lengths: how many positions of `inputs_kv` come before the padding. If
        given, `mask` is not used, and the kernel of `flash_attention` is, but
        for few queries without a bias. Not while decoding.
      dropout: factors of the attention weights; a key is dropped for all
        queries of a head at once, as in T5X. See `dropout.draw`.
      decode: keep keys and values in the collection `cache`. The call that
        creates the cache sets its length by that of its input; later calls
        feed what comes next: one position, or several with a mask of their
        own. For self-attention only.
      keep: use the keys and values in the collection `encoded`; put them there
        if it is mutable. For attention to what all steps of decoding share.
    """
    to_query, to_key, to_value = (
      self._projection(name) for name in ("query", "key", "value")
    )
    is_within = inputs_kv is inputs_q
    if lengths is not None and is_within and not self.in_float8:
      all_three = self._project_jointly(to_query, to_key, to_value, inputs_q)
      joined = flash_attention.attend_jointly(all_three, bias, dropout, lengths)
      return self._project_out(joined, inputs_q)

    query = self._project(to_query, inputs_q)
    if (
      bias is None
      and not (decode or keep or self.in_float8)
      and unprojected_attention.is_cheaper(query.shape[1], self.head_dim)
    ):
      assert not isinstance(inputs_kv, tuple), "parts come with a bias"
      if lengths is not None:
        mask = _is_visible(lengths, inputs_kv.shape[1])
      joined = self._attend_unprojected(
        to_key, to_value, query, inputs_kv, mask, dropout
      )
      return self._project_out(joined, inputs_q)

    kept = self.get_variable("encoded", "key_value") if keep else None
    key, value = kept or (
      self._project(to_key, inputs_kv),
      self._project(to_value, inputs_kv),
    )
    if keep:  # Nothing happens where the collection is not mutable.
      last = lambda _, new: new
      self.sow("encoded", "key_value", (key, value), reduce_fn=last)
    if decode:
      key, value, mask, bias = self._extend_cache(key, value, mask, bias)
    if lengths is not None:
      joined = flash_attention.attend(query, key, value, bias, dropout, lengths)
    else:
      joined = self._attend_plainly(query, key, value, mask, bias, dropout)
    return self._project_out(joined, inputs_q)

  def _projection(self, name: str) -> layers.Projection:
    """Creates the projection to all heads' queries, keys or values."""
    init = layers.ATTENTION_INIT
    if name == "query":
      scale = math.sqrt(self.head_dim)
      init = lambda *args: layers.ATTENTION_INIT(*args) / scale
    return layers.Projection(
      self.num_heads * self.head_dim,
      axes=("embed", "joined_kv"),
      kernel_init=init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      in_float8=self.in_float8,
      name=name,
    )

  def _project(self, projection: layers.Projection, inputs: Features) -> Any:
    """Returns the heads' queries, keys or values, in the parts of `inputs`."""

    def heads(x: Float[Array, "B S D"]) -> Float[Array, "B S H K"]:
      x = ad_checkpoint.checkpoint_name(projection(x), projection.name)
      return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

    return jax.tree.map(heads, inputs)

  def _project_jointly(
    self,
    to_query: layers.Projection,
    to_key: layers.Projection,
    to_value: layers.Projection,
    inputs: Features,
  ) -> Any:
    """Returns queries, keys and values of one product: `[B, S, 3, H, K]`."""
    width = jax.tree.leaves(inputs)[0].shape[-1]
    pairs = [x.kernel_and_scale(width) for x in (to_query, to_key, to_value)]
    kernels, scales = zip(*pairs, strict=True)
    # Along an axis of their own, since a mesh may divide the last.
    kernel = jnp.stack([x.astype(self.dtype) for x in kernels], axis=1)

    def heads(x: Float[Array, "B S D"]) -> Float[Array, "B S 3 H K"]:
      x = jnp.tensordot(x.astype(self.dtype), kernel, axes=1)
      if scales[0] is not None:
        x = quantization.times(x, jnp.stack(scales))
      x = ad_checkpoint.checkpoint_name(x, "query_key_value")
      return x.reshape(*x.shape[:3], self.num_heads, self.head_dim)

    return jax.tree.map(heads, inputs)

  def _project_out(
    self, joined: Float[Array, "B Q H K"], inputs_q: Features
  ) -> Float[Array, "B Q D"]:
    """Projects what the heads have found back to the width of the inputs."""
    return layers.Projection(
      jax.tree.leaves(inputs_q)[0].shape[-1],
      axes=("joined_kv", "embed"),
      kernel_init=layers.ATTENTION_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      in_float8=self.in_float8,
      name="out",
    )(joined.reshape(*joined.shape[:2], -1))

  def _attend_unprojected(
    self,
    to_key: layers.Projection,
    to_value: layers.Projection,
    query: Float[Array, "B Q H K"],
    features: Float[Array, "B N D"],
    mask: Bool[Array, "#B 1 #Q N"] | None,
    dropout: Float[Array, "B H 1 N"] | None,
  ) -> Float[Array, "B Q H K"]:
    """Attends to features without their keys and values."""

    def of_heads(projection: layers.Projection) -> tuple[Array, Array | None]:
      kernel, scale = projection.kernel_and_scale(features.shape[2])
      if scale is not None:
        scale = scale.reshape(query.shape[2:])
      return kernel.reshape(-1, *query.shape[2:]).astype(self.dtype), scale

    kernel, scale = of_heads(to_key)
    if scale is not None:
      query = quantization.times(query, scale)
    if self.float32_logits:
      query = query.astype(jnp.float32)
    seen = unprojected_attention.attend(
      query,
      kernel,
      features.astype(self.dtype),
      None if mask is None else _masked(mask),
      dropout,
    )
    kernel, scale = of_heads(to_value)
    value = jnp.einsum("BQHD,DHK->BQHK", seen, kernel)
    return value if scale is None else quantization.times(value, scale)

  def _attend_plainly(
    self,
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    mask: Bool[Array, "#B 1 #Q N"] | None,
    bias: Float[Array, "1 H Q N"] | None,
    dropout: Float[Array, "B H 1 N"] | None,
  ) -> Float[Array, "B Q H K"]:
    """Computes logits, softmax and output one after the other."""
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.einsum("BQHK,BNHK->BHQN", query, key)
    if bias is not None:
      logits = logits + bias.astype(logits.dtype)
    if mask is not None:
      logits = logits + _masked(mask).astype(logits.dtype)
    weights = jax.nn.softmax(logits).astype(self.dtype)
    if dropout is not None:
      weights = weights * dropout
    return jnp.einsum("BHQN,BNHK->BQHK", weights, value)

  def _extend_cache(
    self,
    key: Float[Array, "B Q H K"],
    value: Float[Array, "B Q H K"],
    mask: Bool[Array, "#B 1 #Q _"] | None,
    bias: Float[Array, "1 H M M"] | None,
  ) -> tuple[Array, Array, Array | None, Array | None]:
    """Writes new positions into the cache; returns all keys and values so far.

    The mask and the bias that come back are those of the new positions.
    """
    is_initialized = self.has_variable("cache", "cached_key")
    cached_key = self.variable("cache", "cached_key", jnp.zeros_like, key)
    cached_value = self.variable("cache", "cached_value", jnp.zeros_like, value)
    index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
    if not is_initialized:
      return key, value, None, bias
    i, num_new = index.value, key.shape[1]
    write = lambda cache, new: lax.dynamic_update_slice_in_dim(cache, new, i, 1)
    cached_key.value = write(cached_key.value, key)
    cached_value.value = write(cached_value.value, value)
    index.value = i + num_new
    is_filled = jnp.arange(cached_key.value.shape[1]) < i + num_new
    is_filled = is_filled[None, None, None, :]
    mask = is_filled if mask is None else mask & is_filled
    if bias is not None:
      bias = lax.dynamic_slice_in_dim(bias, i, num_new, axis=2)
    return cached_key.value, cached_value.value, mask, bias
