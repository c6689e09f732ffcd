# SPDX-License-Identifier: Apache-2.0
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
from paths import GOLDENS
import pytest

from prompt_tuning import prompt_files, prompts, t5, trainer

TABLE = jnp.arange(27.0).reshape(9, 3)
PROMPT = np.arange(6, dtype=np.float32).reshape(2, 3) / 7


@pytest.mark.parametrize("name", ["prompt.npy", "encoder.prompt.prompt.prompt"])
def test_a_numpy_file_comes_back_bit_for_bit(tmp_path, name):
  path = f"{tmp_path}/{name}"
  prompt_files.save(path, PROMPT, {})
  np.testing.assert_array_equal(np.load(path), PROMPT)
  found = prompt_files.load(path)
  np.testing.assert_array_equal(found.prompt, PROMPT)
  assert [x.name for x in tmp_path.iterdir()] == [name]


def test_a_model_dir_stands_for_its_best_prompt(tmp_path):
  path = f"{tmp_path}/best/prompt.safetensors"
  prompt_files.save(path, PROMPT, {"step": "3"})
  found = prompt_files.load(str(tmp_path))
  np.testing.assert_array_equal(found.prompt, PROMPT)
  assert found.metadata == {"step": "3"}


def test_a_bfloat16_array_of_the_original_is_read(tmp_path):
  with open(tmp_path / "prompt", "wb") as file:
    np.save(file, PROMPT.astype(jnp.bfloat16))
  found = prompt_files.load(f"{tmp_path}/prompt")
  np.testing.assert_array_equal(found.prompt, PROMPT.astype(jnp.bfloat16))


def test_safetensors_keep_what_is_said_about_the_prompt(tmp_path):
  path = f"{tmp_path}/prompt.safetensors"
  metadata = {"task": "rte", "base_id": prompt_files.base_id(TABLE)}
  prompt_files.save(path, PROMPT, metadata)
  found = prompt_files.load(path)
  np.testing.assert_array_equal(found.prompt, PROMPT)
  assert found.metadata == metadata
  prompt_files.check(found, path, length=2, table=TABLE)
  prompt_files.check(found, path, length=2, table=TABLE.astype(jnp.bfloat16))
  with pytest.raises(ValueError, match="was tuned for another base"):
    prompt_files.check(found, path, length=2, table=TABLE[::-1])
  with pytest.raises(ValueError, match=r"\(2, 3\), the model wants \(4, 3\)"):
    prompt_files.check(found, path, length=4, table=TABLE)


@pytest.mark.parametrize("kind", ["peft_prompt", "peft_prompt_default"])
def test_logits_with_a_peft_adapter_equal_pefts(
  golden, tiny_config, tiny_params, kind
):
  found = prompt_files.load(str(GOLDENS / kind))
  expected = golden("hf_expected")
  np.testing.assert_array_equal(
    found.prompt, golden("prompted_t5_1_1_tiny")["prompt"]
  )
  batch = {
    name.removeprefix("batch/"): x
    for name, x in expected.items()
    if name.startswith("batch/")
  }
  model = t5.Transformer(tiny_config, prompts.PromptConfig(length=5))
  params = tiny_params | {prompt_files.NAME: jnp.asarray(found.prompt)}
  logits = jax.jit(lambda *x: trainer.apply(model, *x))(params, batch)
  real = batch["decoder_target_tokens"] > 0
  np.testing.assert_allclose(
    logits[real], expected[f"{kind}/logits"][real], atol=5e-5, rtol=0
  )


def test_a_peft_adapter_comes_back_bit_for_bit(tmp_path):
  prompt_files.save_peft(f"{tmp_path}/adapter", PROMPT, base_model="t5")
  found = prompt_files.load(f"{tmp_path}/adapter")
  np.testing.assert_array_equal(found.prompt, PROMPT)
  written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
  original = json.loads(
    (GOLDENS / "peft_prompt/adapter_config.json").read_text()
  )
  assert set(written) <= set(original)


def peft(folder, **config):
  prompt_files.save_peft(str(folder), PROMPT, base_model=None)
  path = folder / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: None, "does not exist"),
    (lambda path: path.write_text("text"), "is not a numpy array"),
    (lambda path: path.write_bytes(b""), "is not a numpy array"),
    (
      lambda path: path.write_bytes(_npy(np.array([{}], object))),
      "is not a numpy array",
    ),
    (
      lambda path: path.write_bytes(_npy(np.arange(6).reshape(2, 3))),
      "its dtype is int64",
    ),
    (
      lambda path: path.write_bytes(_npy(PROMPT[0])),
      r"of shape \(3,\), wanted",
    ),
    (lambda path: path.write_bytes(_npy(PROMPT / 0)), "are not finite"),
    (
      lambda path: path.mkdir(),
      "it has no best/prompt.safetensors, nor .* has no adapter_config.json",
    ),
    (lambda path: peft(path, peft_type="LORA"), "says peft_type='LORA'"),
    (
      lambda path: peft(path, num_virtual_tokens=3),
      "num_virtual_tokens=3 but has 2 rows",
    ),
    (
      lambda path: peft(path, num_virtual_tokens="2"),
      "says num_virtual_tokens='2'",
    ),
  ],
)
@pytest.mark.filterwarnings("ignore:.*divide")
def test_a_file_that_is_no_prompt_is_refused(tmp_path, make, message):
  make(tmp_path / "prompt")
  with pytest.raises(ValueError, match=message):
    prompt_files.load(f"{tmp_path}/prompt")


def _npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def test_a_safetensors_file_without_a_prompt_is_refused(tmp_path):
  data = (GOLDENS / "peft_prompt/adapter_model.safetensors").read_bytes()
  (tmp_path / "x.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="only prompt_embeddings"):
    prompt_files.load(f"{tmp_path}/x.safetensors")


@pytest.mark.parametrize("kind", ["npy", "safetensors", "peft"])
def test_no_mutated_file_does_more_than_raise(tmp_path, kind):
  """2,000 files with changed, cut or added bytes load or raise ValueError."""
  if kind == "peft":
    prompt_files.save_peft(str(tmp_path), PROMPT, base_model=None)
    changed, path = tmp_path / "adapter_config.json", str(tmp_path)
  else:
    path = f"{tmp_path}/prompt.{kind}"
    prompt_files.save(path, PROMPT, {"task": "rte"})
    changed = tmp_path / f"prompt.{kind}"
  sound = changed.read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(2000):
    data = bytearray(sound)
    for _ in range(rng.integers(1, 4)):
      data[rng.integers(len(data))] = rng.integers(256)
    end = rng.integers(len(data)) if rng.random() < 0.3 else len(data)
    changed.write_bytes(bytes(data[:end]))
    try:
      prompt_files.load(path)
    except ValueError:
      refused += 1
  assert refused > 1000
