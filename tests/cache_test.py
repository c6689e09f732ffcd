# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from prompt_tuning import (
  batching,
  cache,
  cache_manifest,
  task_data,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

MODEL = pathlib.Path(__file__).parents[1] / "tasks" / "english_8k.model"
LENGTHS = {"inputs": 6, "targets": 3}
PROMPT = "numpy_checkpoints/checkpoint_3/encoder.prompt.prompt.prompt"
RUN = (
  "t5.T5Config.num_encoder_layers = 1",
  "t5.T5Config.num_decoder_layers = 1",
  "t5.T5Config.emb_dim = 16",
  "t5.T5Config.mlp_dim = 32",
  "loop.LoopConfig.eval_at_start = False",
  "TRAIN_STEPS = 3",
  "EVAL_PERIOD = 3",
  "BATCH_SIZE = 8",
  "EVAL_STEPS = 1",
  "PROMPT_LENGTH = 3",
  "DROPOUT_RATE = 0.0",
  "loop.LoopConfig.log_period = 20",
  "loop.LoopConfig.num_microbatches = 1",
)
PRINT_IMPORTS = """
unwanted = {"tensorflow", "seqio", "tensorflow_datasets"}
print("imported:", sorted(unwanted & {x.split(".")[0] for x in sys.modules}))
"""
TRAIN = """
import sys
from prompt_tuning import configuration
configuration.run("prompt_tuning.train.train")
"""
LOAD = """
import sys
import gin
from prompt_tuning import configuration
configuration.load(configuration.parse_flags("train", sys.argv[1:]))
print(gin.query_parameter("%LOAD_DATA").scoped_configurable_fn().name)
"""


SCORING = task_data.Scoring(str.upper, (len,), labels=("yes", "no"))


def examples(*rows):
  ragged = batching.Ragged.from_rows([np.array(x, np.int32) for x in rows])
  return batching.Examples(ragged, ragged)


@pytest.fixture
def data():
  """Two tasks to train on, one of them without a single token."""
  rows = [
    {"targets_pretokenized": b"yes", "idx": 3, "answers": [b"\xff", b"b"]},
    {"targets_pretokenized": b"no", "idx/query": 2**40, "score": 0.1},
  ]
  task = task_data.EvalTask(
    "b",
    examples([5, 1], [8191, 1]),
    rows,
    SCORING,
  )
  return task_data.TaskData(
    "mix",
    ["a", "b"],
    [(examples([2, 3, 1], [4, 1]), 0.25), (examples([], []), 3.0)],
    [task],
    LENGTHS,
    vocabulary_lib.from_sentencepiece(MODEL.read_bytes()),
  )


def read(folder, **kwargs):
  kwargs = {
    "mixture_or_task_name": "mix",
    "feature_lengths": LENGTHS,
    "scoring_fn": lambda name: SCORING,
    **kwargs,
  }
  return cache.from_cache(cache_dir=str(folder), **kwargs)


def same_examples(first, second):
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.offsets, b.offsets)


def test_a_cache_gives_back_what_was_written(data, tmp_path):
  message = cache.write(str(tmp_path / "sub" / "cache"), data)
  assert "wrote mix, 4 rows to train on, 2 to evaluate" in message
  assert data.vocabulary.sha256 in message
  found = read(tmp_path / "sub" / "cache")
  assert found.name == "mix"
  assert found.train_names == ["a", "b"]
  assert found.feature_lengths == LENGTHS
  for a, b in zip(found.train_sources, data.train_sources, strict=True):
    assert a[1] == b[1]
    same_examples(a[0], b[0])
  (task,), (wanted,) = found.eval_tasks, data.eval_tasks
  same_examples(task.examples, wanted.examples)
  assert task._replace(examples=None) == wanted._replace(examples=None)
  assert found.vocabulary.sha256 == data.vocabulary.sha256
  assert found.vocabulary.encode("a letter") == data.vocabulary.encode(
    "a letter"
  )
  stream = lambda sources: batching.train_batches(
    sources[:1], batch_size=3, feature_lengths=LENGTHS, seed=0
  )
  streams = stream(found.train_sources), stream(data.train_sources)
  for a, b in itertools.islice(zip(*streams, strict=True), 4):
    for name, x in a.items():
      assert x.dtype == b[name].dtype
      np.testing.assert_array_equal(x, b[name])


def test_bytes_and_large_vocabularies_are_kept(data, tmp_path):
  large = data._replace(vocabulary=vocabulary_lib.from_bytes(300_000))
  cache.write(str(tmp_path / "cache"), large)
  found = read(tmp_path / "cache")
  assert found.vocabulary.size == 300_000
  assert found.vocabulary.encode("a") == [100]
  assert found.train_sources[0][0].inputs.tokens.dtype == np.int32


def test_the_same_cache_is_left_and_another_is_not_overwritten(data, tmp_path):
  folder = tmp_path / "cache"
  cache.write(str(folder), data)
  before = (folder / "manifest.json").stat().st_mtime_ns
  assert "already there" in cache.write(str(folder), data)
  assert (folder / "manifest.json").stat().st_mtime_ns == before
  for other, name in (
    (data._replace(name="other"), "task"),
    (data._replace(feature_lengths=LENGTHS | {"inputs": 7}), "feature_lengths"),
    (
      data._replace(vocabulary=vocabulary_lib.from_bytes(8192)),
      "vocabulary_sha256",
    ),
    (
      data._replace(eval_tasks=[data.eval_tasks[0]._replace(rows=[{}, {}])]),
      "files",
    ),
  ):
    with pytest.raises(ValueError, match=f"is a cache with other {name}"):
      cache.write(str(folder), other)
  (tmp_path / "else").mkdir()
  with pytest.raises(ValueError, match="is not a cache: it has no manifest"):
    cache.write(str(tmp_path / "else"), data)


def test_an_interrupted_write_leaves_nothing(data, tmp_path):
  unwritable = data.eval_tasks[0]._replace(rows=[{"a": object()}])
  with pytest.raises(TypeError):
    cache.write(str(tmp_path / "cache"), data._replace(eval_tasks=[unwritable]))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"mixture_or_task_name": "mux"}, "task 'mix', the run wants 'mux'"),
    (
      {"feature_lengths": LENGTHS | {"inputs": 5}},
      r"feature_lengths \{'inputs': 6.*, the run wants \{'inputs': 5",
    ),
    ({"vocabulary_sha256": "00"}, "has vocabulary_sha256 .*, the run wants"),
  ],
)
def test_a_cache_that_does_not_fit_is_refused(data, tmp_path, kwargs, message):
  cache.write(str(tmp_path / "cache"), data)
  with pytest.raises(ValueError, match=message):
    read(tmp_path / "cache", **kwargs)


def change_manifest(folder, **fields):
  path = folder / "manifest.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def forge(folder, name, content):
  """Puts a file into a cache, with a manifest that agrees."""
  (folder / name).write_bytes(content)
  manifest = cache_manifest.with_files(cache_manifest.read(folder), folder)
  change_manifest(folder, files=manifest.files, sizes=manifest.sizes)


def flip(path):
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def saved(array, allow_pickle=False):
  import io

  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=allow_pickle)
  return buffer.getvalue()


TOKENS = "train_0.inputs.tokens.npy"
OFFSETS = "train_0.inputs.offsets.npy"


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda x: (x / "manifest.json").unlink(), "is not a cache"),
    (
      lambda x: (x / "manifest.json").write_bytes(b"{"),
      "manifest.json is broken",
    ),
    (lambda x: change_manifest(x, train=[{}]), "is broken .KeyError: 'name'"),
    (lambda x: change_manifest(x, files=3), "is broken .AttributeError"),
    (lambda x: change_manifest(x, version=2), "version 2 .*, wanted 1: write"),
    (lambda x: (x / TOKENS).unlink(), f"lacks {TOKENS}: write it anew"),
    (lambda x: (x / TOKENS).write_bytes(b"12"), "has 2 bytes, wanted 138"),
    (lambda x: flip(x / TOKENS), "is damaged"),
    (lambda x: forge(x, TOKENS, b"123"), f"{TOKENS} is broken"),
    (
      lambda x: forge(x, TOKENS, saved(np.array([{}]), allow_pickle=True)),
      f"{TOKENS} is broken",
    ),
    (lambda x: forge(x, TOKENS, pickle.dumps([1])), f"{TOKENS} is broken"),
    (
      lambda x: forge(x, TOKENS, saved(np.full(5, 8192, np.uint16))),
      "do not hold 2 rows of ids below 8192",
    ),
    (
      lambda x: forge(x, TOKENS, saved(np.zeros((5, 1), np.uint16))),
      "is no array of one axis",
    ),
    (lambda x: forge(x, OFFSETS, saved(np.array([0, 9, 5]))), "do not hold"),
    (lambda x: forge(x, OFFSETS, saved(np.array([0, 5]))), "do not hold"),
    (lambda x: forge(x, "eval_0.msgpack", b"\xc1"), "msgpack is broken"),
    (lambda x: forge(x, "eval_0.msgpack", b"\x91\x80"), "does not hold 2 rows"),
    (lambda x: forge(x, "vocabulary.model", b"12"), "no SentencePiece model"),
    (
      lambda x: forge(x, "vocabulary.model", b""),
      "is not the one that the cache is written in",
    ),
  ],
)
def test_a_damaged_or_forged_cache_is_refused(data, tmp_path, damage, message):
  folder = tmp_path / "cache"
  cache.write(str(folder), data)
  damage(folder)
  with pytest.raises(ValueError, match=message):
    read(folder)


def start(program, tmp_path):
  """Runs a program in a process of its own, as the command would."""
  flags = (
    "--gin_file=gin/models/tiny.gin",
    "--gin_file=gin/prompts/from_class_labels.gin",
    "--gin_file=gin/runs/prompt_finetune_from_cache.gin",
    "--gin.CLASS_LABELS=['positive', 'negative']",
    "--gin.INITIAL_CHECKPOINT_PATH=None",
    "--gin.MIXTURE_OR_TASK_NAME='demo_sentiment'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}",
    "--gin.ACTIVATION_DTYPE='float32'",
    f"--gin.MODEL_DIR='{tmp_path}/cached'",
    f"--gin.CACHE_DIR='{tmp_path}/cache'",
    *(f"--gin.{binding}" for binding in RUN),
  )
  run = subprocess.run(
    [sys.executable, "-c", program + PRINT_IMPORTS, *flags],
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  return run.stdout


def test_the_files_of_a_cached_run_need_no_tensorflow(data, tmp_path):
  named = data._replace(
    name="demo_sentiment",
    feature_lengths={"inputs": 32, "targets": 4},
    eval_tasks=[data.eval_tasks[0]._replace(name="demo_sentiment")],
  )
  cache.write(str(tmp_path / "cache"), named)
  assert start(LOAD, tmp_path).split("\n")[:2] == [
    "demo_sentiment",
    "imported: []",
  ]


@pytest.mark.slow
def test_a_run_from_a_cache_equals_one_from_seqio_without_tensorflow(
  tmp_path, capsys
):
  import gin
  from prompt_tuning import cache_task, configuration, train

  flags = lambda *bindings, files=(): configuration.Flags(
    ("tests/tiny_run.gin", *files), (*RUN, *bindings), ()
  )
  configuration.load(flags(f"MODEL_DIR = '{tmp_path}/seqio'"))
  gin.get_configurable(train.train)()
  gin.clear_config()
  cache_dir = f"CACHE_DIR = '{tmp_path}/cache'"
  configuration.load(
    flags(cache_dir, "MODEL_DIR = None", files=("gin/runs/cache.gin",))
  )
  gin.get_configurable(cache_task.cache_task)()
  assert "wrote demo_sentiment, 480 rows to" in capsys.readouterr().out
  assert "imported: []" in start(TRAIN, tmp_path)
  for name in ("metrics.jsonl", PROMPT):
    assert (tmp_path / "seqio" / name).read_bytes() == (
      tmp_path / "cached" / name
    ).read_bytes()
