# SPDX-License-Identifier: Apache-2.0
import functools
import pathlib
import subprocess
import sys

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from prompt_tuning import pretrained, t5
from prompt_tuning.pretrained import leaves, safetensors_files

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
PROMPT = "encoder/prompt/prompt/prompt"
EMBEDDING = "token_embedder/embedding"
SCALE = "encoder/encoder_norm/scale"
# Where a golden checkpoint lies, its archive of expected values, their prefix
# in it, and the step.
CHECKPOINTS = {
  "t5x": ("t5x_checkpoint/checkpoint_3", "t5_1_1_tiny", "params/", 3),
  "t5x_chunked": (
    "t5x_checkpoint_chunked/checkpoint_1100000",
    "t5x_checkpoint_chunked_expected",
    "target/",
    1100000,
  ),
  "t5x_with_optimizer": (
    "t5x_checkpoint_full_optimizer/checkpoint_2",
    "t5x_checkpoint_full_optimizer_expected",
    "target/",
    2,
  ),
  "orbax": (
    "t5x_checkpoint_orbax/checkpoint_2",
    "t5x_checkpoint_full_optimizer_expected",
    "target/",
    2,
  ),
  "orbax_state": (
    "t5x_checkpoint_orbax/checkpoint_2/state",
    "t5x_checkpoint_full_optimizer_expected",
    "target/",
    2,
  ),
  "hugging_face": ("hf_t5_tiny", "t5_1_1_tiny", "params/", 0),
  "hugging_face_file": (
    "hf_t5_tiny/model.safetensors",
    "t5_1_1_tiny",
    "params/",
    0,
  ),
  "hugging_face_v1_0": ("hf_t5_tiny_v1_0", "t5_1_0_tiny", "params/", 0),
}


def expected_params(archive, prefix):
  with np.load(GOLDENS / f"{archive}.npz", allow_pickle=False) as arrays:
    return {
      name.removeprefix(prefix): array
      for name, array in arrays.items()
      if name.startswith(prefix) and "/prompt/" not in name
    }


def make_target(params, dtype=jnp.float32, sharding=None):
  return {
    path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)
    for path, x in params.items()
  }


def assert_bits_equal(actual, expected):
  assert actual.keys() == expected.keys()
  for path, x in expected.items():
    assert actual[path].dtype == x.dtype, path
    assert actual[path].shape == x.shape, path
    assert np.asarray(actual[path]).tobytes() == np.asarray(x).tobytes(), path


@pytest.fixture
def tiny():
  """The parameters of t5_1_1_tiny, as numpy arrays."""
  return expected_params("t5_1_1_tiny", "params/")


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_every_form_loads_exactly(kind):
  path, archive, prefix, step = CHECKPOINTS[kind]
  expected = expected_params(archive, prefix)
  base = pretrained.load(str(GOLDENS / path), make_target(expected))
  assert base.step == step
  assert_bits_equal(base.params, expected)


def test_bfloat16_checkpoint_is_the_rounded_float32_one(tiny):
  target = make_target(tiny, jnp.bfloat16)
  rounded = pretrained.load(
    str(GOLDENS / "t5x_checkpoint/checkpoint_3"), target
  )
  stored = pretrained.load(
    str(GOLDENS / "t5x_checkpoint_bf16/checkpoint_3"), target
  )
  assert_bits_equal(rounded.params, stored.params)
  assert_bits_equal(
    stored.params, {k: jnp.asarray(x, jnp.bfloat16) for k, x in tiny.items()}
  )


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, batch):
  return model.apply(
    {"params": traverse_util.unflatten_dict(params, sep="/")},
    batch["encoder_input_tokens"],
    batch["decoder_input_tokens"],
    batch["decoder_target_tokens"],
    enable_dropout=False,
  )


@pytest.mark.parametrize(
  ("folder", "logits", "sizes"),
  [
    ("hf_t5_tiny", "logits", {}),
    (
      "hf_t5_tiny_v1_0",
      "v1_0_logits",
      {"mlp_activations": ("relu",), "logits_via_embedding": True},
    ),
  ],
)
def test_logits_are_those_of_hugging_face(
  golden, tiny_config, tiny_batch, folder, logits, sizes
):
  model = t5.Transformer(t5.T5Config(**{**vars(tiny_config), **sizes}))
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  init = lambda *tokens: model.init(
    jax.random.key(0), *tokens, enable_dropout=False
  )
  shapes = jax.eval_shape(init, tokens, tokens, tokens)["params"]
  target = traverse_util.flatten_dict(shapes, sep="/")
  base = pretrained.load(str(GOLDENS / folder), target)
  real = tiny_batch["decoder_target_tokens"] > 0
  np.testing.assert_allclose(
    apply(model, base.params, tiny_batch)[real],
    golden("hf_expected")[logits][real],
    atol=5e-5,
    rtol=0,
  )


@pytest.mark.parametrize("kind", ["t5x_chunked", "orbax", "hugging_face"])
@pytest.mark.parametrize("spec", [("data",), (None, "data"), ()])
def test_leaves_get_the_sharding_of_the_target(kind, spec):
  path, archive, prefix, _ = CHECKPOINTS[kind]
  expected = expected_params(archive, prefix)
  mesh = jax.make_mesh((2,), ("data",))
  target = make_target(expected, jnp.bfloat16)
  for name, x in expected.items():
    sharding = NamedSharding(mesh, PartitionSpec(*spec[: x.ndim]))
    target[name] = target[name].update(sharding=sharding)
  params = pretrained.load(str(GOLDENS / path), target).params
  assert_bits_equal(
    params, {k: jnp.asarray(x, jnp.bfloat16) for k, x in expected.items()}
  )
  assert {k: x.sharding for k, x in params.items()} == {
    k: x.sharding for k, x in target.items()
  }


def test_a_prompt_is_left_out_unless_wanted(tiny):
  path = str(GOLDENS / "t5x_checkpoint/checkpoint_3")
  assert PROMPT not in pretrained.load(path, make_target(tiny)).params
  with np.load(GOLDENS / "t5x_checkpoint_expected.npz") as arrays:
    prompt = arrays["prompt_after_step"][-1]
  wanted = make_target(tiny | {PROMPT: prompt})
  params = pretrained.load(path, wanted).params
  np.testing.assert_array_equal(params[PROMPT], prompt)


def test_every_leaf_at_fault_is_named_in_one_error(tiny):
  target = make_target(tiny)
  del target[SCALE]
  target["encoder/more/scale"] = jax.ShapeDtypeStruct((3,), jnp.float32)
  target["decoder/more/scale"] = jax.ShapeDtypeStruct((3,), jnp.float32)
  target[EMBEDDING] = jax.ShapeDtypeStruct((130, 32), jnp.float32)
  message = (
    r"hf_t5_tiny: parameters differ from the model's: "
    r"2 missing: decoder/more/scale, encoder/more/scale; "
    r"1 unexpected: encoder/encoder_norm/scale; "
    r"1 of another shape: token_embedder/embedding is \(128, 32\), "
    r"wanted \(130, 32\)$"
  )
  for function in (pretrained.load, pretrained.describe):
    with pytest.raises(ValueError, match=message):
      function(str(GOLDENS / "hf_t5_tiny"), target)


def test_integers_are_no_parameters(tmp_path):
  path = str(tmp_path / "base.safetensors")
  params = {SCALE: jnp.ones(3, jnp.int32)}
  pretrained.save(path, params, 0, {})
  with pytest.raises(ValueError, match=f"1 not of floats: {SCALE} is int32"):
    pretrained.load(path, make_target(params))


def test_description_names_source_and_destination(tiny):
  rows, step = pretrained.describe(
    str(GOLDENS / "hf_t5_tiny"), make_target(tiny)
  )
  assert step == 0
  assert len(rows) == len(tiny)
  assert rows[0] == (
    "decoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale",
    (32,),
    "float32",
  )


def test_description_reads_no_parameter(tiny, monkeypatch):
  monkeypatch.setattr(leaves, "read", None)
  for name in ("hf_t5_tiny", "t5x_checkpoint/checkpoint_3"):
    pretrained.describe(str(GOLDENS / name), make_target(tiny))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_saved_is_loaded(tmp_path, tiny, dtype):
  path = str(tmp_path / "base.safetensors")
  params = {k: jnp.asarray(x, dtype) for k, x in tiny.items()}
  pretrained.save(path, params, 1100000, {"origin": "t5_1_1"})
  base = pretrained.load(path, make_target(tiny, dtype))
  assert base.step == 1100000
  assert_bits_equal(base.params, params)
  header = safetensors_files.open_file(pathlib.Path(path))
  assert header.metadata == {"step": "1100000", "origin": "t5_1_1"}
  assert (
    pretrained.load(str(tmp_path), make_target(tiny, dtype)).step == 1100000
  )


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path):
  path = tmp_path / "base.safetensors"
  pretrained.save(str(path), {SCALE: jnp.ones(3)}, 1, {})
  before = path.read_bytes()
  deleted = jnp.ones(4)
  deleted.delete()
  with pytest.raises(ValueError, match=f"{SCALE} cannot be read.*deleted"):
    pretrained.save(str(path), {SCALE: deleted}, 2, {})
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_a_save_puts_a_new_file_in_the_place_of_the_old(tmp_path):
  path = tmp_path / "base.safetensors"
  pretrained.save(str(path), {SCALE: jnp.ones(3)}, 1, {})
  with path.open("rb") as reader:
    before = reader.read()
    pretrained.save(str(path), {SCALE: jnp.zeros(3)}, 2, {})
    reader.seek(0)
    assert reader.read() == before
  assert path.read_bytes() != before


def test_a_save_needs_the_ending_and_its_own_step(tmp_path):
  with pytest.raises(ValueError, match="path='base' must end in .safetensors"):
    pretrained.save("base", {}, 0, {})
  with pytest.raises(ValueError, match="must not have a step beside step="):
    pretrained.save(str(tmp_path / "x.safetensors"), {}, 0, {"step": "1"})


PEAK_MEMORY = """
import pathlib, sys
import jax, jax.numpy as jnp
from prompt_tuning import pretrained

def resident(field):  # ru_maxrss would be inherited from the parent process.
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(f"{field}:")[1].split()[0]) << 10

jax.block_until_ready(jnp.zeros(3))
leaf = jax.ShapeDtypeStruct((64, 1 << 19), jnp.dtype(sys.argv[2]))
target = {f"encoder/layers_{i}/mlp/wo/kernel": leaf for i in range(4)}
before = resident("VmRSS")
pretrained.load(sys.argv[1], target)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_little_more_memory_than_the_target(tmp_path, dtype):
  leaf = np.random.default_rng(0).standard_normal((64, 1 << 19), np.float32)
  params = {f"encoder/layers_{i}/mlp/wo/kernel": leaf for i in range(4)}
  path = str(tmp_path / "base.safetensors")
  pretrained.save(path, {k: jnp.asarray(x) for k, x in params.items()}, 0, {})
  done = subprocess.run(
    [sys.executable, "-c", PEAK_MEMORY, path, dtype],
    check=True,
    capture_output=True,
    text=True,
  )
  target_bytes = 4 * leaf.size * jnp.dtype(dtype).itemsize
  peak = int(done.stdout)
  assert target_bytes < peak < target_bytes + 1.3 * leaf.nbytes
