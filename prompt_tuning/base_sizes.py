# SPDX-License-Identifier: Apache-2.0
"""The sizes of a base, from the names and shapes of its parameters."""

from collections.abc import Mapping
import re

from prompt_tuning import pretrained, t5

_EMBEDDING = "token_embedder/embedding"
_BIAS = "encoder/relpos_bias/rel_embedding"
_QUERY = "encoder/layers_0/attention/query/kernel"
_GATE = "encoder/layers_0/mlp/wi_0/kernel"
_OUTPUT = "encoder/layers_0/mlp/wo/kernel"
_LOGITS = "decoder/logits_dense/kernel"


def read(path: str) -> t5.T5Config:
  """Returns the sizes of a checkpoint of any format; reads no parameter.

  Activations and parameters are to be float32, whatever the checkpoint has.

  Args:
    path: see `pretrained.open_checkpoint`.

  Raises:
    ValueError: if there is no checkpoint, or it is not that of a T5.
  """
  leaves = pretrained.open_checkpoint(path).leaves
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  for name in (_EMBEDDING, _BIAS, _QUERY, _OUTPUT):
    if name not in shapes or len(shapes[name]) != 2:
      raise ValueError(f"{path!r} is not a T5: it has no matrix {name}")
  vocab_size, emb_dim = shapes[_EMBEDDING]
  num_heads = shapes[_BIAS][0]
  return t5.T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    num_encoder_layers=_num_layers(shapes, "encoder"),
    num_decoder_layers=_num_layers(shapes, "decoder"),
    head_dim=shapes[_QUERY][1] // num_heads,
    mlp_dim=shapes[_OUTPUT][0],
    mlp_activations=("gelu", "linear") if _GATE in shapes else ("relu",),
    logits_via_embedding=_LOGITS not in shapes,
  )


def _num_layers(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
  found = (re.match(rf"{stack}/layers_(\d+)/", name) for name in shapes)
  return len({match[1] for match in found if match})
