# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import subprocess
import sys

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import partitioning, prompts, t5
from prompt_tuning.partitioning import MeshConfig

SCRIPT = pathlib.Path(__file__).parent / "partitioning_cases.py"
NUM_STEPS = 10
PROMPT = "encoder/prompt/prompt/prompt"


def run_cases(cases, num_targets, tmp_path):
  """Trains on eight devices, in a process of their own."""
  path = tmp_path / "cases.json"
  program = [
    *(sys.executable, str(SCRIPT), json.dumps(cases)),
    *(str(num_targets), str(path)),
  ]
  result = subprocess.run(program, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  return json.loads(path.read_text())


def check_cases(found):
  """Compares each case with a device alone.

  float32; sums over rows and heads are taken in another order. The prompt has
  values of up to 3, of which Adafactor turns a step of 0.3 by the sign.
  """
  plain, single, *others = found
  assert single["losses"] == plain["losses"]
  assert single["prompt"] == plain["prompt"]
  for case in others:
    name = str(case["config"])
    np.testing.assert_allclose(
      case["losses"], single["losses"], rtol=1e-5, err_msg=name
    )
    np.testing.assert_allclose(
      case["prompt"], single["prompt"], atol=1e-3, err_msg=name
    )
    data, model = (
      8 // case["config"]["num_partitions"],
      (case["config"]["num_partitions"]),
    )
    parts = data * model if case["config"]["parameter_sharding"] else model
    bytes_ = case["bytes"]
    # A kernel of the MLP, in float32, and all that is frozen, on each device.
    assert bytes_["kernel"] == [32 * 64 * 4 // parts] * 8, name
    assert (
      sum(bytes_["frozen"]) < 8 * single["bytes"]["frozen"][0] / parts * 1.3
    )
    shared = 8 if case["config"]["prompt_sharding"] else 1
    assert bytes_["prompt"] == [5 * 32 * 4 // shared] * 8, name
    assert bytes_["moment"] == bytes_["prompt"], name
    assert case["misplaced"] == [], name


CASES = [
  {
    "num_partitions": size,
    "parameter_sharding": parameters,
    "prompt_sharding": prompt,
  }
  for size in (1, 2, 4, 8)
  for parameters in (False, True)
  for prompt in (False, True)
]


@pytest.mark.slow
def test_eight_devices_train_as_one_on_every_mesh(tmp_path):
  found = run_cases(CASES, 2, tmp_path)
  check_cases(found)
  for case in found[2:]:
    print(case["config"], case["collectives"])
  # Along data, nothing but the gradient of the prompt and the metrics is summed
  # over the rows, in each of two microbatches; the tokens alone move, from
  # their batch to these.
  gradient, tokens = 5 * 32 * 4, 16 * (12 + 3 * 2) * 4
  (_, summed), *others = found[2]["collectives"].values()
  assert found[2]["collectives"]["all-reduce"][1] == summed
  assert summed < 2 * (gradient + 64)
  assert sum(num_bytes for _, num_bytes in others) <= tokens
  # With divided products the sums of activations move, the prompt and tokens;
  # dropout cut out of a divided array would be another 30,000 bytes and more.
  for case in found[2:]:
    if not case["config"]["parameter_sharding"]:
      counted = case["collectives"].items()
      rest = [
        num_bytes for kind, (_, num_bytes) in counted if kind != "all-reduce"
      ]
      assert sum(rest) < 5000, case["config"]


@pytest.mark.slow
def test_so_they_do_with_keys_and_values_of_the_encoder(tmp_path):
  check_cases(run_cases([CASES[0], CASES[6]], 4, tmp_path))


@pytest.fixture
def model(tiny_config):
  return t5.Transformer(tiny_config, prompts.PromptConfig(length=5))


def test_every_parameter_has_a_place_by_t5x_rules(model):
  two = MeshConfig(2, parameter_sharding=True)
  with partitioning.use(two):
    shapes = t5.param_shapes(model)
    specs = {
      name: tuple(x.spec)
      for name, x in partitioning.param_shardings(shapes, model, two).items()
    }
  assert specs.keys() == shapes.keys()
  assert specs["token_embedder/embedding"] == ("model", "data")
  assert specs["encoder/layers_0/attention/query/kernel"] == ("data", "model")
  assert specs["decoder/layers_2/mlp/wo/kernel"] == ("model", "data")
  assert specs["decoder/relpos_bias/rel_embedding"] == ("model", None)
  assert specs["encoder/encoder_norm/scale"] == ("data",)
  assert specs[PROMPT] == (None, None)


def test_the_optimizer_is_placed_as_its_parameters(model):
  config = MeshConfig(2, parameter_sharding=True)
  name = "encoder/layers_0/mlp/wi_0/kernel"  # embed 32, mlp 64
  optimizer = optax.adafactor(0.1, min_dim_size_to_factor=8, momentum=0.9)
  for num_trials in (None, 3):
    front = () if num_trials is None else (num_trials,)
    init = lambda front=front: {
      name: jnp.zeros((*front, 32, 64)),
    }
    make = optimizer.init if num_trials is None else jax.vmap(optimizer.init)
    state = jax.eval_shape(lambda init=init, make=make: make(init()))
    with partitioning.use(config):
      found = partitioning.state_shardings(state, model, config)
    moments, placed = (
      optax.tree.get_all_with_path(x, "FactoredState")[0][1]
      for x in (state, found)
    )
    none = (None,) * len(front)
    assert moments.v_row[name].shape == (*front, 32)
    assert tuple(placed.v_row[name].spec) == (*none, "data")
    assert moments.v_col[name].shape == (*front, 64)
    assert tuple(placed.v_col[name].spec) == (*none, "model")
    assert tuple(placed.v[name].spec) == ()
    (momentum,) = [x for _, x in optax.tree.get_all_with_path(found, "ema")]
    assert tuple(momentum[name].spec) == (*none, "data", "model")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num_partitions": 0}, "NUM_PARTITIONS=0 must be 1 or more"),
    ({"model_parallel_submesh": (2, 2)}, "must be four numbers from 1 on"),
    (
      {"num_partitions": 2, "model_parallel_submesh": (2, 2, 1, 1)},
      "NUM_PARTITIONS=2 contradicts MODEL_PARALLEL_SUBMESH=.* of 4 devices",
    ),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    MeshConfig(**arguments)


def test_what_cannot_be_divided_is_refused(tiny_config):
  with pytest.raises(ValueError, match="2 devices cannot be divided into gro"):
    partitioning.make_mesh(MeshConfig(3))
  three_heads = t5.T5Config(
    **{**vars(tiny_config), "num_heads": 3, "head_dim": 8}
  )
  model = t5.Transformer(three_heads)
  shapes = t5.param_shapes(model)
  with (
    partitioning.use(MeshConfig(2)),
    pytest.raises(
      ValueError,
      match="its axis heads of 3 cannot be divided among 2 devices: set"
      " NUM_PARTITIONS to divide 3",
    ),
  ):
    partitioning.param_shardings(shapes, model, MeshConfig(2))
  with (
    partitioning.use(MeshConfig()),
    pytest.raises(
      ValueError, match="BATCH_SIZE=6 must be divisible by 4: 2 parts of the"
    ),
  ):
    partitioning.check_batch_size(6, num_microbatches=2)


def test_a_submesh_is_a_box_of_the_torus():
  places = [
    (x, y, 0, core) for y in range(4) for x in range(4) for core in (0, 1)
  ]
  boxes = partitioning._boxes(places, (2, 2, 1, 2))
  assert boxes.shape == (4, 8)
  second = {places[i][:3] for i in boxes[1]}
  assert second == {(0, 2, 0), (0, 3, 0), (1, 2, 0), (1, 3, 0)}
  with pytest.raises(
    ValueError, match=r"SUBMESH=\(3, 1, 1, 1\) does not fill the torus of"
  ):
    partitioning._boxes(places, (3, 1, 1, 1))


def test_microbatches_are_divided_among_all_devices():
  split = lambda x: nn.with_logical_constraint(
    x.reshape(2, -1, 3), (None, "batch", None)
  )
  rows = np.zeros((8, 3), np.int32)
  with partitioning.use(MeshConfig()), partitioning.gathered_parameters():
    batch = partitioning.place_batch({"x": rows})
    assert batch["x"].sharding.shard_shape((8, 3)) == (4, 3)
    result = jax.jit(split)(batch["x"])
    assert result.sharding.shard_shape((2, 4, 3)) == (2, 2, 3)
  assert partitioning.place_batch({"x": rows})["x"] is rows
