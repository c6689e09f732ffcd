# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from prompt_tuning import (
  answers,
  decoding,
  inference,
  pretrained,
  prompt_bank,
  prompt_files,
  prompts,
  t5,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

CONFIG = t5.T5Config(
  vocab_size=128,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=24,
)
BYTES = vocabulary_lib.from_bytes(128)
TEXTS = ["what is it?", "yes", "a longer text", "no"]
NAMES = ["short", "long", "short", "long"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The folder of a random base and two prompts for it."""
  folder = tmp_path_factory.mktemp("base")
  params = t5.init_params(t5.Transformer(CONFIG), seed=0)
  pretrained.save(f"{folder}/base.safetensors", params, 0, {})
  rng = np.random.default_rng(0)
  for name, length in (("short", 2), ("long", 5)):
    prompt = 3 * rng.normal(size=(length, 16)).astype(np.float32)
    prompt_files.save(f"{folder}/{name}.npy", prompt, {})
  return folder


@pytest.fixture(scope="module")
def model(base):
  files = {name: f"{base}/{name}.npy" for name in ("short", "long")}
  return inference.load(
    f"{base}/base.safetensors", vocabulary=BYTES, prompts=files
  )


def config(decoder=decoding.SCORED_GREEDY, batch_size=4, inputs=16):
  lengths = {"inputs": inputs, "targets": 4}
  return inference.InferenceConfig(decoder, lengths, batch_size)


def test_mixed_texts_are_answered_as_alone(model):
  together = inference.predict(model, TEXTS, prompts=NAMES, config=config())
  for name in ("short", "long"):
    chosen = [i for i, other in enumerate(NAMES) if other == name]
    alone = inference.predict(
      model,
      [TEXTS[i] for i in chosen],
      prompts=name,
      config=config(),
    )
    for i, prediction in zip(chosen, alone, strict=True):
      assert together[i].texts == prediction.texts
      np.testing.assert_allclose(
        together[i].scores, prediction.scores, rtol=0, atol=1e-5
      )
  assert len({prediction.scores for prediction in together}) == len(TEXTS)


def test_results_are_best_first(model):
  for decoder in (
    decoding.BeamConfig(num_decodes=3),
    answers.Labels(["yes", "no", "may"]),
  ):
    for found in inference.predict(
      model, TEXTS[:2], prompts="short", config=config(decoder)
    ):
      assert list(found.scores) == sorted(found.scores, reverse=True)
      assert (found.text, found.score) == (found.texts[0], found.scores[0])


def test_a_text_that_is_too_long_is_cut_but_keeps_its_end(model):
  tokens = inference.tokenise("abcdef", BYTES, length=4)
  assert tokens.tolist() == [*BYTES.encode("abc"), 1]
  whole, first = (
    inference.predict(model, ["x" * count], prompts="long", config=config())
    for count in (40, 15)
  )
  assert whole == first


def test_without_a_name_the_only_prompt_or_the_plain_base_answers(base, model):
  path = f"{base}/base.safetensors"
  load = lambda prompts: inference.load(path, vocabulary=BYTES, prompts=prompts)
  one, plain = load({"x": f"{base}/long.npy"}), load({})
  with_prompt = inference.predict(one, TEXTS[:2], config=config())
  assert with_prompt == inference.predict(
    model, TEXTS[:2], prompts="long", config=config()
  )
  without = inference.predict(plain, TEXTS[:2], config=config())
  assert with_prompt[0].score != without[0].score
  with pytest.raises(ValueError, match="names no prompt, .* are long, short"):
    inference.predict(model, TEXTS[:2], config=config())


def test_few_programs_are_compiled(model):
  run = lambda texts: inference.predict(
    model, texts, prompts="long", config=config(batch_size=2, inputs=32)
  )
  before = answers._generate._cache_size()
  for count in range(1, 5):  # 1 or 2 rows of 16 tokens.
    run(["x"] * count)
  for length in range(1, 40):  # 1 row of 16 or 32.
    run(["x" * length])
  assert answers._generate._cache_size() - before <= 3


def test_using_a_prompt_keeps_it_from_being_evicted(base):
  path = f"{base}/base.safetensors"
  files = {name: f"{base}/{name}.npy" for name in ("short", "long")}
  model = inference.load(path, vocabulary=BYTES, prompts=files, capacity=2)
  inference.predict(model, ["a"], prompts="short", config=config())
  prompt_bank.load(model.bank, "new", f"{base}/long.npy")
  assert list(model.bank.files) == ["short", "new"]


def test_draws_are_repeated_by_the_seed(model):
  decoder = decoding.SamplingConfig(num_decodes=2)
  run = lambda seed: inference.predict(
    model,
    ["a"] * 2,
    prompts="short",
    config=dataclasses.replace(config(decoder, batch_size=1), seed=seed),
  )
  first = run(0)
  assert first == run(0) != run(1)
  assert first[0] != first[1], "two batches have the same draws"


def test_a_place_of_the_prompt_is_kept(base):
  path = f"{base}/base.safetensors"
  files = {name: f"{base}/{name}.npy" for name in ("short", "long")}
  place = prompts.PromptConfig(join=prompts.suffix_prompt)
  suffix = inference.load(
    path,
    vocabulary=BYTES,
    prompts=files,
    network=t5.Transformer(CONFIG, place),
  )
  inference.predict(suffix, TEXTS[:1], prompts="long", config=config())
  with pytest.raises(ValueError, match="need a model with the prompt in front"):
    inference.predict(suffix, TEXTS, prompts=NAMES, config=config())


def test_what_does_not_fit_is_refused(base, model):
  with pytest.raises(
    ValueError, match="has 300 ids, .* table 128 rows: choose"
  ):
    inference.load(
      f"{base}/base.safetensors",
      vocabulary=vocabulary_lib.from_bytes(300),
      prompts={},
    )
  with pytest.raises(ValueError, match="has 1 names for 2 texts: give one"):
    inference.predict(model, ["a", "b"], prompts=["long"])
  with pytest.raises(ValueError, match="no prompt 'x', only long, short"):
    inference.predict(model, ["a"], prompts="x")
  with pytest.raises(ValueError, match="BATCH_SIZE=0 must be 1 or more"):
    inference.InferenceConfig(batch_size=0)
  for lengths in ({"inputs": 0, "targets": 1}, {"inputs": 4}):
    with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS=.* at most"):
      inference.InferenceConfig(feature_lengths=lengths)
  for texts in ("yes", []):
    with pytest.raises(ValueError, match="must be a list of texts such as"):
      answers.Labels(texts)


def test_no_texts_have_no_predictions(model):
  assert inference.predict(model, [], prompts="long") == []


@pytest.mark.parametrize(
  ("names", "is_told"), [(("short",), False), (("short", "long"), True)]
)
def test_lengths_are_told_where_prompts_differ_alone(base, names, is_told):
  """Attention in a kernel does not know them."""
  model = inference.load(
    f"{base}/base.safetensors",
    vocabulary=BYTES,
    prompts={name: f"{base}/{name}.npy" for name in names},
  )
  _, _, lengths = inference._with_prompts(model, ["short", "short"])
  assert (lengths is not None) == is_told
