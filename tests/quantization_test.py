# SPDX-License-Identifier: Apache-2.0
"""Frozen kernels of 8 bits: rounding, products, gradients, whole runs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from prompt_gradient import loss_and_gradient
from prompt_tuning.tasks import vocabularies
import pytest

import gin
from prompt_tuning import (
  base_sizes,
  configuration,
  decoding,
  inference,
  layer_stacking,
  optim,
  partitioning,
  prompts,
  quantization,
  start,
  t5,
  train,
  trials,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

PROMPT = "encoder/prompt/prompt/prompt"
KERNEL = "encoder/layers_0/mlp/wo/kernel"
KINDS = quantization.KINDS[1:]


@pytest.fixture
def frozen(tiny_params):
  """Copies: what is quantised is deleted."""
  return {name: jnp.array(x) for name, x in tiny_params.items()}


def test_a_kernel_is_rounded_by_output():
  kernel = jnp.array([[1.0, -2.0, 0.0], [0.5, 4.0, 0.0]])
  found = quantization.quantize({KERNEL: kernel}, "int8")
  np.testing.assert_array_equal(found[KERNEL], [[127, -64, 0], [64, 127, 0]])
  np.testing.assert_allclose(
    found[f"{KERNEL}_scale"] * 127, [1, 4, 0], rtol=1e-6
  )
  kernel = jnp.array([[1.0, -2.0, 0.0], [0.51, 4.0, 0.0]])
  found = quantization.quantize({KERNEL: kernel}, "float8")
  assert found[KERNEL].dtype == jnp.float8_e4m3fn
  # e4m3 has steps of 16 between 128 and 256.
  np.testing.assert_array_equal(
    found[KERNEL].astype(jnp.float32), [[448, -224, 0], [224, 448, 0]]
  )


@pytest.mark.parametrize(
  "kind",
  [
    "float8_products",
    *(pytest.param(x, marks=pytest.mark.slow) for x in quantization.KINDS[:-1]),
  ],
)
def test_decoding_computes_what_training_does(
  tiny_config, frozen, tiny_batch, kind
):
  """Scores of targets all at once, and one token after the other."""
  config = dataclasses.replace(
    tiny_config, quantization=kind, num_encoder_layers=1, num_decoder_layers=1
  )
  model = t5.Transformer(config)
  params = quantization.quantize(frozen, kind)
  beam = functools.partial(
    decoding.beam,
    model=model,
    max_decode_length=4,
    config=decoding.BeamConfig(num_decodes=1, alpha=0.0),
  )
  beams, expected = jax.jit(beam)(params, tiny_batch["encoder_input_tokens"])
  targets = beams[:, 0]
  batch = tiny_batch | {
    "decoder_input_tokens": jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": (targets > 0).astype(jnp.int32),
  }
  score = functools.partial(decoding.score_targets, model=model)
  found = jax.jit(score)(params, batch).sums
  np.testing.assert_allclose(found, expected[:, 0], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_layers_alone_become_smaller(frozen, kind):
  found = quantization.quantize(dict(frozen), kind)
  small = [name for name, x in found.items() if x.dtype.itemsize == 1]
  assert len(small) == 2 * 7 + 3 * 11
  assert all("/layers_" in name and "kernel" in name for name in small)
  assert frozen[KERNEL].is_deleted()
  others = found.keys() - {x for name in small for x in (name, f"{name}_scale")}
  assert "decoder/logits_dense/kernel" in others
  assert all(found[name] is frozen[name] for name in others)


def test_nothing_changes_without_a_kind(frozen):
  assert quantization.quantize(frozen, "none") == frozen


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_rounded_kernel(kind):
  inputs = jax.random.normal(jax.random.key(0), (2, 3, 64))
  exact = jax.random.normal(jax.random.key(1), (64, 8))
  params = quantization.quantize({KERNEL: jnp.array(exact)}, kind)
  kernel, scale = params[KERNEL], params[f"{KERNEL}_scale"]
  rounded = kernel.astype(jnp.float32) * scale[None]
  # Steps of 1 in 127, halved; of 1 in 8, halved.
  bound = {"int8": 1 / 250}.get(kind, 1 / 15)
  atol = bound * float(jnp.max(jnp.abs(exact)))
  np.testing.assert_allclose(rounded, exact, atol=atol, rtol=0)

  in_float8 = kind == "float8_products"
  product = lambda x: quantization.product(
    x, kernel, scale, dtype=jnp.float32, in_float8=in_float8
  )
  result, pull_back = jax.vjp(product, inputs)
  (grads,) = pull_back(result)
  tolerance = 0.05 if in_float8 else 1e-6
  assert distance(result, inputs @ rounded) < tolerance
  assert distance(grads, result @ rounded.T) < tolerance
  assert in_float8 == (distance(result, inputs @ rounded) > 1e-3)


def distance(found, expected):
  """Returns the norm of the difference, relative to the second's."""
  return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("in_float8", [False, True])
def test_scales_are_not_rounded_to_16_bits(in_float8):
  """1.01 has no bfloat16 near by: it would be 1.0078."""
  params = quantization.quantize({KERNEL: jnp.full((1, 2), 1.01)}, "float8")
  inputs = jnp.full((1, 1), 448, jnp.bfloat16)
  found = quantization.product(
    inputs, *params.values(), dtype=jnp.bfloat16, in_float8=in_float8
  )
  # In steps of 2.
  np.testing.assert_array_equal(found.astype(jnp.float32), [[452, 452]])


def test_rows_of_zeros_stay_zeros_in_float8():
  params = quantization.quantize({KERNEL: jnp.ones((4, 2))}, "float8")
  product = lambda x: quantization.product(
    x, *params.values(), dtype=jnp.bfloat16, in_float8=True
  )
  result, pull_back = jax.vjp(product, jnp.zeros((3, 4), jnp.bfloat16))
  np.testing.assert_array_equal(result, np.zeros((3, 2)))
  np.testing.assert_array_equal(pull_back(result)[0], np.zeros((3, 4)))


@pytest.fixture
def shallow_config(tiny_config):
  """One layer each, which compile faster; the other parameters lie idle."""
  return dataclasses.replace(
    tiny_config, num_encoder_layers=1, num_decoder_layers=1
  )


@pytest.mark.parametrize(
  ("kind", "least"),
  [
    pytest.param("int8", 0.99, marks=pytest.mark.slow),
    pytest.param("float8", 0.9, marks=pytest.mark.slow),
    ("float8_products", 0.8),
  ],
)
def test_the_gradient_points_where_that_of_float32_does(
  frozen, shallow_config, tiny_batch, kind, least
):
  loss, grads = loss_and_gradient(shallow_config, frozen, tiny_batch)
  config = dataclasses.replace(shallow_config, quantization=kind)
  params = quantization.quantize(frozen, kind)
  found_loss, found = loss_and_gradient(config, params, tiny_batch)
  cosine = jnp.sum(found * grads) / (
    jnp.linalg.norm(found) * jnp.linalg.norm(grads)
  )
  assert least < cosine < 1 - 1e-6
  np.testing.assert_allclose(found_loss, loss, rtol=0.02)


@pytest.mark.slow
def test_stacked_layers_are_multiplied_in_float8_too(
  frozen, shallow_config, tiny_batch
):
  kind = "float8_products"
  config = dataclasses.replace(shallow_config, quantization=kind)
  params = quantization.quantize(frozen, kind)
  loss, grads = loss_and_gradient(config, params, tiny_batch)
  used = {x: params[x] for x in params if not re.search("layers_[12]", x)}
  found_loss, found = loss_and_gradient(
    config, layer_stacking.stack(used), tiny_batch
  )
  np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
  assert distance(found, grads) < 0.01


def test_a_divided_kernel_has_divided_scales(frozen, tiny_config):
  config = partitioning.MeshConfig(num_partitions=2)
  model = t5.Transformer(tiny_config)
  with partitioning.use(config) as mesh:
    places = partitioning.param_shardings(frozen, model, config)
    placed = partitioning.place(dict(frozen), places)
    found = quantization.quantize(placed, "int8")
  spec = jax.sharding.PartitionSpec
  at = lambda *axes: jax.sharding.NamedSharding(mesh, spec(*axes))
  query = "encoder/layers_0/attention/query/kernel"
  for name, rows, columns in ((KERNEL, "model", None), (query, None, "model")):
    assert found[name].sharding.is_equivalent_to(at(rows, columns), 2)
    scale = found[f"{name}_scale"]
    assert scale.sharding.is_equivalent_to(at(columns), 1)
  expected = quantization.quantize(dict(frozen), "int8")
  np.testing.assert_array_equal(found[KERNEL], expected[KERNEL])


def train_once(model_dir, *bindings):
  files = ("tests/tiny_run.gin",)
  bindings = (*bindings, "TRAIN_STEPS = 4", f"MODEL_DIR = '{model_dir}'")
  configuration.load(configuration.Flags(files, bindings, ()))
  gin.get_configurable(train.train)()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "float8_products"])
def test_a_prompt_learns_on_a_quantized_base_and_answers_with_it(
  tmp_path, write_tiny_base, capsys, kind
):
  base = tmp_path / "base.safetensors"
  write_tiny_base(base)
  train_once(
    tmp_path,
    f"QUANTIZATION = '{kind}'",
    f"INITIAL_CHECKPOINT_PATH = '{base}'",
    "loop.LoopConfig.stack_layers = True",
  )
  assert "frozen parameters unchanged" in capsys.readouterr().out
  config = dataclasses.replace(base_sizes.read(str(base)), quantization=kind)
  model = inference.load(
    str(base),
    vocabulary=vocabulary_lib.from_sentencepiece(
      vocabularies.english_8k().sp_model
    ),
    prompts={"own": str(tmp_path / "best/prompt.safetensors")},
    network=t5.Transformer(config, prompts.PromptConfig(length=3)),
  )
  assert model.params[KERNEL].dtype.itemsize == 1
  assert len(inference.predict(model, ["a good film"])) == 1


def test_scales_are_never_trained(tiny_config):
  """Whatever the partition matches: it is one of the parameters of a base."""
  config = dataclasses.replace(tiny_config, quantization="int8")
  model = t5.Transformer(config)
  partition = optim.Partition([([".*scale"], optim.adafactor())])
  with partitioning.use(partitioning.MeshConfig()):
    target = start.base_target(model, partitioning.MeshConfig())
    source = start.Source(
      [], target, 0, partition.labels(target), partition.optimizer(target)
    )
    (trial,) = trials.expand(trials.Sweep(), seed=0, initial_prompt=None)
    state, frozen = start.describe_states(
      source, model=model, all_trials=[trial]
    )
  assert f"{KERNEL}_scale" in frozen
  assert not [name for name in state.trainable if "kernel" in name]
  assert "encoder/encoder_norm/scale" in state.trainable


def test_what_is_trained_is_not_quantized(tmp_path):
  with pytest.raises(
    ValueError,
    match=r"QUANTIZATION='int8' needs frozen layers, but .* trains /.*kernel",
  ):
    train_once(tmp_path, "QUANTIZATION = 'int8'", "PROMPT_REGEX = ['.*']")


def test_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match="QUANTIZATION='int4' must be one of"):
    t5.T5Config(quantization="int4")
