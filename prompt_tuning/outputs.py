# SPDX-License-Identifier: Apache-2.0
"""What a trial leaves in its folder, whether alone in a run or among others.

A run of one has `MODEL_DIR` for its folder, each of several trials
`MODEL_DIR/trials/<name>`, with the same files. Of several processes the first
leaves them; what is written by all, as one, are checkpoints alone.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import tempfile
from typing import NamedTuple

from etils import epath
import jax
import orbax.checkpoint as ocp

from prompt_tuning import (
  checkpoints,
  distributed,
  doctor,
  metrics_log,
  partitioning,
  prompt_files,
  results,
  trainer,
  trials,
)
from prompt_tuning.doctor import logs

PROMPT = prompt_files.NAME


class Output(NamedTuple):
  """Where a trial writes.

  Attributes:
    folder: its folder; that of another process than the first vanishes.
    log: its metrics.
    best: its best checkpoint.
    metadata: of that; see `checkpoints.save`.
  """

  folder: str
  log: metrics_log.MetricsLog
  best: ocp.CheckpointManager
  metadata: checkpoints.Metadata


class Outputs(NamedTuple):
  """Where a run writes.

  Attributes:
    model_dir: the folder of all.
    by_name: where each trial does.
    means: the metrics over the seeds; None for a run of one.
  """

  model_dir: str
  by_name: Mapping[str, Output]
  means: metrics_log.MetricsLog | None


@contextlib.contextmanager
def open_outputs(
  model_dir: str,
  all_trials: Sequence[trials.Trial],
  runs: Sequence[checkpoints.Metadata],
  *,
  base_fingerprint: str,
  step: int,
) -> Iterator[Outputs]:
  """Opens the folders of a run that continues at `step`.

  Args:
    model_dir: of the run.
    all_trials: which there are.
    runs: what describes each; see `checkpoints.save`.
    base_fingerprint: of the frozen parameters.
    step: lines of later steps are dropped from the logs.
  """
  by_name = {}
  with contextlib.ExitStack() as stack:
    root = model_dir
    if not distributed.is_first():
      root = stack.enter_context(tempfile.TemporaryDirectory())
    for trial, run in zip(all_trials, runs, strict=True):
      place = f"/trials/{trial.name}" if trial.name else ""
      best = checkpoints.open_manager(f"{model_dir}{place}/best", keep=1)
      folder = f"{root}{place}"
      by_name[trial.name] = Output(
        folder,
        stack.enter_context(metrics_log.open_log(folder, step)),
        stack.enter_context(best),
        {"base_fingerprint": base_fingerprint, "run": run},
      )
    means = None
    if len(by_name) > 1:
      means = stack.enter_context(metrics_log.open_log(root, step))
    yield Outputs(root, by_name, means)


def write_scores(
  outs: Outputs,
  state: trials.State,
  frozen: trainer.Params,
  found: Sequence[results.Scores],
) -> None:
  """Writes an evaluation down, and keeps the states that are the best so far.

  Args:
    outs: where to.
    state: what has been evaluated.
    frozen: the parameters that are not trained.
    found: the metrics of the trials that have not stopped; states are compared
      by "score".
  """
  states = dict(zip(outs.by_name, trials.unstack(state), strict=True))
  for trial, scores in found:
    own, out = states[trial.name], outs.by_name[trial.name]
    assert own is not None
    metrics_log.write(out.log, int(state.step), "eval", scores)
    if "score" in scores and checkpoints.is_best(out.best, scores["score"]):
      run = out.metadata["run"]
      described = {
        "task": run["MIXTURE_OR_TASK_NAME"],
        "score": repr(scores["score"]),
      }
      if "place" in run:
        described["place"] = run["place"]
      # Before the checkpoint, with which a restart takes it for written.
      _write_prompt(f"{out.folder}/best", own, frozen, described)
      checkpoints.save_best(out.best, own, scores["score"], out.metadata)
  if outs.means is not None:
    means = results.flatten(results.spreads(found))
    metrics_log.write(outs.means, int(state.step), "eval", means)


def forget_best(outs: Outputs) -> None:
  """Deletes the best checkpoints of an earlier attempt in the same folder."""
  for out in outs.by_name.values():
    for step in out.best.all_steps():
      out.best.delete(step)


def write_probes(
  outs: Outputs, step: int, probes: Sequence[Mapping[str, float]]
) -> None:
  """Writes down what `base_probe` has found for each trial."""
  for out, found in zip(outs.by_name.values(), probes, strict=True):
    if found:
      metrics_log.write(out.log, step, "base", found)


def warnings(outs: Outputs, *, end: int) -> list[str]:
  """Returns what the doctor expects to go wrong, a line a trial at most.

  Args:
    outs: where the trials have written what they have come to.
    end: the last step of the run.
  """
  lines = []
  for name, out in outs.by_name.items():
    run = logs.read(epath.Path(out.folder))
    found = doctor.warning(run._replace(end=end))
    if found is not None:
      lines.append(f"{name}{': ' if name else ''}{found}")
  return lines


def write_prompts(outs: Outputs, state: trials.State) -> None:
  """Writes the prompts of the trials that have not stopped."""
  states = trials.unstack(state)
  for out, own in zip(outs.by_name.values(), states, strict=True):
    if own is not None:
      checkpoints.write_prompts(out.folder, own)


def write_results(
  outs: Outputs, all_trials: Sequence[trials.Trial], state: trials.State
) -> str:
  """Writes `results.json` of several trials; returns it as a table."""
  stopped_at = trials.stopped_at(state)
  found = [
    results.read(outs.by_name[trial.name].log.path, trial, stopped_at=step)
    for trial, step in zip(all_trials, stopped_at, strict=True)
  ]
  results.write(outs.model_dir, found)
  return results.table(found)


def _write_prompt(
  folder: str,
  state: trainer.TrainState,
  frozen: trainer.Params,
  metadata: Mapping[str, str],
) -> None:
  """Writes `prompt.safetensors`, if it is the prompt that is trained."""
  table = frozen.get("token_embedder/embedding")
  if PROMPT in state.trainable and table is not None:
    described = {
      **metadata,
      "step": str(int(state.step)),
      "base_id": prompt_files.base_id(partitioning.gather(table)),
    }
    prompt = jax.device_get(partitioning.gather(state.trainable[PROMPT]))
    prompt_files.save(f"{folder}/prompt.safetensors", prompt, described)
