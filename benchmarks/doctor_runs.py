# SPDX-License-Identifier: Apache-2.0
"""Six runs of the demo's task, five of them spoiled, and what the doctor says.

    python benchmarks/doctor_runs.py --span_base=family/4m_span.safetensors \
      --output=runs

`pretrain_family.sh` makes the base that has seen span corruption alone; without
`--span_base` that run is left out. The base of the others is the package's.
Each run is an ordinary training command of one seed, its output in
`runs/<name>/log.txt` and its report in `report.txt`. Labels that are cut are
not left to the doctor: that command refuses them. The benchmark ends with an
error if a diagnosis is not the one that was provoked. About four minutes on two
cores.
"""

import argparse
import pathlib
import random
import subprocess
import sys

from sentencepiece import sentencepiece_model_pb2

from prompt_tuning import pretrained

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 300
LEARNED = "The prompt has learned."
# What is done to a run, and what the verdict has to say.
SPOILED = {
  "good": ([], LEARNED),
  "slow": (
    ["--gin.optim.adafactor.learning_rate=1e-6"],
    "learning rate too low",
  ),
  "fast": (
    ["--gin.optim.adafactor.learning_rate=100.0"],
    "learning rate too high",
  ),
  "foreign": (
    [
      "--gin.VOCABULARY=@vocabularies.sentencepiece()",
      "--gin.vocabularies.sentencepiece.path='{output}/foreign.model'",
    ],
    "wrong vocabulary",
  ),
  "cut": (
    ["--gin.TASK_FEATURE_LENGTHS={'inputs': 10, 'targets': 1}"],
    "targets']=1 is too short for the label",
  ),
  "span": (
    ["--gin.INITIAL_CHECKPOINT_PATH='{span_base}'"],
    "base not LM-adapted",
  ),
}


def write_foreign_vocabulary(path: pathlib.Path) -> None:
  """Writes the base's vocabulary with its words in another order."""
  vocabulary = sentencepiece_model_pb2.ModelProto.FromString(
    (ROOT / "tasks/english_8k.model").read_bytes()
  )
  words = [
    piece
    for piece in vocabulary.pieces
    if piece.type == sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
  ]
  order = [(piece.piece, piece.score) for piece in words]
  random.Random(0).shuffle(order)
  for piece, (text, score) in zip(words, order, strict=True):
    piece.piece, piece.score = text, score
  path.write_bytes(vocabulary.SerializeToString())


def run(name: str, args: argparse.Namespace) -> str:
  """Trains, and returns what the doctor says first, or why it was refused."""
  folder = args.output / name
  folder.mkdir(parents=True, exist_ok=True)
  flags = [
    flag.replace("{output}", str(args.output)).replace(
      "{span_base}", str(args.span_base)
    )
    for flag in SPOILED[name][0]
  ]
  last_step = NUM_STEPS
  if name == "span":  # Steps are counted from that of the base.
    last_step += pretrained.open_checkpoint(str(args.span_base)).step
  with open(folder / "log.txt", "w+", encoding="utf-8") as log:
    training = subprocess.run(
      [
        *(sys.executable, "-m", "prompt_tuning.train"),
        "--gin_file=gin/runs/demo.gin",
        "--gin.EVAL_MODE='generation'",
        "--gin.SEEDS=0",
        f"--gin.TRAIN_STEPS={last_step}",
        "--gin.loop.LoopConfig.probe_base=True",
        *flags,
        f"--gin.MODEL_DIR='{folder}/model'",
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    )
    if training.returncode:
      log.seek(0)
      return log.read().splitlines()[-1]
  report = subprocess.run(
    [sys.executable, "-m", "prompt_tuning.doctor", folder / "model"],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  (folder / "report.txt").write_text(report)
  return report.splitlines()[0]


def main() -> None:
  """Prints a table of the runs."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--span_base", type=pathlib.Path)
  args = parser.parse_args()
  args.output.mkdir(parents=True, exist_ok=True)
  write_foreign_vocabulary(args.output / "foreign.model")
  wrong = []
  print("| run | provoked | the doctor says |\n| --- | --- | --- |")
  for name, (_, expected) in SPOILED.items():
    if name == "span" and args.span_base is None:
      continue
    verdict = run(name, args)
    print(f"| {name} | {expected} | {verdict} |", flush=True)
    if expected not in verdict.split(" (or: ")[0]:
      wrong.append(name)
  sys.exit(f"diagnosed wrongly: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
  main()
