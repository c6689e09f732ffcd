# SPDX-License-Identifier: Apache-2.0
"""Flags and gin, in T5X's words, for the entry points.

    --gin_file=FILE           a gin file; may be given several times, in order
    --gin.NAME=VALUE          a macro (MODEL_DIR), a binding (t5.T5Config.dtype)
    --gin_search_paths=A,B    where gin files and their includes are looked for
    --tfds_data_dir=DIR       where the TFDS data sets are

Mistakes end with one sentence and exit code 2. Unlike in T5X, a macro that
nothing reads is one of them: gin alone would accept any misspelt name.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import difflib
import importlib
import logging
import pathlib
import re
import sys
import traceback
from typing import NoReturn

import gin

PACKAGE = pathlib.Path(__file__).parent
# A wheel has the gin files inside the package, a checkout beside it.
SEARCH_PATHS = (str(PACKAGE), str(PACKAGE.parent))


@dataclasses.dataclass(frozen=True)
class Flags:
  """The command line of an entry point."""

  gin_files: Sequence[str]
  bindings: Sequence[str]
  search_paths: Sequence[str]


def parse_flags(
  program: str, argv: Sequence[str], *, default_file: str | None = None
) -> Flags:
  """Parses a command line; ends the program if it is malformed.

  Args:
    program: its name, for messages.
    argv: the command line behind it.
    default_file: the gin file if none is given; None: one has to be.
  """
  parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
  parser.add_argument(
    "--gin_file",
    action="append",
    default=[],
    metavar="FILE",
    help="a gin file; may be given several times, in order",
  )
  parser.add_argument(
    "--gin_search_paths",
    default="",
    metavar="A,B",
    help="where gin files and their includes are looked for, beside here and"
    " the files of the package",
  )
  parser.add_argument(
    "--tfds_data_dir", metavar="DIR", help="where the TFDS data sets are"
  )
  parser.epilog = "--gin.NAME=VALUE sets a macro or binding, over the files."
  known, unknown = parser.parse_known_args(argv)
  bindings = []
  for flag in unknown:
    match = re.fullmatch(r"--gin\.([\w./@]+)\s*=(.*)", flag, re.DOTALL)
    if match is None:
      parser.error(f"{flag} is not known; see --help")
    bindings.append(f"{match[1]} = {match[2].strip()}")
  if known.tfds_data_dir is not None:
    bindings.append(f"data.from_seqio.tfds_data_dir = {known.tfds_data_dir!r}")
  if not known.gin_file:
    if default_file is None:
      parser.error("--gin_file is required, such as gin/runs/demo.gin")
    known.gin_file = [default_file]
  paths = [path.strip("'\" ") for path in known.gin_search_paths.split(",")]
  return Flags(known.gin_file, bindings, [path for path in paths if path])


def load(flags: Flags) -> None:
  """Loads the files and bindings into gin.

  Raises:
    ValueError: in one sentence, for whatever is wrong with them.
  """
  for path in (*SEARCH_PATHS, *flags.search_paths):
    gin.add_config_file_search_path(path)
  texts = [_read(name, flags.search_paths) for name in flags.gin_files]
  _check_macros(texts, flags.bindings)
  _check_values(flags.bindings)
  # A binding on the command line can name whatever a file imports.
  imports = re.findall(
    r"^(?:from \S+ )?import .+", "\n".join(texts), re.MULTILINE
  )
  header = list(dict.fromkeys(imports))
  logging.getLogger().addFilter(_is_of_interest)
  try:
    gin.parse_config_files_and_bindings(
      flags.gin_files, ["\n".join([*header, *flags.bindings])]
    )
  except (Exception, SyntaxError) as error:  # gin raises many types.
    raise ValueError(_one_sentence(error)) from error
  finally:
    logging.getLogger().removeFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
  """Hides that gin has looked for a file in one folder before the next."""
  return not str(record.msg).startswith("Path not found")


def _read(name: str, search_paths: Sequence[str]) -> str:
  """Reads a file as gin does, its includes in their places, without comments.

  Raises:
    ValueError: if there is no such file.
  """
  paths = ("", *SEARCH_PATHS, *search_paths)
  found = [p for p in (pathlib.Path(x, name) for x in paths) if p.is_file()]
  if not found:
    raise ValueError(f"gin file {name!r} is not found{_near_file(name)}")
  text = found[0].read_text(encoding="utf-8")
  text = re.sub(r"^\s*#.*$|\s#[^'\"\n]*$", "", text, flags=re.MULTILINE)
  return re.sub(
    r"^include\s+['\"](.+?)['\"]",
    lambda match: _read(match[1], search_paths),
    text,
    flags=re.MULTILINE,
  )


def _near_file(name: str) -> str:
  """Suggests a shipped file with a name alike."""
  roots = [pathlib.Path(path) for path in SEARCH_PATHS]
  shipped = {
    str(path.relative_to(root))
    for root in roots
    for path in (root / "gin").rglob("*.gin")
  }
  near = difflib.get_close_matches(name, sorted(shipped), n=1)
  return f"; did you mean {near[0]}?" if near else ""


def _check_macros(texts: Sequence[str], bindings: Sequence[str]) -> None:
  """Refuses macros that nothing reads, and required ones without a value."""
  macro = re.compile(r"^([A-Za-z_]\w*)\s*=\s*(.*)", re.MULTILINE)
  lines = [*texts, *bindings]
  defined = dict(pair for text in lines for pair in macro.findall(text))
  macro_use = re.compile(r"%([A-Za-z_]\w*)(?![\w.])")
  used = {name for text in lines for name in macro_use.findall(text)}
  for name in defined:
    if name not in used:
      near = difflib.get_close_matches(name.upper(), sorted(used), n=1)
      hint = f": did you mean {near[0]}?" if near else ""
      raise ValueError(f"no loaded gin file reads the macro {name}{hint}")
  for name, value in defined.items():
    if value.startswith("%gin.REQUIRED"):
      raise ValueError(f"{name} is required: add --gin.{name}=...")
  missing = sorted(used - set(defined))
  if missing:
    raise ValueError(
      f"{missing[0]} has no value: add --gin.{missing[0]}=... or a gin file"
      " that sets it"
    )


def _check_values(bindings: Sequence[str]) -> None:
  """Refuses text without quotes, which a shell takes away."""
  for binding in bindings:
    name, _, value = binding.partition(" = ")
    if re.search("[@%]", value):
      continue  # Only a whole configuration can tell.
    try:
      gin.config.parse_value(value)
    except (ValueError, SyntaxError) as error:
      raise ValueError(
        f"--gin.{name}={value} has no value that gin can read: text needs"
        f" quotes within those of the shell, --gin.{name}=\"'text'\""
      ) from error


def _one_sentence(error: BaseException) -> str:
  """Takes what gin says, without its list of call sites."""
  text = re.sub(r"\n\s*In (call to|file|bindings).*", "", str(error))
  return " ".join(text.split()) or type(error).__name__


def _is_users_mistake(error: ValueError) -> bool:
  """Tells whether the library itself refused something."""
  frames = traceback.extract_tb(error.__traceback__)
  roots = (PACKAGE, PACKAGE.parent / "tasks")
  return any(
    root in pathlib.Path(frames[-1].filename).parents for root in roots
  )


def run(root: str, *, default_file: str | None = None) -> None:
  """Parses `sys.argv`, then calls the function at a Python path.

  Exits with code 2 and one sentence for a user's mistake, and with 1 if the
  loss diverged.

  Args:
    root: path of the function, such as "prompt_tuning.train.train".
    default_file: see `parse_flags`.
  """
  module, name = root.rsplit(".", 1)
  try:
    flags = parse_flags(
      f"python -m {module}", sys.argv[1:], default_file=default_file
    )
    load(flags)
    function = getattr(importlib.import_module(module), name)
    gin.get_configurable(function)()
  except ValueError as error:
    if not _is_users_mistake(error):
      raise
    _exit(error, 2)
  except FloatingPointError as error:
    _exit(error, 1)


def _exit(error: Exception, code: int) -> NoReturn:
  print(f"error: {_one_sentence(error)}", file=sys.stderr)
  sys.exit(code)
