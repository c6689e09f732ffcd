# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning (Lester, Al-Rfou and Constant, 2021) for T5 on JAX and Flax.

One letter per axis, with one meaning, in every shape of the package:

  B batch         T input tokens               D model width    F MLP width
  P prompt        U target tokens              H heads          V vocabulary
  L layers        S encoder positions, P+T     K head width     N any number
"""

import os

# TensorFlow, behind the data door, is not chatty unless asked to be.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
