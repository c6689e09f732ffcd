# SPDX-License-Identifier: Apache-2.0
"""The parts of T5: projections, norm, embedding, MLP.

Parameter names, shapes, logical axes and numerics are those of T5X's example
network, so that its checkpoints load unchanged. Kernels are 2-D, heads major
and head width minor in a joined axis, and nothing has a bias vector.
"""

from collections.abc import Callable
import functools
import operator

from flax import linen as nn
from flax.linen import partitioning
import jax
from jax import ad_checkpoint, lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from prompt_tuning import quantization

Initializer = Callable[..., Array]

# The products of a layer, whose recomputation would cost as much as they did;
# names for `jax.checkpoint`.
PRODUCTS = ("query", "key", "value", "query_key_value", "wi")


def _fused(init: Initializer) -> Initializer:
  """Draws in one pass: an eager draw holds several copies of the result."""
  return jax.jit(init, static_argnums=(1, 2))


_MLP_INIT = _fused(
  nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
)
ATTENTION_INIT = _fused(
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
  def kernel_and_scale(
    self, num_inputs: int
  ) -> tuple[
    Shaped[Array, "{num_inputs} {self.features}"],
    Float[Array, " {self.features}"] | None,
  ]:
    """Returns the kernel, and the scales of its outputs if it is of 8 bits."""
    kernel = partitioning.param_with_axes(
      "kernel",
      self.kernel_init,
      (num_inputs, self.features),
      self.param_dtype,
      axes=self.axes,
    )
    if not self.has_variable("params", "kernel_scale"):
      return kernel, None
    scale: Array = self.get_variable("params", "kernel_scale")
    return kernel, nn.with_logical_constraint(scale, self.axes[1:])

  def __call__(
    self, inputs: Float[Array, "... N"]
  ) -> Float[Array, "... {self.features}"]:
    """Projects the last axis."""
    kernel, scale = self.kernel_and_scale(inputs.shape[-1])
    if scale is not None:
      return quantization.product(
        inputs, kernel, scale, dtype=self.dtype, in_float8=self.in_float8
      )
    if inputs.dtype == kernel.dtype and self.dtype == jnp.float32:
      # Sums in float32 what is exact in it, without copies in float32.
      return jnp.dot(inputs, kernel, preferred_element_type=jnp.float32)
    return jnp.dot(inputs.astype(self.dtype), kernel.astype(self.dtype))


@jax.custom_jvp
def _computed_once(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns x; on a GPU each product of x would compute the last of it again.

  Its gradient is not kept from being fused.
  """
  return lax.optimization_barrier(x)


_computed_once.defjvps(lambda tangent, _, x: tangent)


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
    x = x * scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    return _computed_once(x)


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


@functools.partial(jax.checkpoint, static_argnums=2)
def _gated(
  hidden: tuple[Float[Array, "B N F"], ...],
  dropout: Float[Array, "B 1 F"] | None,
  activations: tuple[str, ...],
) -> Float[Array, "B N F"]:
  """Returns the product of the activations.

  The backward pass computes them again rather than keep them: reading and
  writing takes longer on a GPU.
  """
  activated = [
    x if activation == "linear" else getattr(jax.nn, activation)(x)
    for x, activation in zip(hidden, activations, strict=True)
  ]
  if dropout is not None:
    activated.append(dropout)
  return functools.reduce(operator.mul, activated)


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
        `dropout.draw`.
    """
    hidden = []
    for i in range(len(self.activations)):
      projected = Projection(
        self.features,
        axes=("embed", "mlp"),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        in_float8=self.in_float8,
        name="wi" if len(self.activations) == 1 else f"wi_{i}",
      )(x)
      hidden.append(ad_checkpoint.checkpoint_name(projected, "wi"))
    gated = _gated(tuple(hidden), dropout, self.activations)
    return Projection(
      x.shape[-1],
      axes=("mlp", "embed"),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      in_float8=self.in_float8,
      name="wo",
    )(gated)
