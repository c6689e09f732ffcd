# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
from paths import GOLDENS
import pytest

from prompt_tuning import prompt_bank, prompt_files

TABLE = jnp.arange(27.0).reshape(9, 3)
PROMPTS = {
  "a": np.full((1, 3), 1, np.float32),
  "b": np.array([[2, 2, 2], [3, 3, 3]], np.float32),
  "c": np.full((1, 3), 4, np.float32),
}


@pytest.fixture
def paths(tmp_path):
  """A file of each prompt."""
  metadata = {
    "base_id": prompt_files.base_id(TABLE),
    "task": "rte",
    "score": "87.5",
  }
  for name, prompt in PROMPTS.items():
    prompt_files.save(f"{tmp_path}/{name}.safetensors", prompt, metadata)
  return {name: f"{tmp_path}/{name}.safetensors" for name in PROMPTS}


def filled(paths, names="abc", **kwargs):
  bank = prompt_bank.empty(TABLE, **kwargs)
  for name in names:
    prompt_bank.load(bank, name, paths[name])
  return bank


def test_every_row_gets_its_prompt_padded_in_front(paths):
  gathered = prompt_bank.gather(filled(paths), ["a", "b", "a"])
  assert gathered.prompt[..., 0].tolist() == [[0, 1], [2, 3], [0, 1]]
  assert gathered.lengths.tolist() == [1, 2, 1]
  short = prompt_bank.gather(filled(paths), ["a", "c"])
  assert short.prompt[..., 2].tolist() == [[1], [4]]


def test_prompts_are_listed_with_what_their_files_say(paths, tmp_path):
  bank = filled(paths, "b")
  prompt_files.save(f"{tmp_path}/plain", PROMPTS["a"], {})
  prompt_bank.load(bank, "plain", f"{tmp_path}/plain")
  assert prompt_bank.entries(bank) == [
    ("b", 2, 24, "rte", "87.5"),
    ("plain", 1, 12, None, None),
  ]


def test_the_prompt_whose_use_is_longest_ago_is_evicted(paths):
  bank = filled(paths, "ab", capacity=2)
  prompt_bank.gather(bank, ["a", "a"])
  prompt_bank.load(bank, "c", paths["c"])
  assert [entry.name for entry in prompt_bank.entries(bank)] == ["a", "c"]
  prompt_bank.load(bank, "a", paths["b"])
  assert [entry[:2] for entry in prompt_bank.entries(bank)] == [
    ("c", 1),
    ("a", 2),
  ]


def test_an_evicted_prompt_is_no_longer_found(paths):
  bank = filled(paths)
  prompt_bank.evict(bank, "b")
  with pytest.raises(ValueError, match="no prompt 'b', only a, c: load it"):
    prompt_bank.gather(bank, ["a", "b"])
  with pytest.raises(ValueError, match="no prompt 'b', only a, c"):
    prompt_bank.evict(bank, "b")
  with pytest.raises(ValueError, match="'b', only no prompt at all"):
    prompt_bank.gather(prompt_bank.empty(TABLE), ["b"])


def test_prompts_of_another_base_or_width_are_refused(paths):
  other = prompt_bank.empty(TABLE[::-1])
  with pytest.raises(ValueError, match="tuned for another base .*: load that"):
    prompt_bank.load(other, "a", paths["a"])
  wide = prompt_bank.empty(jnp.zeros((9, 4)))
  with pytest.raises(ValueError, match="of width 3, the base has 4: use the"):
    prompt_bank.load(wide, "a", paths["a"])
  assert prompt_bank.entries(other) == prompt_bank.entries(wide) == []


def test_prompts_of_another_place_are_refused(tmp_path):
  path = f"{tmp_path}/behind.safetensors"
  prompt_files.save(path, PROMPTS["a"], {"place": "suffix_prompt"})
  with pytest.raises(
    ValueError,
    match="tuned as 'suffix_prompt', and this model puts it as 'prefix_prompt'",
  ):
    prompt_bank.load(prompt_bank.empty(TABLE), "a", path)
  behind = prompt_bank.empty(TABLE, place="suffix_prompt")
  prompt_bank.load(behind, "a", path)
  assert list(behind.files) == ["a"]


def test_a_capacity_holds_one_prompt_at_least():
  with pytest.raises(ValueError, match="capacity=0 must be 1 or more"):
    prompt_bank.empty(TABLE, capacity=0)


def test_peft_adapters_are_loaded_too():
  bank = prompt_bank.empty(jnp.zeros((9, 32)))
  prompt_bank.load(bank, "peft", str(GOLDENS / "peft_prompt"))
  (entry,) = prompt_bank.entries(bank)
  assert entry.length == 5
