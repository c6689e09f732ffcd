# SPDX-License-Identifier: Apache-2.0
"""What an evaluation reports: metrics, a table of them, and each prediction.

With several prompts the columns are those of Lester et al. (2021), table 3: the
average of the prompts, the best of them, and their ensemble; beside these the
ensemble by mean probability, where labels are ranked, and every prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from prompt_tuning import ensembles, evaluate, loop, task_data, task_metrics
from prompt_tuning import vocabulary as vocabulary_lib

# Metrics by name, of one column.
Scores = Mapping[str, float]
# A value of a line of JSON.
Json = str | float | Mapping[str, float] | Sequence[Mapping[str, "Json"]]


class Ensemble(NamedTuple):
  """What several prompts answer together to the rows of a task.

  Attributes:
    texts: the majority's answers.
    dissent: the share of the prompts that gave another.
    average: of the label probabilities; None if texts are generated.
  """

  texts: Sequence[str]
  dissent: Float[np.ndarray, " R"]
  average: ensembles.Average | None


def combine(members: Sequence[evaluate.Predictions]) -> Ensemble:
  """Lets the prompts vote and, where labels are ranked, averages them."""
  answers = np.array([member.texts for member in members])
  vote = ensembles.majority_vote(
    answers, np.stack([_confidence(member) for member in members])
  )
  rows = np.arange(answers.shape[1])
  scores = [x.label_scores for x in members if x.label_scores is not None]
  return Ensemble(
    answers[vote.winners, rows].tolist(),
    vote.dissent,
    ensembles.average_probabilities(np.stack(scores)) if scores else None,
  )


def _confidence(
  member: evaluate.Predictions,
) -> Float[np.ndarray, " R"]:
  """Returns the probability of each answer; among the labels if there are."""
  if member.label_scores is None:
    return np.exp(member.scores)
  return np.max(ensembles.label_probabilities(member.label_scores), axis=1)


def columns(
  tasks: Sequence[task_data.EvalTask],
  members: Sequence[Sequence[evaluate.Predictions]],
) -> dict[str, Scores]:
  """Computes the metrics of every column; see `task_metrics.score_all`.

  Args:
    tasks: what is evaluated.
    members: for each task, the predictions with each prompt.

  Returns:
    With one prompt or none, a column "eval". Otherwise "average"; "best", for
    each task the prompt with the best default metrics; "ensemble", with the
    mean `dissent`; where labels are ranked "mean_probability", with the mean
    `spread` (a task without labels has the majority's answers there);
    "prompt_1" and so on.
  """
  by_prompt = list(zip(*members, strict=True))
  singles = [
    task_metrics.score_all(tasks, [x.texts for x in predictions])
    for predictions in by_prompt
  ]
  if len(singles) == 1:
    return {"eval": singles[0]}
  average = {x: float(np.mean([y[x] for y in singles])) for x in singles[0]}
  return {
    "average": average,
    "best": _best(tasks, singles),
    **_ensemble_columns(tasks, [combine(x) for x in members]),
    **{f"prompt_{i}": x for i, x in enumerate(singles, 1)},
  }


def _best(
  tasks: Sequence[task_data.EvalTask], singles: Sequence[Scores]
) -> Scores:
  """Takes for each task the metrics of its best prompt; the first of several.

  A task without default metrics goes by the mean of all it has; one without
  any has no best prompt.
  """
  result: dict[str, float] = {}
  defaults = []
  for task in tasks:
    prefix = f"{task.name}/"
    names = [prefix + name for name in task.scoring.default]
    names = names or [x for x in singles[0] if x.startswith(prefix)]
    if not names:
      continue
    means = [float(np.mean([x[name] for name in names])) for x in singles]
    # A correlation with constant predictions is none at all.
    best = singles[int(np.argmax(np.nan_to_num(means, nan=-np.inf)))]
    result |= {k: value for k, value in best.items() if k.startswith(prefix)}
    if task.scoring.default:
      defaults.append(float(np.nanmax(means)))
  return result | ({"score": float(np.mean(defaults))} if defaults else {})


def _ensemble_columns(
  tasks: Sequence[task_data.EvalTask], ensemble: Sequence[Ensemble]
) -> dict[str, Scores]:
  pairs = list(zip(tasks, ensemble, strict=True))
  votes = task_metrics.score_all(tasks, [x.texts for x in ensemble])
  dissent = {f"{t.name}/dissent": float(np.mean(x.dissent)) for t, x in pairs}
  result: dict[str, Scores] = {"ensemble": votes | dissent}
  spread = {
    f"{task.name}/spread": float(np.mean(x.average.spread))
    for task, x in pairs
    if x.average is not None
  }
  if spread:
    texts = [_averaged_texts(task, x) for task, x in pairs]
    scores = task_metrics.score_all(tasks, texts)
    result["mean_probability"] = scores | spread
  return result


def _averaged_texts(
  task: task_data.EvalTask, ensemble: Ensemble
) -> Sequence[str]:
  """Returns the labels that are likeliest on average, or the majority's."""
  if ensemble.average is None:
    return ensemble.texts
  return [task.scoring.labels[i] for i in ensemble.average.labels]


def format_table(table: Mapping[str, Scores]) -> str:
  """Writes the columns side by side, a metric on a line.

  Counts of labels are left out.
  """
  names = dict.fromkeys(name for column in table.values() for name in column)
  shown = [name for name in names if loop.is_shown(name)]
  if not shown:
    return "no task has metrics"
  width = max(map(len, shown))
  cells = lambda name: [
    f"{column[name]:.4g}" if name in column else "" for column in table.values()
  ]
  lines = [["", *table], *([name, *cells(name)] for name in shown)]
  return "\n".join(
    f"{name:<{width}}"
    + "".join(
      f"  {cell:>{max(len(title), 6)}}"
      for title, cell in zip(table, row, strict=True)
    )
    for name, *row in lines
  )


def prediction_rows(
  task: task_data.EvalTask,
  members: Sequence[evaluate.Predictions],
  vocabulary: vocabulary_lib.Vocabulary,
) -> Iterator[dict[str, Json]]:
  """Yields a JSON object for every row of a task, in order.

  It has input, target, prediction, score (the prediction's log-probability)
  and, where labels are ranked, label_scores (each label's). With several
  prompts prediction is the majority's, with its dissent, and each prompt's own
  are under prompts; where labels are ranked, averaged is the label that is
  likeliest on average, with its spread, of mean_probabilities.
  """
  ensemble = combine(members) if len(members) > 1 else None
  labels = task.scoring.labels
  for i, row in enumerate(task.rows):
    answers = [_answer(member, labels, i) for member in members]
    line: dict[str, Json] = {
      "input": _input(task, vocabulary, i),
      "target": row["targets_pretokenized"].decode(),
    }
    if ensemble is None:
      yield line | answers[0]
    else:
      yield line | _joint(ensemble, labels, i) | {"prompts": answers}


def _input(
  task: task_data.EvalTask, vocabulary: vocabulary_lib.Vocabulary, i: int
) -> str:
  """Returns the text of an input, from its tokens if it is not kept."""
  text = task.rows[i].get("inputs_pretokenized")
  if text is not None:
    return str(text.decode())
  inputs = task.examples.inputs
  tokens = inputs.tokens[inputs.offsets[i] : inputs.offsets[i + 1]]
  return vocabulary.decode(tokens.tolist())


def _answer(
  member: evaluate.Predictions, labels: Sequence[str], i: int
) -> dict[str, Json]:
  answer: dict[str, Json] = {
    "prediction": member.texts[i],
    "score": float(member.scores[i]),
  }
  if member.label_scores is not None:
    answer["label_scores"] = _by_label(labels, member.label_scores[i])
  return answer


def _joint(
  ensemble: Ensemble, labels: Sequence[str], i: int
) -> dict[str, Json]:
  joint: dict[str, Json] = {
    "prediction": ensemble.texts[i],
    "dissent": float(ensemble.dissent[i]),
  }
  average = ensemble.average
  if average is not None:
    joint["averaged"] = labels[average.labels[i]]
    joint["spread"] = float(average.spread[i])
    joint["mean_probabilities"] = _by_label(labels, average.probabilities[i])
  return joint


def _by_label(
  labels: Sequence[str], values: Float[np.ndarray, " N"]
) -> dict[str, float]:
  return dict(zip(labels, values.tolist(), strict=True))
