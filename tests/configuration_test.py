# SPDX-License-Identifier: Apache-2.0
import pathlib

import numpy as np
import pytest

import gin
from prompt_tuning import configuration, t5

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = "encoder/prompt/prompt/prompt"
FINETUNE = "gin/runs/prompt_finetune.gin"
# What the released demo sets, with module and file names exchanged.
SST2_DEMO = (
  "--gin_file=gin/models/t5_1_1_base.gin",
  "--gin_file=gin/prompts/from_class_labels.gin",
  f"--gin_file={FINETUNE}",
  "--gin.CLASS_LABELS=['positive', 'negative']",
  "--gin.MODEL_DIR='/tmp/model'",
  "--gin.MIXTURE_OR_TASK_NAME='taskless_glue_sst2_v200_examples'",
  "--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.tasks.glue'",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 8}",
  "--gin.INITIAL_CHECKPOINT_PATH='gs://bucket/checkpoint_1100000'",
  "--gin.TRAIN_STEPS=1_150_000",
  "--gin.USE_CACHED_TASKS=False",
  "--gin_search_paths='/nowhere','/elsewhere'",
  "--tfds_data_dir=/data",
)
# Small enough to run; the last of a flag given twice counts.
TINY = ("--gin_file=tests/tiny_run.gin", "--gin.MODEL_DIR='/tmp/model'")


def files(folder):
  paths = sorted((ROOT / "gin" / folder).glob("*.gin"))
  return [str(path.relative_to(ROOT)) for path in paths]


def load(*argv):
  configuration.load(configuration.parse_flags("train", argv))


@pytest.mark.parametrize("path", files("models"))
def test_every_model_file_builds(gin_model, path):
  model = gin_model(
    path,
    "gin/prompts/random_uniform.gin",
    bindings=["t5.Transformer.config = @t5.T5Config()"],
  )
  config = model.config
  shapes = t5.param_shapes(model)
  assert shapes[PROMPT].shape == (100, config.emb_dim)
  assert ("decoder/logits_dense/kernel" in shapes) == ("t5_1_0" not in path)


# Lester et al. (2021), table 4: totals with a prompt of 100.
@pytest.mark.parametrize(
  ("size", "total"),
  [
    ("small", 77_012_352),
    ("base", 247_654_656),
    ("large", 783_252_480),
    ("xl", 2_849_961_984),
    ("xxl", 11_135_741_952),
  ],
)
def test_parameter_counts_are_those_of_the_paper(gin_model, size, total):
  model = gin_model(
    f"gin/models/t5_1_1_{size}.gin",
    "gin/prompts/from_sampled_vocab.gin",
    bindings=["t5.Transformer.config = @t5.T5Config()"],
  )
  shapes = t5.param_shapes(model)
  assert sum(x.size for x in shapes.values()) == total


@pytest.mark.parametrize("path", files("prompts"))
def test_every_prompt_file_names_an_initialiser(path):
  macros = {
    "from_class_labels": "CLASS_LABELS=['a']",
    "from_string": "PROMPT_STRING='a b'",
    "from_file": "PROMPT_FILE='prompt.npy'",
  }
  macro = macros.get(pathlib.Path(path).stem)
  extra = [f"--gin.{macro}"] if macro else []
  load(*TINY, f"--gin_file={path}", *extra)
  init = gin.query_parameter("train.train.initial_prompt")
  assert str(init).startswith("@prompt_init.")


BASE = "--gin_file=gin/models/t5_1_1_base.gin"
SEQIO = ("--gin_file=gin/runs/seqio.gin", *SST2_DEMO[5:8])
OWN = tuple(x for x in SST2_DEMO[3:] if "CLASS_LABELS" not in x)
CORPUS = ("--gin.CACHE_DIR='a'", "--gin.MODEL_DIR='b'")
# What each run file is used with, itself included.
COMMANDS = {
  "cache": (*SEQIO, "--gin_file=gin/runs/cache.gin", "--gin.CACHE_DIR='a'"),
  "demo": ("--gin_file=gin/runs/demo.gin",),
  "eval": (
    BASE,
    *SEQIO,
    "--gin_file=gin/runs/eval.gin",
    "--gin.EVAL_OUTPUT_DIR='a'",
    "--gin.CHECKPOINT_PATH='b'",
    "--gin.PROMPT_FILE='c'",
  ),
  "finetune": (BASE, "--gin_file=gin/runs/finetune.gin", *SEQIO[:1], *OWN),
  "from_cache": (
    BASE,
    "--gin_file=gin/runs/finetune.gin",
    "--gin_file=gin/runs/from_cache.gin",
    *CORPUS,
    *(OWN[1], *OWN[3:6]),
  ),
  "infer": (
    BASE,
    "--gin_file=gin/runs/infer.gin",
    "--gin.CHECKPOINT_PATH='a'",
    "--gin.INFER_OUTPUT_DIR='b'",
    "--gin.INPUT_FILE='c.txt'",
    SST2_DEMO[7],
  ),
  "lm_adapt": (
    "--gin_file=gin/models/english_4m.gin",
    "--gin_file=gin/runs/lm_adapt.gin",
    *CORPUS,
    "--gin.INITIAL_CHECKPOINT_PATH='c'",
  ),
  "match_t5x": (*SST2_DEMO, "--gin_file=gin/runs/match_t5x.gin"),
  "model_tune": (BASE, "--gin_file=gin/runs/model_tune.gin", *OWN),
  "model_tune_from_cache": (
    BASE,
    "--gin_file=gin/runs/model_tune_from_cache.gin",
    *CORPUS,
    *(OWN[1], *OWN[3:6]),
  ),
  "own_data": (
    *SST2_DEMO[:3],
    "--gin_file=gin/runs/own_data.gin",
    "--gin.TRAIN_FILE='a.csv'",
    "--gin.VALIDATION_FILE='b.csv'",
    "--gin.INPUT_TEMPLATE='{a}'",
    *SST2_DEMO[3:5],
    *SST2_DEMO[7:10],
  ),
  "pretrain": (
    "--gin_file=gin/models/english_4m.gin",
    "--gin_file=gin/runs/pretrain.gin",
    *CORPUS,
  ),
  "prompt_finetune": SST2_DEMO,
  "prompt_finetune_from_cache": (
    *SST2_DEMO[:2],
    "--gin_file=gin/runs/prompt_finetune_from_cache.gin",
    *CORPUS,
    *(SST2_DEMO[3], SST2_DEMO[5], *SST2_DEMO[7:10]),
  ),
  "text_files": (
    "--gin_file=gin/runs/text_files.gin",
    "--gin_file=gin/runs/cache.gin",
    "--gin.CACHE_DIR='a'",
    "--gin.TRAIN_FILES='b'",
    "--gin.VALIDATION_FILES='c'",
  ),
}
# Files that only others include, and one that includes them.
INCLUDED = {
  "input_file": "infer",
  "loss": "prompt_finetune",
  "mesh": "prompt_finetune",
  "numerics": "prompt_finetune",
  "seqio": "prompt_finetune",
  "trials": "prompt_finetune",
}


@pytest.mark.parametrize("path", files("runs"))
def test_every_run_file_parses(path):
  name = pathlib.Path(path).stem
  load(*COMMANDS[INCLUDED.get(name, name)])
  assert str(gin.query_parameter("%LOAD_DATA")).startswith("@")


CORPUS_FILES = "text_files.from_text_files"
OWN_FILES = "files.from_files"
# What no test notices by its effect. A macro is written as gin reads it.
BOUND = {
  "prompt_finetune": {
    "losses.LossConfig.z_loss": "%Z_LOSS",
    "losses.LossConfig.label_smoothing": "%LABEL_SMOOTHING",
    "losses.LossConfig.normalizing_factor": "%LOSS_NORMALIZING_FACTOR",
    "partitioning.MeshConfig.num_partitions": "%NUM_PARTITIONS",
    "partitioning.MeshConfig.model_parallel_submesh": "%MODEL_PARALLEL_SUBMESH",
    "partitioning.MeshConfig.parameter_sharding": "%PARAMETER_SHARDING",
    "partitioning.MeshConfig.prompt_sharding": "%PROMPT_SHARDING",
    "t5.T5Config.dropout_rate": "%DROPOUT_RATE",
    "loop.LoopConfig.eval_steps": "%EVAL_STEPS",
    "optim.adafactor.learning_rate": "0.3",
  },
  "prompt_finetune_from_cache": {
    "cache.from_cache.vocabulary_sha256": "%VOCABULARY_SHA256",
    "optim.adafactor.learning_rate": "0.3",
  },
  **{
    name: {
      "optim.adafactor.learning_rate": "0.001",
      "optim.adafactor.multiply_by_parameter_scale": "True",
      "optim.adafactor.weight_decay_rate": "None",
    }
    for name in ("model_tune", "model_tune_from_cache")
  },
  "pretrain": {
    "corpus.with_objective.objective": "%OBJECTIVE",
    "optim.adafactor.multiply_by_parameter_scale": "True",
    "optim.learning_rate_schedule.factors": "linear_decay",
    "optim.learning_rate_schedule.base_learning_rate": "%PEAK_LEARNING_RATE",
    "optim.learning_rate_schedule.warmup_steps": "%WARMUP_STEPS",
    "optim.learning_rate_schedule.decay_factor": "%LEARNING_RATE_DECAY",
    "%OBJECTIVE": "span_corruption",
    "%PEAK_LEARNING_RATE": "0.02",
    "%WARMUP_STEPS": "500",
    "%BATCH_SIZE": "128",
  },
  "lm_adapt": {
    "%OBJECTIVE": "prefix_lm",
    "%PEAK_LEARNING_RATE": "0.01",
    "%WARMUP_STEPS": "50",
    "%BATCH_SIZE": "64",
  },
  "own_data": {
    f"{OWN_FILES}.train_file": "%TRAIN_FILE",
    f"{OWN_FILES}.validation_file": "%VALIDATION_FILE",
    f"{OWN_FILES}.input_template": "%INPUT_TEMPLATE",
    f"{OWN_FILES}.target_column": "%TARGET_COLUMN",
    f"{OWN_FILES}.labels": "%LABELS",
  },
  "text_files": {
    f"{CORPUS_FILES}.train_files": "%TRAIN_FILES",
    f"{CORPUS_FILES}.validation_files": "%VALIDATION_FILES",
  },
}


@pytest.mark.parametrize("name", BOUND)
def test_macros_and_numbers_are_bound_to_their_parameters(name):
  load(*COMMANDS[name])
  found = {key: str(gin.query_parameter(key)) for key in BOUND[name]}
  assert found == BOUND[name]


def test_match_t5x_counts_from_the_step_of_the_base():
  load(*COMMANDS["match_t5x"])
  offset = gin.query_parameter("optim.adafactor.decay_offset")
  assert offset == -1_100_000


def test_the_released_demo_command_means_the_same_here():
  load(*SST2_DEMO)
  value = lambda name: gin.query_parameter(f"%{name}")
  assert value("TASK_FEATURE_LENGTHS") == {"inputs": 512, "targets": 8}
  assert value("BATCH_SIZE") == 128
  assert value("DROPOUT_RATE") == 0.1
  assert value("ACTIVATION_DTYPE") == "bfloat16"
  assert value("PROMPT_LENGTH") == 100
  assert value("EVAL_PERIOD") == 1000
  assert gin.query_parameter("optim.adafactor.learning_rate") == 0.3
  assert gin.query_parameter("data.from_seqio.tfds_data_dir") == "/data"
  model = gin.get_configurable(t5.Transformer)()
  assert model.config.emb_dim == 768
  assert model.prompt.length == 100


def test_a_later_file_overrides_an_earlier_one_and_flags_both():
  small = "--gin_file=gin/models/t5_1_1_small.gin"
  load(*TINY, small, "--gin.t5.T5Config.num_encoder_layers=3")
  assert gin.query_parameter("t5.T5Config.emb_dim") == 512
  assert gin.query_parameter("t5.T5Config.num_encoder_layers") == 3


def test_files_are_found_from_any_directory(tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  own = tmp_path / "own"
  own.mkdir()
  (own / "mine.gin").write_text("include 'gin/runs/demo.gin'\nEVAL_STEPS = 3\n")
  load("--gin_file=mine.gin", f"--gin_search_paths={own}")
  assert gin.query_parameter("%EVAL_STEPS") == 3
  assert not caplog.records


def test_a_comment_hides_no_line_behind_it(tmp_path):
  file = tmp_path / "own.gin"
  file.write_text("OWN = 3  # Of us.\nEVAL_STEPS = %OWN\n")
  load(*TINY, f"--gin_file={file}")
  assert gin.query_parameter("%OWN") == 3


def fails(capsys, monkeypatch, *argv):
  """Runs the command in this process; returns its message."""
  monkeypatch.setattr("sys.argv", ["train", *argv])
  with pytest.raises(SystemExit) as info:
    configuration.run("prompt_tuning.train.train")
  assert info.value.code == 2
  message = capsys.readouterr().err.strip()
  assert len(message.splitlines()) == 1
  return message


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (SST2_DEMO[:5] + SST2_DEMO[6:], "MIXTURE_OR_TASK_NAME is required: add"),
    (
      (*SST2_DEMO, "--gin.TRIAN_STEPS=3"),
      "reads the macro TRIAN_STEPS: did you mean TRAIN_STEPS?",
    ),
    ((*TINY, "--gin.TRAIN_STEPS=many"), "--gin.TRAIN_STEPS=\"'text'\""),
    (
      (*TINY, "--gin.MIXTURE_OR_TASK_NAME=/a/b"),
      "--gin.MIXTURE_OR_TASK_NAME=/a/b has no value that gin can read",
    ),
    (
      (*SST2_DEMO, "--gin.batch_size=3"),
      "reads the macro batch_size: did you mean BATCH_SIZE?",
    ),
    (
      (*TINY, "--gin.prompts.PromptConfig.lenght=3"),
      "doesn't have a parameter named 'lenght'",
    ),
    ((*TINY, "--gin.prompts.PromtConfig.length=3"), "PromtConfig"),
    ((*TINY, "--gin.BATCH_SIZE=%NONE"), "NONE has no value: add --gin.NONE"),
    (
      ("--gin_file=gin/runs/dmo.gin",),
      "'gin/runs/dmo.gin' is not found; did you mean gin/runs/demo.gin?",
    ),
    (
      (*TINY, "--gin.MIXTURE_OR_TASK_NAME='demo_sentimnt'"),
      "'demo_sentimnt' is not registered; did you mean demo_sentiment",
    ),
    (
      (*TINY, "--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.tasks.no'"),
      "'prompt_tuning.tasks.no' cannot be imported",
    ),
    (
      (
        *TINY,
        "--gin.BATCH_SIZE=30",
        "--gin.loop.LoopConfig.num_microbatches=4",
      ),
      "BATCH_SIZE=30 must be divisible by the 4 microbatches",
    ),
    ((*TINY, "--gin.PROMPT_LENGTH=0"), "PROMPT_LENGTH=0 must be 1 or more"),
    ((*TINY, "--gin.TRAIN_STEPS=0"), "train_steps=0 must be 1 or more"),
    (
      (
        *TINY,
        "--gin_file=gin/runs/from_cache.gin",
        "--gin.CACHE_DIR='/nowhere'",
        "--gin.MIXTURE_OR_TASK_NAME='a'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
      ),
      "/nowhere is not a cache: it has no manifest.json",
    ),
    (
      (
        *TINY,
        "--gin_file=gin/runs/own_data.gin",
        "--gin.TRAIN_FILE='/nowhere.csv'",
        "--gin.VALIDATION_FILE='/nowhere.csv'",
        "--gin.INPUT_TEMPLATE='{a}'",
        "--gin.VOCABULARY=@vocabularies.english_8k()",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
      ),
      "there is no file /nowhere.csv",
    ),
    (
      (*TINY, "--gin.loop.LoopConfig.num_buckets=-1"),
      "LoopConfig.num_buckets=-1 must be 0 or more",
    ),
    (
      (*TINY, "--gin.EVAL_MODE='ranked'"),
      "EVAL_MODE='ranked' must be 'generation' or 'rank'",
    ),
    (
      (*TINY, "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 1}"),
      "['targets']=1 is too short for the label 'negative'",
    ),
    (
      (*TINY, "--gin.TASK_FEATURE_LENGTHS={'inputs': 8}"),
      "must have the keys 'inputs' and 'targets'",
    ),
    (
      (
        *TINY,
        "--gin.MIXTURE_OR_TASK_NAME='taskless_super_glue_rte_v102'",
        "--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.tasks.super_glue'",
        "--tfds_data_dir=/nowhere",
      ),
      "the data set of taskless_super_glue_rte_v102 cannot be read",
    ),
    (
      (*TINY, "--gin.INITIAL_CHECKPOINT_PATH='/nowhere/checkpoint_1'"),
      "/nowhere/checkpoint_1",
    ),
    (
      (*TINY, "--gin.t5.T5Config.vocab_size=100"),
      "the vocabulary has 8192 ids, the model's embedding table 100 rows",
    ),
    (
      (*TINY, "--gin.PROMPT_REGEX=['.*promtp.*']"),
      "'.*promtp.*' matches no parameter",
    ),
    (
      (*TINY, "--gin.train.train.initial_prompt=None"),
      "needs an initial value: add a file of gin/prompts",
    ),
  ],
)
def test_a_mistake_is_one_sentence(
  capsys, monkeypatch, tmp_path, argv, message
):
  argv = (*argv, f"--gin.MODEL_DIR='{tmp_path}'")
  assert message in fails(capsys, monkeypatch, *argv)


@pytest.mark.slow
def test_a_prompt_file_of_another_length_is_refused(
  capsys, monkeypatch, tmp_path
):
  np.save(tmp_path / "prompt.npy", np.zeros((7, 16), np.float32))
  argv = (
    *TINY,
    "--gin_file=gin/prompts/from_file.gin",
    f"--gin.PROMPT_FILE='{tmp_path}/prompt.npy'",
    "--gin.PROMPT_LENGTH=20",
    f"--gin.MODEL_DIR='{tmp_path}'",
  )
  message = fails(capsys, monkeypatch, *argv)
  assert "shape (7, 16), the model wants (20, 16)" in message


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ((), "--gin_file is required"),
    (("--gin_fil=x",), "--gin_fil=x is not known"),
    (("--gin.X",), "--gin.X is not known"),
  ],
)
def test_a_malformed_command_line_is_refused(capsys, argv, message):
  with pytest.raises(SystemExit) as info:
    configuration.parse_flags("train", argv)
  assert info.value.code == 2
  assert message in capsys.readouterr().err
