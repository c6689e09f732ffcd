# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files, written by tensorboardX without PyTorch.

tensorboardX imports PyTorch wherever it is installed, which takes a start of
ours some seconds, and needs it for PyTorch's own tensors alone.
"""

from collections.abc import Iterator
import contextlib
import sys


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
  """Makes a module seem not to be installed, unless it is in use already."""
  if name in sys.modules:
    yield
    return
  sys.modules[name] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    del sys.modules[name]


with _hidden("torch"):
  import tensorboardX

SummaryWriter = tensorboardX.SummaryWriter
