# SPDX-License-Identifier: Apache-2.0
"""The parts of T5: projections, norm, attention, MLP.

Parameter names, shapes, logical axes and numerics are those of T5X's example
network, so that its checkpoints load unchanged. Kernels are 2-D, heads major
and head width minor in a joined axis, and nothing has a bias vector.
"""

from collections.abc import Callable
import functools
import math

from flax import linen as nn
from flax.linen import partitioning
import jax
from jax import ad_checkpoint, lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning import flash_attention, quantization

Initializer = Callable[..., Array]

# The products of a layer, whose recomputation would cost as much as they did;
# names for `jax.checkpoint`.
PRODUCTS = ("query", "key", "value", "wi")

# Added to the logit of a position that may not be attended to. A query without
# any visible key thereby attends to all keys alike, as in T5X.
MASKED_LOGIT = -1e10


def _fused(init: Initializer) -> Initializer:
  """Draws in one pass: an eager draw holds several copies of the result."""
  return jax.jit(init, static_argnums=(1, 2))


_MLP_INIT = _fused(
  nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
)
_ATTENTION_INIT = _fused(
  nn.initializers.variance_scaling(1.0, "fan_in", "normal")
)
_EMBEDDING_INIT = _fused(nn.initializers.normal(stddev=1.0))


class Projection(nn.Module):
  """Multiplies by a kernel of the joined shape `[inputs, outputs]`.

  Attributes:
    features: number of output features.
    axes: logical names of the two axes of the kernel.
    kernel_init: initialiser of the kernel.
    dtype: dtype of the product; inputs and kernel are cast to it.
    param_dtype: dtype in which the kernel is stored.
    in_float8: see `quantization.product`, for a kernel of 8 bits.
  """

  features: int
  axes: tuple[str, str]
  kernel_init: Initializer = _MLP_INIT
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  in_float8: bool = False

  @nn.compact
  def __call__(
    self, inputs: Float[Array, "... N"]
  ) -> Float[Array, "... {self.features}"]:
    """Projects the last axis."""
    kernel = partitioning.param_with_axes(
      "kernel",
      self.kernel_init,
      (inputs.shape[-1], self.features),
      self.param_dtype,
      axes=self.axes,
    )
    if self.has_variable("params", "kernel_scale"):
      scale: Array = self.get_variable("params", "kernel_scale")
      return quantization.product(
        inputs,
        kernel,
        nn.with_logical_constraint(scale, self.axes[1:]),
        dtype=self.dtype,
        in_float8=self.in_float8,
      )
    if inputs.dtype == kernel.dtype and self.dtype == jnp.float32:
      # Sums in float32 what is exact in it, without copies in float32.
      return jnp.dot(inputs, kernel, preferred_element_type=jnp.float32)
    return jnp.dot(inputs.astype(self.dtype), kernel.astype(self.dtype))


class RMSNorm(nn.Module):
  """Divides by the root mean square: no mean, no bias, float32 inside."""

  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Normalises the last axis and multiplies by the learned scale."""
    scale = partitioning.param_with_axes(
      "scale",
      nn.initializers.ones,
      (x.shape[-1],),
      self.param_dtype,
      axes=("embed",),
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    x = (x * lax.rsqrt(mean_square + self.epsilon)).astype(self.dtype)
    scale = scale.astype(self.dtype)
    return x * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


class Embed(nn.Module):
  """A token embedding table, shared by encoder, decoder and tied logits.

  Attributes:
    num_embeddings: number of rows, V.
    features: model width, D.
    one_hot: look up by a product with one-hot rows, as T5X does: the faster
      form on a TPU with a partitioned vocabulary. A gather otherwise.
    dtype: dtype of the result.
    param_dtype: dtype in which the table is stored.
  """

  num_embeddings: int
  features: int
  one_hot: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    """Creates the table."""
    self.embedding = partitioning.param_with_axes(
      "embedding",
      _EMBEDDING_INIT,
      (self.num_embeddings, self.features),
      self.param_dtype,
      axes=("vocab", "embed"),
    )

  def __call__(
    self, tokens: Int[Array, "B N"]
  ) -> Float[Array, "B N {self.features}"]:
    """Looks up one row per token."""
    if self.one_hot:
      rows = jax.nn.one_hot(tokens, self.num_embeddings, dtype=self.dtype)
      return jnp.dot(rows, self.embedding.astype(self.dtype))
    return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

  def attend(
    self, x: Float[Array, "B N {self.features}"]
  ) -> Float[Array, "B N {self.num_embeddings}"]:
    """Scores `x` against every row, in float32: the tied logits of T5 1.0."""
    table = self.embedding.astype(jnp.float32)
    return jnp.dot(x.astype(jnp.float32), table.T)


def dropout_factors(
  rng: Key[Array, ""], rate: float, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "..."]:
  """Draws what dropout multiplies features by.

  One product: XLA passes over the features twice for a division and a choice.

  Args:
    rng: to draw with.
    rate: share of the factors that are 0; the others are 1 / (1 - rate).
    shape: of the features, with 1 for an axis whose features are all dropped
      together.
    dtype: of the result.
  """
  if rate == 1.0:
    return jnp.zeros(shape, dtype)
  keep = 1.0 - rate
  is_kept = jax.random.bernoulli(rng, keep, shape)
  return jnp.where(is_kept, 1.0 / keep, 0.0).astype(dtype)


class Attention(nn.Module):
  """Multi-head attention without 1/sqrt(K): it is in the query's initialiser.

  Attributes:
    num_heads: number of heads, H.
    head_dim: width of a head, K.
    float32_logits: compute the attention logits in float32 whatever `dtype`.
    dtype: dtype of the activations.
    param_dtype: dtype in which the kernels are stored.
    in_float8: see `Projection`.
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
    inputs_q: Float[Array, "B Q D"],
    inputs_kv: Float[Array, "B N D"],
    mask: Bool[Array, "#B 1 #Q _"] | None,
    bias: Float[Array, "1 H M M"] | None,
    *,
    lengths: Int[Array, " B"] | None = None,
    dropout: Float[Array, "B H 1 N"] | None = None,
    decode: bool = False,
    keep: bool = False,
  ) -> Float[Array, "B Q D"]:
    """Attends from `inputs_q` to `inputs_kv`.

    Args:
      inputs_q: where the queries come from.
      inputs_kv: where the keys and values come from.
      mask: True = may attend. None: every key is visible. While decoding it is
        as long as the cache, whose empty places need not be masked.
      bias: added to the logits; the relative position bias of all positions.
      lengths: how many positions of `inputs_kv` come before the padding. If
        given, the kernel of `flash_attention` is used, and `mask` is not.
      dropout: factors of the attention weights; a key is dropped for all
        queries of a head at once, as in T5X. See `dropout_factors`.
      decode: keep keys and values in the collection `cache`. The call that
        creates the cache sets its length by that of its input; later calls
        feed what comes next: one position, or several with a mask of their
        own. For self-attention only.
      keep: use the keys and values in the collection `encoded`; put them there
        if it is mutable. For attention to what all steps of decoding share.
    """
    scale = math.sqrt(self.head_dim)

    def project(name: str, inputs: Array, init: Initializer) -> Array:
      heads = Projection(
        self.num_heads * self.head_dim,
        axes=("embed", "joined_kv"),
        kernel_init=init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        in_float8=self.in_float8,
        name=name,
      )(inputs)
      if name != "value":  # What is kept of it, is kept after its dropout.
        heads = ad_checkpoint.checkpoint_name(heads, name)
      return heads.reshape(*heads.shape[:2], self.num_heads, self.head_dim)

    query_init = lambda *args: _ATTENTION_INIT(*args) / scale
    query = project("query", inputs_q, query_init)
    kept = self.get_variable("encoded", "key_value") if keep else None
    if kept is not None:
      key, value = kept
    else:
      key = project("key", inputs_kv, _ATTENTION_INIT)
      value = project("value", inputs_kv, _ATTENTION_INIT)
    if keep:  # Nothing happens where the collection is not mutable.
      last = lambda _, new: new
      self.sow("encoded", "key_value", (key, value), reduce_fn=last)
    if decode:
      key, value, mask, bias = self._extend_cache(key, value, mask, bias)

    attend = self._attend_plainly
    if lengths is not None and not decode:
      attend = functools.partial(self._attend_flash, lengths=lengths)
    joined = attend(query, key, value, mask, bias, dropout)
    return Projection(
      inputs_q.shape[-1],
      axes=("joined_kv", "embed"),
      kernel_init=_ATTENTION_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      in_float8=self.in_float8,
      name="out",
    )(joined.reshape(*joined.shape[:2], -1))

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
      logits = logits + jnp.where(mask, 0.0, MASKED_LOGIT).astype(logits.dtype)
    weights = jax.nn.softmax(logits).astype(self.dtype)
    if dropout is not None:
      weights = weights * dropout
    value = ad_checkpoint.checkpoint_name(value, "value")
    return jnp.einsum("BHQN,BNHK->BQHK", weights, value)

  def _attend_flash(
    self,
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    mask: Bool[Array, "#B 1 #Q N"] | None,
    bias: Float[Array, "1 H Q N"] | None,
    dropout: Float[Array, "B H 1 N"] | None,
    *,
    lengths: Int[Array, " B"],
  ) -> Float[Array, "B Q H K"]:
    """Computes the same in one kernel.

    A weight that is dropped for all queries is a value that is dropped.
    """
    del mask
    if dropout is not None:
      value = value * dropout.transpose(0, 3, 1, 2)
    value = ad_checkpoint.checkpoint_name(value, "value")
    return flash_attention.attend(query, key, value, bias, lengths)

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


class MLP(nn.Module):
  """T5's feed-forward block, gated if there are two activations.

  Attributes:
    features: inner width, F.
    activations: ("gelu", "linear") for T5 1.1: `gelu(x wi_0) * (x wi_1)`, or
      ("relu",) for T5 1.0. Names of `jax.nn` functions, or "linear".
    dtype: dtype of the activations.
    param_dtype: dtype in which the kernels are stored.
    in_float8: see `Projection`.
  """

  features: int
  activations: tuple[str, ...]
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  in_float8: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B N D"],
    dropout: Float[Array, "B 1 {self.features}"] | None = None,
  ) -> Float[Array, "B N D"]:
    """Projects up, activates, gates, drops and projects down.

    Args:
      x: input.
      dropout: factors of the inner features, of all positions at once. See
        `dropout_factors`.
    """
    gated = None
    for i, activation in enumerate(self.activations):
      hidden = Projection(
        self.features,
        axes=("embed", "mlp"),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        in_float8=self.in_float8,
        name="wi" if len(self.activations) == 1 else f"wi_{i}",
      )(x)
      hidden = ad_checkpoint.checkpoint_name(hidden, "wi")
      if activation != "linear":
        hidden = getattr(jax.nn, activation)(hidden)
      gated = hidden if gated is None else gated * hidden
    assert gated is not None, "activations must not be empty"
    if dropout is not None:
      gated = gated * dropout
    return Projection(
      x.shape[-1],
      axes=("mlp", "embed"),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      in_float8=self.in_float8,
      name="wo",
    )(gated)
