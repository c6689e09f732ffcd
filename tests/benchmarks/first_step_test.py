# SPDX-License-Identifier: Apache-2.0
"""The time to the first step."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_a_command_that_is_refused_has_no_first_step(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  import first_step

  with pytest.raises(
    RuntimeError, match="before its first step: error: .*none"
  ):
    first_step.measure(["--gin_file=none.gin"])
