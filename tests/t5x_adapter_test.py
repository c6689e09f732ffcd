# SPDX-License-Identifier: Apache-2.0
import functools
import importlib
import pathlib

from flax import traverse_util
from flax.core import freeze
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import (
  checkpoint_tool,
  optim,
  pretrained,
  prompt_files,
  prompt_init,
  prompts,
  t5,
)
from prompt_tuning.pretrained import conversion
from prompt_tuning.pretrained import leaves as leaves_lib

REASON = "T5X is not installed: docs/t5x.md tells how"
t5x_train = pytest.importorskip("t5x.train", reason=REASON)
adafactor = importlib.import_module("t5x.adafactor")
models = importlib.import_module("t5x.models")
partitioning = importlib.import_module("t5x.partitioning")
train_state = importlib.import_module("t5x.train_state")
trainer = importlib.import_module("t5x.trainer")
utils = importlib.import_module("t5x.utils")
seqio = importlib.import_module("seqio")
t5x_adapter = importlib.import_module("prompt_tuning.t5x_adapter")

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = prompt_files.NAME
SHAPES = {
  "encoder_input_tokens": (6, 12),
  "decoder_input_tokens": (6, 7),
  "decoder_target_tokens": (6, 7),
}
RULES = partitioning.standard_logical_axis_rules(
  additional_rules=(("prompt", None), ("prompt_embed", None))
)
FROM_BASE = {
  "assignment_map": (("target/.*/prompt/.*|state/param_states/.*", None),),
  "fallback_to_scratch": True,
}


@pytest.fixture(autouse=True)
def _strict_jax():
  """T5X adds vectors to matrices."""
  with jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture
def module(tiny_config):
  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))


@pytest.fixture
def params(golden, tiny_params):
  return tiny_params | {PROMPT: golden("trainer_steps")["prompt0"]}


@pytest.fixture
def t5x_model(module):
  """Makes T5X's model of our network."""
  vocabulary = seqio.PassThroughVocabulary(128, eos_id=1)

  def make(optimizer=None, **kwargs):
    return models.EncoderDecoderModel(
      module, vocabulary, vocabulary, optimizer, z_loss=1e-4, **kwargs
    )

  return make


@pytest.fixture
def optimizer(module):
  """Makes an optimizer of the kind that gin files choose."""

  def make(kind, regex=".*/prompt/.*", **kwargs):
    if kind == "optax":
      rules = [([regex], optim.adafactor(**kwargs))]
      return t5x_adapter.optax_optimizer(optim.Partition(rules))
    ours = adafactor.Adafactor(
      multiply_by_parameter_scale=False, weight_decay_rate=1e-5
    )
    return t5x_adapter.multi_optimizer([([regex], ours)], module)

  return make


def nested(flat):
  return freeze(traverse_util.unflatten_dict(flat, sep="/"))


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def start(model, params, step=0):
  """Makes T5X's train state of these parameters."""
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(
      jax.random.key(0), SHAPES, dict.fromkeys(SHAPES, jnp.int32)
    )
  )
  state = train_state.FlaxOptimTrainState.create(
    model.optimizer_def, variables.copy({"params": nested(params)})
  )
  return state.replace_step(jnp.int32(step))


def step_fn(model, num_microbatches=None):
  return functools.partial(
    trainer.train_with_lr,
    learning_rate=0.3,
    dropout_rng=jax.random.key(0),
    model=model,
    num_microbatches=num_microbatches,
  )


def batches(golden):
  arrays = golden("trainer_steps")
  names = [name for name in arrays if name.startswith("batches/")]
  for i in range(5):
    yield {name.removeprefix("batches/"): arrays[name][i] for name in names}


@pytest.mark.parametrize("kind", ["optax", "multi"])
@pytest.mark.parametrize(
  ("case", "num_microbatches", "first_step"),
  [
    ("plain", None, 0),
    ("microbatches_3", 3, 0),
    ("from_step_1100000", None, 1_100_000),
    ("normalized_by_real_tokens", None, 0),
  ],
)
def test_five_steps_of_t5x_with_our_network_equal_the_original(
  golden,
  t5x_model,
  optimizer,
  params,
  kind,
  case,
  num_microbatches,
  first_step,
):
  arrays = golden("trainer_steps")
  factor = "NUM_REAL_TARGET_TOKENS" if "normalized" in case else None
  offset = {"decay_offset": -first_step} if kind == "optax" else {}
  model = t5x_model(optimizer(kind, **offset), loss_normalizing_factor=factor)
  state = start(model, params, first_step)
  step = jax.jit(step_fn(model, num_microbatches))
  for i, batch in enumerate(batches(golden)):
    state, metrics = step(state, batch)
    after = flat(state.params)
    np.testing.assert_allclose(
      after.pop(PROMPT),
      arrays[f"{case}/prompt_after_step"][i],
      atol=1e-5 if i == 0 else 1e-3,
      rtol=0,
    )
    loss = metrics["cross_ent_loss"].compute()
    expected = arrays[f"{case}/train_metric/cross_ent_loss"][i]
    if num_microbatches is None:  # Else T5X's own mean over the parts.
      np.testing.assert_allclose(loss, expected, rtol=1e-3)
  assert int(state.step) == first_step + 5
  for name, value in after.items():
    np.testing.assert_array_equal(value, params[name], err_msg=name)


@pytest.mark.parametrize("kind", ["optax", "multi"])
def test_a_regular_expression_that_matches_nothing_is_refused(
  t5x_model, optimizer, params, kind
):
  with pytest.raises(ValueError, match=r"'\.\*/promt/\.\*' matches no param"):
    start(t5x_model(optimizer(kind, ".*/promt/.*")), params)


@pytest.mark.parametrize("num_decodes", [1, 2, 4])
def test_beams_of_t5x_over_our_network_equal_the_original(
  golden, t5x_model, tiny_params, num_decodes
):
  arrays = golden("decoding")
  prompted = golden("prompted_t5_1_1_tiny")
  params = tiny_params | {
    PROMPT: prompted["prompt"],
    "decoder/logits_dense/kernel": arrays["logits_dense_kernel"],
  }
  predict = functools.partial(
    t5x_model().predict_batch_with_aux,
    num_decodes=num_decodes,
    return_all_decodes=True,
  )
  batch = {
    "encoder_input_tokens": prompted["batch/encoder_input_tokens"],
    "decoder_input_tokens": jnp.zeros((3, 8), jnp.int32),
  }
  tokens, aux = jax.jit(predict)(nested(params), batch)
  name = f"beam_{num_decodes}_alpha_0.6"
  np.testing.assert_array_equal(tokens, arrays[f"{name}/tokens"])
  np.testing.assert_allclose(aux["scores"], arrays[f"{name}/scores"], atol=1e-4)


@pytest.mark.parametrize("kind", ["optax", "multi"])
def test_model_tuning_over_two_partitions_equals_one(
  golden, t5x_model, optimizer, params, kind
):
  """With factored and whole second moments, and momentum where we have it."""
  arguments = {"momentum": 0.9, "min_dim_size_to_factor": 32}
  ours = optimizer(kind, ".*", **(arguments if kind == "optax" else {}))
  model = t5x_model(ours)
  state, batch = start(model, params), next(batches(golden))
  alone, _ = jax.jit(step_fn(model))(state, batch)

  partitioner = partitioning.PjitPartitioner(2, logical_axis_rules=RULES)
  axes = partitioner.get_mesh_axes(state)
  spec = jax.sharding.PartitionSpec
  kernel = "decoder/layers_0/mlp/wo/kernel"
  assert flat(axes.params)[kernel] == spec("model", None)
  states = flat(axes.state_dict()["state"])
  sharded = [name for name, x in states.items() if x == spec("model", None)]
  # Either the momentum of a factored kernel, or the whole second moment.
  assert any(kernel in name for name in sharded)
  step = partitioner.partition(
    step_fn(model),
    in_axis_resources=(axes, partitioner.data_partition_spec),
    out_axis_resources=(axes, None),
  )
  together, _ = step(state, batch)
  placed = flat(together.params)[kernel]
  assert placed.addressable_shards[0].data.shape == (32, 32)
  for name, value in flat(together.params).items():
    expected = flat(alone.params)[name]
    np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=name)


@pytest.fixture
def base(tmp_path, tiny_params):
  """Writes the plain network as a T5X checkpoint, with our own writer."""
  ours, path = tmp_path / "base.safetensors", tmp_path / "base/checkpoint_7"
  pretrained.save(str(ours), tiny_params, 7, {})
  conversion.convert(
    str(ours), str(path), output="t5x", dtype=None, dry_run=False
  )
  return str(path)


@pytest.fixture
def restore(t5x_model):
  """Restores a train state as t5x.train does; returns it and its manager."""

  def call(path, model_dir, *, optimizer, initial_prompt, **restore_kwargs):
    model = t5x_model(optimizer)
    partitioner = partitioning.PjitPartitioner(1, logical_axis_rules=RULES)
    pathlib.Path(model_dir).mkdir(exist_ok=True)  # As t5x.train does.
    initializer = t5x_adapter.train_state_initializer(
      init_fn=model.get_initial_variables,
      input_shapes=SHAPES,
      initial_prompt=initial_prompt,
      checkpoint_path=path,
      seed=3,
      optimizer_def=optimizer,
      partitioner=partitioner,
    )
    return utils.create_checkpoint_manager_and_restore(
      initializer,
      partitioner,
      utils.RestoreCheckpointConfig(path, "specific", **restore_kwargs),
      path,
      jax.random.key(1),
      utils.SaveCheckpointConfig(period=1),
      model_dir,
      use_orbax=True,
    )

  return call


def read(path):
  return {
    name: leaves_lib.read(x, leaves_lib.whole(x.shape), x.dtype)
    for name, x in pretrained.open_checkpoint(str(path)).leaves.items()
  }


@pytest.mark.parametrize("kind", ["optax", "multi"])
def test_checkpoints_go_from_us_to_t5x_and_back(
  tmp_path, base, restore, optimizer, tiny_params, kind
):
  start_at = functools.partial(prompt_init.sampled_vocab, population_size=100)
  state, manager = restore(
    base,
    str(tmp_path / "out"),
    optimizer=optimizer(kind),
    initial_prompt=start_at,
    **FROM_BASE,
  )
  assert int(state.step) == 7
  restored = flat(state.params)
  table = tiny_params["token_embedder/embedding"]
  rng = jax.random.fold_in(jax.random.key(3), 1)  # As prompt_tuning.train.
  expected = tiny_params | {PROMPT: start_at(rng, 5, table, list)}
  assert restored.keys() == expected.keys()
  for name, value in restored.items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)

  out = str(tmp_path / "out")
  manager.save(
    state, [functools.partial(t5x_adapter.save_prompt, model_dir=out)]
  )
  manager.wait_until_finished()
  written = tmp_path / "out/checkpoint_7"
  np.testing.assert_equal(read(written), dict(expected))
  prompt = tmp_path / "out/numpy_checkpoints/checkpoint_7"
  assert [x.name for x in prompt.iterdir()] == ["encoder.prompt.prompt.prompt"]
  array = prompt_files.load(str(prompt / "encoder.prompt.prompt.prompt")).prompt
  np.testing.assert_array_equal(array, expected[PROMPT])
  assert list(checkpoint_tool.diff(base, str(written))) == [
    f"{PROMPT}: only in {written}",
    f"{len(tiny_params)} arrays are equal",
  ]


def test_t5x_takes_a_prompt_file_and_its_own_checkpoint_as_a_base(
  tmp_path, base, restore, optimizer, tiny_params
):
  path = str(tmp_path / "prompt.safetensors")
  prompt = np.arange(160, dtype=np.float32).reshape(5, 32)
  table = tiny_params["token_embedder/embedding"]
  metadata = {"base_id": prompt_files.base_id(table)}
  prompt_files.save(path, prompt, metadata)
  from_file = functools.partial(prompt_init.from_file, path=path)
  arguments = {"optimizer": optimizer("optax"), "initial_prompt": from_file}
  state, manager = restore(base, str(tmp_path), **arguments, **FROM_BASE)
  np.testing.assert_array_equal(flat(state.params)[PROMPT], prompt)
  manager.save(state)
  manager.wait_until_finished()

  prompt_files.save(path, prompt + 1, metadata)
  again, _ = restore(
    str(tmp_path / "checkpoint_7"), str(tmp_path), **arguments, **FROM_BASE
  )
  np.testing.assert_array_equal(flat(again.params)[PROMPT], prompt + 1)


def test_t5x_reads_a_checkpoint_that_our_tool_put_a_prompt_into(
  tmp_path, base, restore, tiny_params
):
  prompt = np.full((5, 32), 0.25, np.float32)
  prompt_files.save(str(tmp_path / "prompt.npy"), prompt, {})
  path = str(tmp_path / "whole/checkpoint_7")
  checkpoint_tool.recreate(base, str(tmp_path / "prompt.npy"), path)
  state, _ = restore(
    path,
    str(tmp_path / "out"),
    optimizer=None,
    initial_prompt=prompt_init.random_uniform,
  )
  restored = flat(state.params)
  np.testing.assert_array_equal(restored.pop(PROMPT), prompt)
  for name, value in restored.items():
    np.testing.assert_array_equal(value, tiny_params[name], err_msg=name)


def test_a_base_without_embeddings_is_refused(tmp_path, restore, optimizer):
  path = str(tmp_path / "base.safetensors")
  pretrained.save(path, {"encoder/encoder_norm/scale": jnp.ones(2)}, 7, {})
  match = r"base\.safetensors has no token_embedder/embedding: it is no T5"
  with pytest.raises(ValueError, match=match):
    restore(
      path,
      str(tmp_path),
      optimizer=optimizer("optax"),
      initial_prompt=prompt_init.random_uniform,
      **FROM_BASE,
    )


def test_a_prompt_can_start_from_drawn_embeddings(t5x_model):
  model = t5x_model()
  state = t5x_adapter.train_state_initializer(
    init_fn=model.get_initial_variables,
    input_shapes=SHAPES,
    initial_prompt=prompt_init.sampled_vocab,
    checkpoint_path=None,
    optimizer_def=None,
    partitioner=partitioning.PjitPartitioner(1, logical_axis_rules=RULES),
  ).from_scratch(jax.random.key(0))
  drawn = flat(state.params)
  table = {tuple(row) for row in drawn["token_embedder/embedding"].tolist()}
  assert {tuple(row) for row in drawn[PROMPT].tolist()} < table
