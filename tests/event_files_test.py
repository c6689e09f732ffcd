# SPDX-License-Identifier: Apache-2.0
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def torch_is_imported(folder, code):
  """Tells whether it is after `code`, and that it can be imported then."""
  (folder / "torch.py").write_text("Tensor = int")
  found = subprocess.run(
    [
      sys.executable,
      "-c",
      f"import sys; {code}; print('torch' in sys.modules); import torch",
    ],
    env={"PYTHONPATH": f"{folder}:{ROOT}"},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  return {"True\n": True, "False\n": False}[found]


@pytest.mark.parametrize("module", ["event_files", "train", "eval", "infer"])
def test_no_command_imports_pytorch(tmp_path, module):
  """tensorboardX would; afterwards the user can import it as ever."""
  assert not torch_is_imported(tmp_path, f"import prompt_tuning.{module}")


def test_pytorch_that_is_in_use_stays_so(tmp_path):
  code = "import torch; from prompt_tuning import event_files"
  assert torch_is_imported(tmp_path, code)
