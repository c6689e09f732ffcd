# SPDX-License-Identifier: Apache-2.0
"""Where the files are that tests read."""

import pathlib

GOLDENS = pathlib.Path(__file__).parent / "goldens"
