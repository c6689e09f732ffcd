# SPDX-License-Identifier: Apache-2.0
from collections import Counter
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

import gin
from prompt_tuning import (
  batching,
  cache,
  checkpoints,
  configuration,
  partitioning,
  pretrained,
  prompt_files,
  prompts,
  t5,
  task_data,
  trainer,
)
from prompt_tuning import (
  eval as eval_lib,
)
from prompt_tuning import (
  evaluate as evaluate_lib,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

LABELS = ("ca", "bc", "ab")
CONFIG = t5.T5Config(
  vocab_size=128,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=16,
)
NUM_ROWS = 7
BINDINGS = (
  "PROMPT_FILE = 'prompt.npy'",
  "EVAL_OUTPUT_DIR = 'out'",
  "EVAL_MODE = 'rank'",
  "MIXTURE_OR_TASK_NAME = 'demo_sentiment'",
  "TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 4}",
)


@pytest.fixture(scope="module")
def params():
  """Weights so large that inputs and prompts change what is predicted."""
  params = t5.init_params(t5.Transformer(CONFIG), seed=0)
  return {k: 3 * x if k.endswith("kernel") else x for k, x in params.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory, params):
  """A base and three prompts, by name."""
  folder = tmp_path_factory.mktemp("files")
  pretrained.save(f"{folder}/base.safetensors", params, 5, {})
  table = params["token_embedder/embedding"]
  described = {"base_id": prompt_files.base_id(table)}
  paths = {"base": f"{folder}/base.safetensors"}
  for i in range(3):
    paths[f"prompt_{i}"] = f"{folder}/prompt_{i}.safetensors"
    prompt = jax.random.normal(jax.random.key(i), (4, 8)) * 3
    prompt_files.save(paths[f"prompt_{i}"], prompt, described)
  paths["behind"] = f"{folder}/behind.safetensors"
  prompt_files.save(paths["behind"], prompt, {"place": "suffix_prompt"})
  return paths


def make_data():
  """Rows of other lengths each, in the vocabulary of bytes."""
  golds = [LABELS[i % 3] for i in range(NUM_ROWS)]
  inputs = [[*range(5, 7 + 2 * i), 1] for i in range(NUM_ROWS)]
  targets = [[*(ord(c) + 3 for c in gold), 1] for gold in golds]
  ragged = lambda rows: batching.Ragged.from_rows(
    [np.array(row, np.int32) for row in rows]
  )
  accuracy = lambda targets, predictions: {
    "accuracy": 100 * np.mean(np.array(targets) == np.array(predictions))
  }
  examples = batching.Examples(ragged(inputs), ragged(targets))
  rows = [
    {
      "inputs_pretokenized": f"é{i}".encode(),
      "targets_pretokenized": x.encode(),
    }
    for i, x in enumerate(golds)
  ]
  scoring = task_data.Scoring(
    lambda text, **unused: text, (accuracy,), ("accuracy",), LABELS
  )
  return task_data.TaskData(
    "task",
    ["task"],
    [(examples, 1.0)],
    [task_data.EvalTask("task", examples, rows, scoring)],
    {"inputs": 20, "targets": 4},
    vocabulary_lib.from_bytes(128),
  )


@pytest.fixture
def evaluate(files, tmp_path):
  """Evaluates; returns metrics by column and the rows of predictions."""

  def call(*names, folder="out", mode="rank", **kwargs):
    arguments = {
      "eval_output_dir": f"{tmp_path}/{folder}",
      "checkpoint_path": files["base"],
      "prompt_file": [files[name] for name in names] or None,
      "model": t5.Transformer(CONFIG),
      "load_data": make_data,
      # Six rows for each of the two devices.
      "config": eval_lib.EvalConfig(batch_size=12, mode=mode, num_buckets=2),
    }
    eval_lib.evaluate(**(arguments | kwargs))
    metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
    path = tmp_path / folder / "predictions" / "task.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return metrics, rows

  return call


def test_a_prompt_leaves_metrics_predictions_and_events(
  evaluate, files, tmp_path, capsys
):
  metrics, rows = evaluate("prompt_0")
  assert metrics["step"] == 5
  assert metrics["prompts"] == [files["prompt_0"]]
  assert [row["input"] for row in rows] == [f"é{i}" for i in range(NUM_ROWS)]
  assert [row["target"] for row in rows] == [
    LABELS[i % 3] for i in range(NUM_ROWS)
  ]
  for row in rows:
    scores = row["label_scores"]
    assert tuple(scores) == LABELS
    assert row["prediction"] == max(scores, key=scores.get)
    assert row["score"] == max(scores.values()) < 0
  hits = np.mean([row["target"] == row["prediction"] for row in rows])
  assert metrics["metrics"]["eval"]["task/accuracy"] == pytest.approx(
    100 * hits
  )
  shown = capsys.readouterr().out.splitlines()
  assert f"prompt_1: {files['prompt_0']}" in shown
  cells = ["task/accuracy", f"{100 * hits:.4g}"]
  assert cells in [line.split() for line in shown]
  names = {x.name for x in (tmp_path / "out").iterdir()}
  assert names == {
    "metrics.json",
    "operative_config.gin",
    "predictions",
    "tensorboard",
  }
  (path,) = (tmp_path / "out" / "tensorboard").glob("events*")
  events = {
    value.tag: (event.step, value.simple_value)
    for event in tf.compat.v1.train.summary_iterator(str(path))
    for value in event.summary.value
  }
  written = metrics["metrics"]["eval"]
  assert events == {
    f"eval/{name}": (5, pytest.approx(x)) for name, x in written.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["generation", "rank"])
def test_an_ensemble_reports_what_separate_runs_do(evaluate, mode):
  names = ("prompt_0", "prompt_1", "prompt_2")
  separate = [evaluate(name, mode=mode, folder=name) for name in names]
  metrics, rows = evaluate(*names, mode=mode)
  table = metrics["metrics"]
  singles = [x["metrics"]["eval"] for x, _ in separate]
  assert [table[f"prompt_{i}"] for i in (1, 2, 3)] == singles
  accuracies = [x["task/accuracy"] for x in singles]
  assert table["average"]["score"] == pytest.approx(np.mean(accuracies))
  assert table["best"]["score"] == max(accuracies)
  num_hits = num_dissenting = 0
  for i, row in enumerate(rows):
    answers = [own[i] for _, own in separate]
    assert [x["prediction"] for x in row["prompts"]] == [
      x["prediction"] for x in answers
    ]
    for one, other in zip(row["prompts"], answers, strict=True):
      assert one["score"] == pytest.approx(other["score"], abs=1e-5)
      assert one.get("label_scores") == pytest.approx(
        other.get("label_scores"), abs=1e-5
      )
    votes = Counter(x["prediction"] for x in answers)
    assert votes[row["prediction"]] == max(votes.values())
    num_hits += row["prediction"] == row["target"]
    num_dissenting += row["dissent"] > 0
  assert table["ensemble"]["score"] == pytest.approx(100 * num_hits / NUM_ROWS)
  assert num_dissenting, "the prompts make no difference"


@pytest.mark.parametrize(
  "mode", ["generation", pytest.param("rank", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  "mesh",
  [
    partitioning.MeshConfig(2, prompt_sharding=True),
    partitioning.MeshConfig(parameter_sharding=True),
  ],
  ids=["model_2", "fsdp_2"],
)
def test_a_mesh_predicts_what_one_device_does(
  evaluate, files, params, mesh, mode
):
  data = make_data()
  found = [prompt_files.load(files[f"prompt_{i}"]).prompt for i in range(3)]
  model = t5.Transformer(CONFIG, prompts.PromptConfig(length=4))
  # Without a mesh, on the first device alone.
  predict = evaluate_lib.predict_task_fn(model, data, mode=mode, batch_size=12)
  alone = params | {prompt_files.NAME: jnp.stack(found)}
  members = predict(alone, data.eval_tasks[0])
  config = eval_lib.EvalConfig(batch_size=12, mode=mode, mesh=mesh)
  _, rows = evaluate(*[f"prompt_{i}" for i in range(3)], config=config)
  assert len(rows) == NUM_ROWS
  for i, row in enumerate(rows):
    for member, answer in zip(members, row["prompts"], strict=True):
      assert answer["prediction"] == member.texts[i]
      assert answer["score"] == pytest.approx(member.scores[i], rel=1e-5)


def test_a_task_without_metrics_has_predictions_alone(evaluate, capsys):
  def load_data():
    data = make_data()
    scoring = task_data.unscored("task")
    task = data.eval_tasks[0]._replace(scoring=scoring)
    return data._replace(eval_tasks=[task])

  for names in (("prompt_0",), ("prompt_0", "prompt_1")):
    metrics, rows = evaluate(*names, load_data=load_data, mode="generation")
    assert [row["target"] for row in rows] == [
      LABELS[i % 3] for i in range(NUM_ROWS)
    ]
    columns = metrics["metrics"].values()
    assert all("task/accuracy" not in scores for scores in columns)
  assert "no task has metrics" in capsys.readouterr().out


def test_neither_batches_nor_buckets_change_a_prediction(evaluate):
  names = ("prompt_0", "prompt_1", "prompt_2")
  config = eval_lib.EvalConfig(batch_size=6, mode="rank")
  _, rows = evaluate(*names)
  _, others = evaluate(*names, folder="other", config=config)
  for row, other in zip(rows, others, strict=True):
    assert row["mean_probabilities"] == pytest.approx(
      other["mean_probabilities"], abs=1e-5
    )
    assert row["prediction"] == other["prediction"]


def save_run(folder, params):
  """Leaves what a run that trains all parameters leaves."""
  path = f"{folder}/best"
  with checkpoints.open_manager(path, keep=1) as manager:
    state = trainer.TrainState(jnp.int32(7), params, {})
    metadata = {"base_fingerprint": "", "run": {}}
    checkpoints.save_best(manager, state, 1.0, metadata)


@pytest.mark.parametrize("place", ["", "/best/checkpoint_7"])
def test_a_run_of_model_tuning_is_a_model_without_a_prompt(
  evaluate, params, tmp_path, place
):
  tuned = {name: 2 * x for name, x in params.items()}
  pretrained.save(f"{tmp_path}/tuned.safetensors", tuned, 7, {})
  expected = evaluate(checkpoint_path=f"{tmp_path}/tuned.safetensors")
  save_run(f"{tmp_path}/run", tuned)
  found = evaluate(checkpoint_path=f"{tmp_path}/run{place}")
  assert found == expected
  assert found[0]["step"] == 7
  assert found[1] != evaluate()[1]


@pytest.mark.slow
def test_a_base_may_have_random_weights(evaluate, tmp_path, capsys):
  params = t5.init_params(t5.Transformer(CONFIG), seed=2)
  pretrained.save(f"{tmp_path}/random.safetensors", params, 0, {})
  config = eval_lib.EvalConfig(batch_size=7, mode="rank", seed=2)
  expected, found = (
    evaluate(checkpoint_path=path, config=config)
    for path in (f"{tmp_path}/random.safetensors", None)
  )
  assert found == expected
  assert "the base has random weights" in capsys.readouterr().out


@pytest.fixture
def short(files, tmp_path):
  path = f"{tmp_path}/short.npy"
  prompt_files.save(path, np.ones((3, 8)), {})
  return path


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda files, short: {"prompt_file": [files["prompt_0"], short]},
      r"short.npy' has length 3, .*prompt_0.* has 4: .* must have one length",
    ),
    (
      lambda files, short: {
        "prompt_file": [files["prompt_0"]] * 3,
        "config": eval_lib.EvalConfig(batch_size=5),
      },
      "BATCH_SIZE=5 must be at least 6: each input is a row for each of 3",
    ),
    (
      lambda files, short: {"prompt_file": "/nowhere/prompt.npy"},
      "PROMPT_FILE='/nowhere/prompt.npy' does not exist",
    ),
    (
      lambda files, short: {
        "prompt_file": files["prompt_0"],
        "checkpoint_path": None,
        "config": eval_lib.EvalConfig(seed=1),
      },
      "was tuned for another base",
    ),
    (
      lambda files, short: {"prompt_file": files["behind"]},
      "tuned as 'suffix_prompt', and this model puts it as 'prefix_prompt'",
    ),
    (
      lambda files, short: {"checkpoint_path": "/nowhere"},
      "the checkpoint '/nowhere' does not exist",
    ),
    (
      lambda files, short: {
        "load_data": lambda: make_data()._replace(
          vocabulary=vocabulary_lib.from_bytes(259)
        )
      },
      "the vocabulary has 259 ids, the model's embedding table 128 rows",
    ),
    (
      lambda files, short: {
        "load_data": lambda: make_data()._replace(eval_tasks=[])
      },
      "task has no validation split to predict",
    ),
    (
      lambda files, short: {
        "config": eval_lib.EvalConfig(mesh=partitioning.MeshConfig(3))
      },
      "2 devices cannot be divided into groups of 3",
    ),
  ],
)
def test_a_mistake_is_refused(evaluate, files, short, make, message):
  with pytest.raises(ValueError, match=message):
    evaluate(**make(files, short))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"batch_size": 0}, "BATCH_SIZE=0 must be 1 or more"),
    ({"num_buckets": -1}, "NUM_BUCKETS=-1 must be 0 or more"),
    ({"mode": "ranked"}, "EVAL_MODE='ranked' must be 'generation' or 'rank'"),
  ],
)
def test_a_setting_out_of_its_range_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    eval_lib.EvalConfig(**fields)


@pytest.mark.parametrize(
  ("data_file", "macro"),
  [
    ("seqio", "MIXTURE_OR_TASK_MODULE = 'prompt_tuning.tasks.demo'"),
    ("from_cache", "CACHE_DIR = 'cache'"),
    ("own_data", "TRAIN_FILE = 'a.csv'"),
  ],
)
def test_the_gin_file_fits_every_source_of_data(data_file, macro):
  bindings = [macro, *BINDINGS, "CHECKPOINT_PATH = 'base'"]
  if data_file == "own_data":
    bindings += ["VALIDATION_FILE = 'b.csv'", "INPUT_TEMPLATE = '{a}'"]
  names = (
    "gin/models/tiny.gin",
    f"gin/runs/{data_file}.gin",
    "gin/runs/eval.gin",
  )
  configuration.load(configuration.Flags(names, bindings, ()))
  source = gin.query_parameter("eval.evaluate.load_data")
  assert "LOAD_DATA" in str(source)
  assert gin.query_parameter("%MIXTURE_OR_TASK_NAME") == "demo_sentiment"
  config = gin.get_configurable(eval_lib.EvalConfig)()
  assert config == eval_lib.EvalConfig(mode="rank", num_buckets=4)


def command(data_file, files, folder, *bindings):
  """Evaluates by gin files, as the command does; returns the metrics."""
  gin.clear_config()
  names = ("gin/models/tiny.gin", data_file, "gin/runs/eval.gin")
  bindings = (
    *BINDINGS,
    "t5.T5Config.emb_dim = 8",
    "t5.T5Config.num_encoder_layers = 1",
    "t5.T5Config.num_decoder_layers = 1",
    "CHECKPOINT_PATH = None",
    f"PROMPT_FILE = '{files}/prompt.npy'",
    f"EVAL_OUTPUT_DIR = '{folder}'",
    *bindings,
  )
  configuration.load(configuration.Flags(names, bindings, ()))
  gin.get_configurable(eval_lib.evaluate)()
  assert "EVAL_MODE = 'rank'" in (folder / "operative_config.gin").read_text()
  return json.loads((folder / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
def test_the_command_reads_a_task_or_its_cache(tmp_path):
  prompt_files.save(f"{tmp_path}/prompt.npy", np.ones((3, 8)), {})
  seqio = (
    "MIXTURE_OR_TASK_MODULE = 'prompt_tuning.tasks.demo'",
    "VOCABULARY = @vocabularies.english_8k()",
  )
  expected = command("gin/runs/seqio.gin", tmp_path, tmp_path / "seqio", *seqio)
  load_data = gin.query_parameter("%LOAD_DATA")
  cache.write(f"{tmp_path}/cache", load_data.scoped_configurable_fn())
  found = command(
    "gin/runs/from_cache.gin",
    tmp_path,
    tmp_path / "cached",
    f"CACHE_DIR = '{tmp_path}/cache'",
  )
  assert found == expected
  assert 0 < expected["eval"]["demo_sentiment/accuracy"] < 100
