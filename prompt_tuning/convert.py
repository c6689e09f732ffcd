# SPDX-License-Identifier: Apache-2.0
"""Converts a base between T5X's, Hugging Face's and our own format.

    python -m prompt_tuning.convert --format=t5x --from=hf/t5-v1_1-small
      --to=t5x/checkpoint_0

Prompts and optimizer state are left out. Arrays are read and written one by
one, so that a base larger than the memory can be converted.
"""

from collections.abc import Sequence
import sys

from absl import app, flags

from prompt_tuning.pretrained import conversion

_FROM = flags.DEFINE_string("from", None, "The base to read.", required=True)
_TO = flags.DEFINE_string("to", None, "What to write.", required=True)
_FORMAT = flags.DEFINE_enum(
  "format", None, conversion.FORMATS, "What to write it as.", required=True
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "Of every array; default: as it is."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print what would be done.")


def main(argv: Sequence[str]) -> None:
  """Runs `conversion.convert`; a mistake is one sentence and exit code 2."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    table = conversion.convert(
      _FROM.value,
      _TO.value,
      output=_FORMAT.value,
      dtype=_DTYPE.value,
      dry_run=_DRY_RUN.value,
    )
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  print(table)


if __name__ == "__main__":
  app.run(main)
