# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

IMPORT = "import sys; from prompt_tuning import event_files"


@pytest.mark.parametrize(
  ("first", "is_imported"), [("", False), ("import torch; ", True)]
)
def test_pytorch_is_imported_by_nobody_but_the_user(
  tmp_path, first, is_imported
):
  """tensorboardX asks for it; afterwards it can be imported as ever."""
  (tmp_path / "torch.py").write_text("Tensor = int")
  found = subprocess.run(
    [
      sys.executable,
      "-c",
      f"{first}{IMPORT}; print('torch' in sys.modules); import torch",
    ],
    env={"PYTHONPATH": f"{tmp_path}:."},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert found == f"{is_imported}\n"
