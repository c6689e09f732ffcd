# SPDX-License-Identifier: Apache-2.0
"""Says what prompts say.

    python -m prompt_tuning.interpret --base=BASE --vocabulary=spiece.model
      --label=positive --label=negative --output=report sst2=MODEL_DIR

prints the report and, with --output, writes report.html, report.json and
report.txt into that folder. BASE is any base that `pretrained.open_checkpoint`
knows; only its embedding table is read, block by block. A prompt is any file
of `prompt_files` or the MODEL_DIR of a run.
"""

import argparse
from collections.abc import Sequence
import sys

from etils import epath

from prompt_tuning import atomic_files
from prompt_tuning.interpret import page, report, sources, text


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m prompt_tuning.interpret",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("prompts", nargs="+", metavar="[NAME=]PROMPT")
  parser.add_argument("--base", required=True, help="the frozen model")
  parser.add_argument(
    "--vocabulary", required=True, help="its SentencePiece model"
  )
  parser.add_argument(
    "--extra_ids",
    type=int,
    default=0,
    metavar="N",
    help="sentinels behind the model's pieces: 100 for a spiece.model of T5",
  )
  parser.add_argument(
    "--label",
    action="append",
    default=[],
    metavar="TEXT",
    help="a class label to look for; may be given several times",
  )
  parser.add_argument(
    "--initial",
    action="append",
    default=[],
    metavar="FILE",
    help="a prompt before training; one for each prompt, in order",
  )
  parser.add_argument(
    "--num_neighbours", type=int, default=5, metavar="N", help="of a position"
  )
  parser.add_argument("--output", metavar="DIR", help="where the files go")
  return parser


def _make(args: argparse.Namespace) -> report.Report:
  """Reads what the flags name, and computes the report."""
  if args.initial and len(args.initial) != len(args.prompts):
    raise ValueError(
      f"{len(args.initial)} --initial for {len(args.prompts)} prompts: give one"
      " for each, in order, or none"
    )
  if args.num_neighbours < 2:
    raise ValueError(
      f"--num_neighbours={args.num_neighbours} must be 2 or more"
    )
  words = sources.open_words(args.vocabulary, num_sentinels=args.extra_ids)
  table = sources.open_table(args.base)
  initial = args.initial or [None] * len(args.prompts)
  prompts = list(map(sources.load_prompt, args.prompts, initial))
  for prompt in prompts:
    sources.check(prompt, table, args.base)
  return report.make(
    prompts,
    table,
    words,
    base=args.base,
    labels=args.label,
    num_neighbours=args.num_neighbours,
  )


def _write(found: report.Report, output: epath.Path) -> None:
  for name, content in (
    ("report.txt", f"{text.render(found)}\n"),
    ("report.json", report.to_json(found)),
    ("report.html", page.render(found)),
  ):
    atomic_files.write(output / name, content)


def main(argv: Sequence[str] | None = None) -> None:
  """Makes the report; a mistake is one sentence and exit code 2."""
  args = _parser().parse_args(argv)
  try:
    found = _make(args)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  print(text.render(found))
  if args.output is not None:
    _write(found, epath.Path(args.output))


if __name__ == "__main__":
  main()
