# SPDX-License-Identifier: Apache-2.0
"""A fingerprint of parameters, computed where they are."""

from collections.abc import Mapping
import hashlib

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


def _mix(words: UInt32[Array, "*N"]) -> UInt32[Array, "*N"]:
  """Scrambles each word, one to one (the finaliser of MurmurHash3)."""
  words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
  words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
  return words ^ (words >> 16)


@jax.jit
def _checksums(x: Shaped[Array, "*N"]) -> UInt32[Array, " 2"]:
  """Sums two scramblings of every element and its position.

  A changed element always changes the sums, and their order does not matter,
  so that the result is the same however the array is sharded.
  """
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  words = lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    position = position * jnp.uint32(size) + index
  seeds = (0x9E3779B9, 0x7F4A7C15)
  sums = [jnp.sum(_mix(words ^ _mix(position + jnp.uint32(s)))) for s in seeds]
  return jnp.stack(sums)


def fingerprint(params: Mapping[str, Shaped[Array, "..."]]) -> str:
  """Returns 32 hexadecimal digits that depend on every bit of `params`.

  Names, shapes and dtypes count too. Equal on every platform and for every
  sharding. Not meant to resist an attacker.
  """
  # One at a time: sums over several devices in flight at once can wait for each
  # other for ever on a CPU.
  sums = {name: jax.device_get(_checksums(x)) for name, x in params.items()}
  digest = hashlib.sha256()
  for name in sorted(params):
    x = params[name]
    digest.update(f"{name}:{x.dtype}:{x.shape}:{sums[name].tolist()};".encode())
  return digest.hexdigest()[:32]
