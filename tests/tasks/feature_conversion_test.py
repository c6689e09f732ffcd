# SPDX-License-Identifier: Apache-2.0
"""What seqio makes of token sequences: EOS, trimming, packing."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def golden(golden_json):
  return golden_json("feature_conversion")


@pytest.fixture(scope="module")
def converted(golden):
  """Ends the golden's sequences with one of seqio's functions."""
  import seqio
  import tensorflow as tf

  feature = seqio.Feature(seqio.PassThroughVocabulary(128, eos_id=1))
  features = {"inputs": feature, "targets": feature}
  pairs = zip(golden["inputs"], golden["targets"], strict=True)
  rows = [{"inputs": x, "targets": y} for x, y in pairs]
  spec = tf.TensorSpec([None], tf.int32)

  def run(name):
    dataset = tf.data.Dataset.from_generator(
      lambda: iter(rows), output_signature={"inputs": spec, "targets": spec}
    )
    function = getattr(seqio.preprocessors, name)
    if name == "append_eos":
      return function(dataset, features)
    return function(dataset, features, golden["lengths"])

  return run


@pytest.mark.parametrize("name", ["append_eos", "append_eos_after_trim"])
def test_every_sequence_is_ended(golden, converted, name):
  found = [
    {key: value.tolist() for key, value in row.items()}
    for row in converted(name).as_numpy_iterator()
  ]
  assert found == golden[name]


@pytest.mark.parametrize("pack", [False, True], ids=["rows", "packed"])
def test_batches_are_the_originals(golden, converted, pack):
  import seqio

  dataset = seqio.EncDecFeatureConverter(pack=pack)(
    converted("append_eos_after_trim"), golden["lengths"]
  )
  rows = list(dataset.as_numpy_iterator())
  prefix = f"enc_dec/pack_{pack}/"
  path = f"{__file__.removesuffix('tasks/feature_conversion_test.py')}"
  with np.load(f"{path}goldens/feature_conversion.npz") as archive:
    wanted = {
      name.removeprefix(prefix): archive[name]
      for name in archive
      if name.startswith(prefix)
    }
  assert set(rows[0]) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_array_equal([row[name] for row in rows], value)
