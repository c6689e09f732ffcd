# SPDX-License-Identifier: Apache-2.0
"""The bases that come with the package; README.md is their model card."""

import pathlib


def english_4m() -> str:
  """Returns the path of the LM-adapted base of `gin/models/english_4m.gin`."""
  return str(pathlib.Path(__file__).parent / "english_4m.safetensors")
