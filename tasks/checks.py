# SPDX-License-Identifier: Apache-2.0
"""Checks of rows from outside against the features of a TFDS data set."""

from typing import Any

import numpy as np
from prompt_tuning.tasks import rows
import tensorflow_datasets as tfds


def checked(
  located: rows.Located, features: tfds.features.FeaturesDict
) -> dict[str, Any]:
  """Returns the row with its features only, and labels as numbers.

  Raises:
    ValueError: for a missing column, a value of another type, or an unknown
      label.
  """
  return {
    name: _value(
      rows.column(located, name), feature, f"{located.where}: {name}"
    )
    for name, feature in features.items()
  }


def _value(value: Any, feature: Any, where: str) -> Any:
  """Checks a value against its feature; labels become numbers."""
  if isinstance(feature, tfds.features.ClassLabel):
    return _label(value, feature, where)
  if isinstance(feature, tfds.features.Sequence | tfds.features.FeaturesDict):
    if not isinstance(value, list | dict):
      raise ValueError(f"{where} is {value!r}, wanted a list or an object")
    return value
  dtype = np.dtype(feature.np_dtype)
  if dtype.kind == "i" and isinstance(value, str) and value.isdecimal():
    value = int(value)
  if dtype.kind == "f":
    return _float(value, where)
  wanted = int if dtype.kind == "i" else str
  if type(value) is not wanted:
    raise ValueError(f"{where} is {value!r}, wanted {wanted.__name__}")
  return value


def _float(value: Any, where: str) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{where} is {value!r}, wanted a number") from None


def _label(value: Any, feature: tfds.features.ClassLabel, where: str) -> int:
  """Accepts a label's number or name; -1 is a label that is not public."""
  names = feature.names
  text = str(value)
  if text in names:
    return names.index(text)
  if text in {str(number) for number in range(-1, len(names))}:
    return int(text)
  raise ValueError(
    f"{where} is {value!r}, wanted one of {', '.join(names)}, or its number"
  )
