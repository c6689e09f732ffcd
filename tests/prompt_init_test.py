# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompt_init

RNG = jax.random.key(3)


def encode(string):
  """As in the golden: a text is written in token ids."""
  return [int(word) for word in string.split()]


@pytest.fixture
def arrays(golden):
  arrays = golden("prompt_placement_and_masks")
  return {k.removeprefix("init/"): v for k, v in arrays.items()}


@pytest.mark.parametrize("length", [4, 14])
def test_sampled_vocab_equals_the_original(arrays, length):
  prompt = prompt_init.sampled_vocab(
    RNG, length, arrays["embeddings"], encode, population_size=10
  )
  np.testing.assert_array_equal(
    prompt, arrays[f"sampled_population_10_length_{length}"]
  )


def test_sampled_rows_are_distinct_and_common():
  table = jnp.arange(50.0)[:, None]
  prompt = prompt_init.sampled_vocab(RNG, 20, table, encode, population_size=20)
  assert sorted(prompt[:, 0].tolist()) == list(range(20))


@pytest.mark.parametrize(
  "init",
  [
    prompt_init.sampled_vocab,
    functools.partial(prompt_init.class_labels, labels=["0"]),
    functools.partial(prompt_init.text, string="0"),
  ],
  ids=["sampled_vocab", "class_labels", "text"],
)
def test_common_tokens_are_the_papers_5000_by_default(init):
  """Lester et al. (2021), sec. 3.2; labels and texts are in row 0."""
  prompt = init(RNG, 5000, jnp.arange(6000.0)[:, None], encode)
  drawn = set(prompt[1:, 0].tolist())
  assert len(drawn) == 4999
  assert max(drawn) < 5000


@pytest.mark.parametrize("kind", ["uniform", "uniform_flax"])
def test_released_uniform_range_equals_the_original(arrays, kind):
  prompt = prompt_init.random_uniform(
    RNG, 4, arrays["embeddings"], encode, low=0.0, high=0.5
  )
  np.testing.assert_array_equal(prompt, arrays[f"{kind}_scale_0_5"])


def test_default_uniform_range_is_the_papers():
  prompt = prompt_init.random_uniform(RNG, 100, jnp.zeros((2, 50)), encode)
  assert -0.5 <= prompt.min() < -0.49
  assert 0.49 < prompt.max() < 0.5


@pytest.mark.parametrize(
  ("length", "name"),
  [(5, "from_embedded_list"), (2, "from_embedded_list_short_prompt")],
)
def test_class_labels_equal_the_original(arrays, length, name):
  prompt = prompt_init.class_labels(
    RNG,
    length,
    arrays["embeddings"],
    encode,
    labels=["1 2", "7", "3 4 5"],
    population_size=10,
  )
  np.testing.assert_array_equal(prompt, arrays[name])


def test_text_equals_the_original(arrays):
  prompt = prompt_init.text(
    RNG, 5, arrays["embeddings"], encode, string="1 2 7", population_size=10
  )
  np.testing.assert_array_equal(prompt, arrays["from_embedded_string"])


def read(path, table=None):
  table = jnp.zeros((9, 3)) if table is None else table
  return prompt_init.from_file(RNG, 2, table, encode, path=str(path))


@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
def test_a_saved_prompt_is_read_back(tmp_path, dtype):
  prompt = np.arange(6, dtype=dtype).reshape(2, 3)
  with open(tmp_path / "encoder.prompt.prompt.prompt", "wb") as file:
    np.save(file, prompt)
  read_back = read(tmp_path / "encoder.prompt.prompt.prompt")
  assert read_back.dtype == jnp.float32
  np.testing.assert_array_equal(read_back, prompt.astype(np.float32))


def test_useless_prompt_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"none' does not exist$"):
    read(tmp_path / "none")
  (tmp_path / "text").write_text("not an array")
  with pytest.raises(ValueError, match="is not a numpy array"):
    read(tmp_path / "text")
  np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
  with pytest.raises(ValueError, match="is not a numpy array"):
    read(tmp_path / "pickle.npy")
  np.save(tmp_path / "long.npy", np.zeros((4, 3)))
  with pytest.raises(ValueError, match=r"shape \(4, 3\), the model wants"):
    read(tmp_path / "long.npy")


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([], r"CLASS_LABELS=\[\] must be a list"),
    ("yes", "CLASS_LABELS='yes' must be a list"),
    (["1", ""], "CLASS_LABELS: '' has no tokens"),
  ],
)
def test_useless_labels_are_refused(labels, message):
  with pytest.raises(ValueError, match=message):
    prompt_init.class_labels(RNG, 2, jnp.zeros((9, 3)), encode, labels=labels)


def test_an_empty_text_is_refused():
  with pytest.raises(ValueError, match="PROMPT_STRING='' has no tokens"):
    prompt_init.text(RNG, 2, jnp.zeros((9, 3)), encode, string="")
