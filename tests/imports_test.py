# SPDX-License-Identifier: Apache-2.0
import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "prompt_tuning"
# The rooms that know seqio or gin, and the entry points that use them.
BEHIND_THE_DOOR = {
  "cache_task",
  "configuration",
  "convert",
  "data",
  "demo",
  "eval",
  "infer",
  "t5x_adapter",
  "train",
}
MODULES = sorted(
  path.stem
  for path in PACKAGE.iterdir()
  if path.suffix == ".py" or (path / "__init__.py").exists()
)
LIBRARY = sorted(
  path
  for path in PACKAGE.rglob("*.py")
  if "tasks" not in path.relative_to(PACKAGE).parts
)


def test_the_library_imports_without_tensorflow_seqio_and_gin():
  modules = [x for x in MODULES if x not in {"__init__", *BEHIND_THE_DOOR}]
  assert {"t5", "trainer", "cache", "checkpoints", "pretrained"} < set(modules)
  program = (
    "import importlib, sys\n"
    f"for name in {modules}:\n"
    "  importlib.import_module(f'prompt_tuning.{name}')\n"
    "unwanted = {'tensorflow', 'seqio', 'gin', 'tensorflow_datasets'}\n"
    "sys.exit(', '.join(unwanted & set(sys.modules)) or 0)\n"
  )
  result = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr


def imported(path):
  """Yields the full name of all that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
  "path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_library_never_imports_the_tasks(path):
  for name in imported(path):
    assert not f"{name}.".startswith("prompt_tuning.tasks.")


def test_every_package_is_in_the_wheel():
  settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
  found = {
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in PACKAGE.rglob("__init__.py")
  }
  listed = set(settings["tool"]["setuptools"]["packages"])
  beside = {f"prompt_tuning.{name}" for name in ("gin", "tasks", "weights")}
  assert listed == found | beside
