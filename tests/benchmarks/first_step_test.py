# SPDX-License-Identifier: Apache-2.0
"""The time to the first step."""

import first_step
import pytest


def test_a_command_that_is_refused_has_no_first_step():
  with pytest.raises(
    RuntimeError, match="before its first step: error: .*none"
  ):
    first_step.measure(["--gin_file=none.gin"])
