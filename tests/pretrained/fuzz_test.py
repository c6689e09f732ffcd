# SPDX-License-Identifier: Apache-2.0
"""Damaged files give a ValueError or a sound result, and nothing else."""

import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from prompt_tuning import pretrained
from prompt_tuning.pretrained import t5x

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SCALE = "encoder/encoder_norm/scale"
NUM_MUTANTS = 1000
# Small and odd values, in place of any of a JSON or MessagePack tree.
VALUES = [
  *(None, True, 0, -1, 1, 3, 1.5, 1 << 31, 1 << 40, (1 << 63) - 1, 1e308),
  *("", "..", "../x", "/etc/passwd", "\0", "a" * 300, "ä", "<f8", "|O"),
  *([], [0], [-1], [1 << 62, 1 << 62], {}, {"": ""}, {"driver": 1}),
]


def mutate_bytes(content, rng):
  """Flips, drops, doubles, inserts or cuts bytes, once or a few times."""
  result = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 5])):
    start = rng.randrange(len(result) + 1)
    stop = min(len(result), start + rng.choice([1, 1, 4, 50]))
    kind = rng.randrange(6)
    if kind == 0 and start < len(result):
      result[start] ^= 1 << rng.randrange(8)
    elif kind == 1:
      result[start:stop] = rng.randbytes(stop - start)
    elif kind == 2:
      del result[start:stop]
    elif kind == 3:
      result[start:start] = rng.randbytes(rng.choice([1, 8, 100]))
    elif kind == 4:
      result[start:start] = result[start:stop]
    elif kind == 5 and rng.random() < 0.2:
      del result[start:]
  return bytes(result)


def mutate_tree(tree, rng):
  """Replaces, drops, adds or renames one value somewhere in the tree."""
  if isinstance(tree, dict) and tree and rng.random() < 0.9:
    name = rng.choice(list(tree))
    kind = rng.random()
    if kind < 0.1:
      return {k: x for k, x in tree.items() if k != name}
    if kind < 0.2:
      value = rng.choice([x for x in VALUES if isinstance(x, str)])
      return {(value if k == name else k): x for k, x in tree.items()}
    return tree | {name: mutate_tree(tree[name], rng)}
  if isinstance(tree, list) and tree and rng.random() < 0.7:
    i = rng.randrange(len(tree))
    return [*tree[:i], mutate_tree(tree[i], rng), *tree[i + 1 :]]
  return rng.choice(VALUES)


def mutants(content, load, dump):
  """Yields mutants of a file, half of them still well-formed."""
  rng = random.Random(0)
  tree = load(content)
  for i in range(NUM_MUTANTS):
    if i % 2:
      yield mutate_bytes(content, rng)
    else:
      mutant = mutate_tree(tree, rng)
      yield dump(mutate_tree(mutant, rng) if i % 4 else mutant)


def dump_json(tree):
  return json.dumps(tree).encode()


def check_mutants(contents, try_fn):
  """Counts how many mutants are refused; each must be, or give a result."""
  messages = []
  for content in contents:
    try:
      try_fn(content)
    except ValueError as error:
      messages.append(str(error))
  assert all(messages)
  return len(messages)


def load_into(target, path):
  """Loads and checks that what comes back is what was asked for."""
  base = pretrained.load(str(path), target)
  assert {k: (x.shape, x.dtype) for k, x in base.params.items()} == {
    k: (x.shape, x.dtype) for k, x in target.items()
  }


def target_of(path):
  leaves = pretrained.open_checkpoint(str(path)).leaves
  return {
    k: jax.ShapeDtypeStruct(x.shape, jnp.float32) for k, x in leaves.items()
  }


def test_mutants_of_a_t5x_index():
  content = (
    GOLDENS / "t5x_checkpoint_full_optimizer/checkpoint_2/checkpoint"
  ).read_bytes()
  load = lambda content: msgpack.unpackb(content)

  def parse(index):
    places, arrays, step = t5x.parse_index(index)
    assert all("/" not in x and ".." not in x for x in places.values())
    assert all(x.ndim for x in arrays.values())
    assert 0 <= step < 1 << 31

  assert check_mutants(mutants(content, load, msgpack.packb), parse) > 200


@pytest.fixture
def one_array(tmp_path):
  """A T5X checkpoint of one array."""
  source = GOLDENS / "t5x_checkpoint_chunked/checkpoint_1100000"
  name = "target.encoder.encoder_norm.scale"
  shutil.copytree(source / name, tmp_path / name)
  place = {"driver": "zarr", "kvstore": {"driver": "file", "path": name}}
  target = {"encoder": {"encoder_norm": {"scale": place}}}
  index = msgpack.packb({"version": 3, "optimizer": {"target": target}})
  (tmp_path / "checkpoint").write_bytes(index)
  return tmp_path


@pytest.mark.parametrize(
  "name", [".zarray", pytest.param("0", marks=pytest.mark.slow)]
)
def test_mutants_of_a_zarr_array(one_array, name):
  path = one_array / f"target.encoder.encoder_norm.scale/{name}"
  target = target_of(one_array)
  load, dump = json.loads, dump_json
  if name == "0":  # A chunk is no tree.
    load, dump = lambda content: content, lambda tree: b"%r" % (tree,)

  def write_and_load(content):
    path.write_bytes(content)
    load_into(target, one_array)

  refused = check_mutants(
    mutants(path.read_bytes(), load, dump), write_and_load
  )
  assert refused > 500


@pytest.mark.parametrize("name", ["t5x_names", "hugging_face_names"])
def test_mutants_of_a_safetensors_header(tmp_path, name):
  path = tmp_path / "base.safetensors"
  params = {SCALE: jnp.ones(3), "token_embedder/embedding": jnp.ones((2, 3))}
  if name == "hugging_face_names":
    params = {"shared.weight": jnp.ones((2, 3)), "lm_head.weight": jnp.ones(3)}
  pretrained.save(str(path), params, 3, {"a": "b"})
  content, target = path.read_bytes(), target_of(path)
  size = 8 + int.from_bytes(content[:8], "little")

  def load(content):
    return json.loads(content[8:size])

  def dump(tree):
    text = dump_json(tree)
    return len(text).to_bytes(8, "little") + text + content[size:]

  def write_and_load(mutant):
    path.write_bytes(mutant)
    load_into(target, path)

  assert check_mutants(mutants(content, load, dump), write_and_load) > 750


def test_mutants_of_a_sharded_index(tmp_path):
  pretrained.save(
    str(tmp_path / "a.safetensors"), {"shared.weight": jnp.ones((2, 3))}, 0, {}
  )
  index = dump_json({"weight_map": {"shared.weight": "a.safetensors"}})
  path = tmp_path / "model.safetensors.index.json"
  path.write_bytes(index)
  target = target_of(tmp_path)

  def write_and_load(content):
    path.write_bytes(content)
    load_into(target, tmp_path)

  contents = mutants(index, json.loads, dump_json)
  assert check_mutants(contents, write_and_load) > 750


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d"])
def test_mutants_of_orbax(tmp_path, name):
  folder = tmp_path / "state"
  shutil.copytree(GOLDENS / "t5x_checkpoint_orbax/checkpoint_2/state", folder)
  path = folder / name
  if name == "d":
    (path,) = path.iterdir()
  target = {SCALE: jax.ShapeDtypeStruct((32,), np.float32)}
  content = path.read_bytes()
  metadata = json.loads((folder / "_METADATA").read_text())
  metadata["tree_metadata"] = {
    k: x
    for k, x in metadata["tree_metadata"].items()
    if "encoder_norm" in k and "'target'" in k
  }
  (folder / "_METADATA").write_text(json.dumps(metadata))
  load, dump = lambda content: content, lambda tree: b"%r" % (tree,)
  if name == "_METADATA":
    content, load, dump = dump_json(metadata), json.loads, dump_json

  def write_and_load(mutant):
    path.write_bytes(mutant)
    load_into(target, tmp_path)

  assert check_mutants(mutants(content, load, dump), write_and_load) > 250
