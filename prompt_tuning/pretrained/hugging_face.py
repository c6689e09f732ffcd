# SPDX-License-Identifier: Apache-2.0
"""T5 as Hugging Face transformers stores it: names, config and shards."""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

from prompt_tuning.pretrained import leaves as leaves_lib
from prompt_tuning.pretrained import safetensors_files
from prompt_tuning.pretrained.leaves import Leaf
from prompt_tuning.pretrained.safetensors_files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_EMBEDDING = "shared.weight"
_HEAD = "lm_head.weight"
# Copies of the embedding table, which some published files hold.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# In the first T5 files; transformers, too, does not read it.
_UNUSED = (
  "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
)


def _attention(path: str, name: str) -> dict[str, str]:
  letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
  return {
    f"{path}/{part}/kernel": f"{name}.{letter}.weight"
    for part, letter in letters.items()
  }


def _mlp(path: str, name: str) -> dict[str, str]:
  return {
    f"{path}/{part}/kernel": f"{name}.{part}.weight"
    for part in ("wi", "wi_0", "wi_1", "wo")
  }


def _stack(stack: str, sublayers: tuple[tuple[str, str, str], ...]) -> dict:
  """Returns the names of one stack, with `#` for the number of the layer.

  Args:
    stack: "encoder" or "decoder".
    sublayers: T5X's norm, T5X's module and Hugging Face's module, in order.
  """
  relative = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  names = {
    f"{stack}/relpos_bias/rel_embedding": f"{stack}.{relative}",
    f"{stack}/{stack}_norm/scale": f"{stack}.final_layer_norm.weight",
  }
  for i, (norm, module, other) in enumerate(sublayers):
    path, name = f"{stack}/layers_#", f"{stack}.block.#.layer.{i}"
    names[f"{path}/{norm}/scale"] = f"{name}.layer_norm.weight"
    parts = _mlp if module == "mlp" else _attention
    names |= parts(f"{path}/{module}", f"{name}.{other}")
  return names


_NAMES = {
  "token_embedder/embedding": _EMBEDDING,
  "decoder/logits_dense/kernel": _HEAD,
  **_stack(
    "encoder",
    (
      ("pre_attention_layer_norm", "attention", "SelfAttention"),
      ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
  ),
  **_stack(
    "decoder",
    (
      ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
      (
        "pre_cross_attention_layer_norm",
        "encoder_decoder_attention",
        "EncDecAttention",
      ),
      ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
  ),
}
_PATHS = {name: path for path, name in _NAMES.items()}


def _translate(table: Mapping[str, str], name: str) -> str | None:
  """Looks a name up as it is, then with its layer number replaced."""
  if name in table:
    return table[name]
  found = re.fullmatch(
    r"(\w+(?:/layers_|\.block\.))(0|[1-9]\d{0,3})(\D.*)", name
  )
  if not found:
    return None
  start, number, end = found.groups()
  other = table.get(f"{start}#{end}")
  return other and other.replace("#", number)


def _is_transposed(path: str) -> bool:
  return path.endswith(("/kernel", "/rel_embedding"))


def _without_copies(leaves: dict[str, Leaf]) -> dict[str, Leaf]:
  """Keeps one embedding table of several that must be equal."""
  tables = [k for k in (_EMBEDDING, *_COPIES) if k in leaves]
  for name in tables[1:]:
    if not leaves_lib.is_equal(leaves[tables[0]], leaves[name]):
      raise ValueError(f"{tables[0]} and {name} differ: T5 has one table")
  kept = {k: v for k, v in leaves.items() if k not in (*tables, _UNUSED)}
  return kept | ({_EMBEDDING: leaves[tables[0]]} if tables else {})


def _without_tied_head(
  leaves: dict[str, Leaf], config: Mapping[str, Any] | None
) -> dict[str, Leaf]:
  """Drops an output matrix that is but a copy of the embedding table.

  `tie_word_embeddings` alone says nothing: transformers 5 sets it for every
  T5, and tells T5 1.1 by `scale_decoder_outputs=false`.
  """
  if _HEAD not in leaves or _EMBEDDING not in leaves:
    return leaves
  flags = config or {}
  if (
    flags.get("tie_word_embeddings", True) is False
    or flags.get("scale_decoder_outputs", True) is False
  ):
    return leaves
  if leaves_lib.is_equal(leaves[_HEAD], leaves[_EMBEDDING]):
    return {k: v for k, v in leaves.items() if k != _HEAD}
  if config is not None:
    raise ValueError(
      f"{CONFIG} ties the logits to the embeddings, but {_HEAD} differs from "
      f"{_EMBEDDING}: set tie_word_embeddings to false for a T5 1.1"
    )
  return leaves


def check_config(config: Mapping[str, Any]) -> None:
  """Refuses a model that this package would compute wrongly.

  Sizes are not looked at: the shapes of the arrays tell them.

  Raises:
    ValueError: that names the entry.
  """
  supported = {
    "feed_forward_proj": ("relu", "gated-gelu"),
    "layer_norm_epsilon": (1e-6,),
    "relative_attention_max_distance": (128,),
  }
  for name, values in supported.items():
    if name in config and config[name] not in values:
      raise ValueError(
        f"{CONFIG} has {name}={config[name]!r:.80}, which is not supported: "
        f"T5 and mT5 have {' or '.join(map(repr, values))}"
      )


def to_t5x(
  leaves: dict[str, Leaf], config: Mapping[str, Any] | None
) -> dict[str, Leaf]:
  """Renames and transposes leaves; a name unknown to T5 stays.

  Args:
    leaves: by Hugging Face's names.
    config: the content of `config.json`, if there is one.

  Raises:
    ValueError: if config and leaves contradict each other.
  """
  if config is not None:
    check_config(config)
  leaves = _without_tied_head(_without_copies(leaves), config)
  result = {}
  for name, leaf in leaves.items():
    path = _translate(_PATHS, name) or name
    if path in result:
      raise ValueError(f"{path} is in the file twice")
    is_turned = path != name and _is_transposed(path)
    result[path] = leaves_lib.transpose(leaf) if is_turned else leaf
  return result


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """Reads `config.json`, if the folder has one.

  Raises:
    ValueError: if it is damaged.
  """
  path = folder / CONFIG
  if not path.exists():
    return None
  try:
    return read_json(path.read_bytes())
  except (ValueError, OSError) as error:
    raise ValueError(f"{path} is not sound: {error}") from error


def shard_names(path: pathlib.Path) -> dict[str, str]:
  """Reads which file holds which tensor from the index of a sharded model.

  Raises:
    ValueError: if it is damaged or names files elsewhere.
  """
  try:
    files = read_json(path.read_bytes()).get("weight_map")
    if not isinstance(files, dict) or not files:
      raise ValueError("there is no weight_map in it")
    for file in files.values():
      if not isinstance(file, str) or not re.fullmatch(
        r"[\w\-][\w\-.]*\.safetensors", file
      ):
        raise ValueError(f"{file!r:.200} is no .safetensors file beside it")
  except (ValueError, OSError) as error:
    raise ValueError(f"{path} is not sound: {error}") from error
  return files


def open_shards(folder: pathlib.Path, names: dict[str, str]) -> dict[str, Leaf]:
  """Opens every file of a sharded model.

  Raises:
    ValueError: if the files hold other tensors than the index says.
  """
  leaves: dict[str, Leaf] = {}
  for file in sorted(set(names.values())):
    found = safetensors_files.open_file(folder / file).leaves
    wanted = {name for name in names if names[name] == file}
    if wanted != found.keys():
      text = ", ".join(sorted(wanted ^ found.keys()))
      raise ValueError(f"{INDEX} and {file} do not agree on: {text}")
    leaves |= found
  return leaves


def name_of(path: str) -> str:
  """Returns Hugging Face's name for one of T5X's paths.

  Raises:
    ValueError: if it has none.
  """
  name = _translate(_NAMES, path)
  if name is None:
    raise ValueError(f"Hugging Face's T5 has no place for {path}")
  return name


def from_t5x(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Renames and transposes leaves for Hugging Face.

  Raises:
    ValueError: if a leaf has no place there.
  """
  result = {}
  for path, leaf in leaves.items():
    is_turned = _is_transposed(path)
    result[name_of(path)] = leaves_lib.transpose(leaf) if is_turned else leaf
  return result


def _num_layers(leaves: Mapping[str, Leaf], stack: str) -> int:
  return len(
    {p.split("/")[1] for p in leaves if p.startswith(f"{stack}/layers_")}
  )


def _check_complete(leaves: Mapping[str, Leaf]) -> None:
  """Checks that there are the leaves whose shapes tell a T5's sizes."""
  for path in (
    "token_embedder/embedding",
    "encoder/relpos_bias/rel_embedding",
    "encoder/layers_0/attention/query/kernel",
    "encoder/layers_0/mlp/wo/kernel",
  ):
    if path not in leaves or len(leaves[path].shape) != 2:
      raise ValueError(f"a T5 needs a matrix {path}")


def make_config(leaves: Mapping[str, Leaf], dtype: str) -> dict[str, Any]:
  """Derives `config.json` from the shapes of a T5 by T5X's paths.

  Raises:
    ValueError: if the leaves are not those of an encoder and a decoder.
  """
  _check_complete(leaves)
  vocab_size, d_model = leaves["token_embedder/embedding"].shape
  num_heads, num_buckets = leaves["encoder/relpos_bias/rel_embedding"].shape
  joined = leaves["encoder/layers_0/attention/query/kernel"].shape[1]
  is_gated = "encoder/layers_0/mlp/wi_0/kernel" in leaves
  is_tied = "decoder/logits_dense/kernel" not in leaves
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": vocab_size,
    "d_model": d_model,
    "d_kv": joined // num_heads,
    "d_ff": leaves["encoder/layers_0/mlp/wo/kernel"].shape[0],
    "num_heads": num_heads,
    "num_layers": _num_layers(leaves, "encoder"),
    "num_decoder_layers": _num_layers(leaves, "decoder"),
    "feed_forward_proj": "gated-gelu" if is_gated else "relu",
    "relative_attention_num_buckets": num_buckets,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": is_tied,
    "scale_decoder_outputs": is_tied,
    "torch_dtype": dtype,
  }


def write(
  folder: pathlib.Path, leaves: Mapping[str, Leaf], *, dtype: Any
) -> None:
  """Writes `model.safetensors` and `config.json` into an empty folder.

  Args:
    folder: not yet at its final place.
    leaves: by T5X's paths; read one by one.
    dtype: of every tensor; None keeps what each has.

  Raises:
    ValueError: if a leaf has no place in Hugging Face's T5.
  """
  named = from_t5x(leaves)
  stored = dtype or named[_EMBEDDING].dtype
  text = json.dumps(make_config(leaves, str(stored)), indent=2)
  (folder / CONFIG).write_text(f"{text}\n")
  # transformers refuses files that do not say which framework they are for.
  metadata = {"format": "pt"}
  safetensors_files.write_file(folder / WEIGHTS, named, metadata, dtype=dtype)
