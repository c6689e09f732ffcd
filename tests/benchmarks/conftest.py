# SPDX-License-Identifier: Apache-2.0
"""Lets tests import the benchmarks, scripts that are in no package."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
