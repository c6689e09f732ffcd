# SPDX-License-Identifier: Apache-2.0
"""Every registered task and mixture against the original's registry."""

import functools
import json
import pathlib

from prompt_tuning.tasks import metrics, postprocessors, rouge
import pytest

GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1] / "goldens" / "data_registry.json"
  ).read_text()
)
# The original's WNLI as generation is no task of the paper.
NAMES = [
  name
  for name in (
    GOLDEN["prompt_tuning_tasks"] + GOLDEN["t5_glue_and_super_glue_tasks"]
  )
  if name != "glue_wnli_v002_simple_eval"
]
METRICS = {
  "accuracy": metrics.accuracy,
  "deduplicate_metric.<locals>._deduplicated_metric": metrics.record,
  "f1_score_with_invalid": metrics.f1,
  "mean_group_metric.<locals>.my_metric": metrics.multirc_exact_match,
  "multirc_f1_over_all_answers": metrics.multirc_f1,
  "pearson_corrcoef": metrics.pearson,
  "rouge": rouge.rouge,
  "spearman_corrcoef": metrics.spearman,
  "squad": metrics.squad,
}


def name_of(function):
  return function["function"] if isinstance(function, dict) else function


def golden_metrics(name):
  found = []
  for metric in GOLDEN["task_specs"][name]["metrics"]:
    if name_of(metric) == "metric_with_examples":
      metric = metric["args"][0]
    if name_of(metric) == "text_examples":
      continue
    if "sklearn" in name_of(metric):  # The original's wrapper has no name.
      found.append(metrics.cb_f1 if "_cb_" in name else metrics.matthews)
    else:
      found.append(METRICS[name_of(metric)])
  return found


def bound(function, keyword):
  """Returns what a partial function was given."""
  return getattr(function, "keywords", {}).get(keyword)


@pytest.mark.parametrize("name", NAMES)
def test_task_is_as_in_the_original(registry, name):
  golden, task = GOLDEN["task_specs"][name], registry.get(name)
  assert task.source.tfds_dataset.name == golden["tfds"]
  splits = task.source._splits
  assert list(splits or ()) == (golden["splits"] or [])
  steps = [name_of(step) for step in golden["preprocessors"]]
  functions = [
    getattr(step, "func", step).__name__
    for step in task.preprocessors
    if hasattr(getattr(step, "func", step), "__name__")
  ]
  is_nameless = "remove_first_text_token" in steps
  assert ("remove_task_name" in functions) == is_nameless
  offsets = [
    step["kwargs"]["offset"]
    for step in golden["preprocessors"]
    if name_of(step) == "add_sentinel_to_beginning"
  ]
  indices = [bound(step, "index") for step in task.preprocessors]
  assert [index for index in indices if index is not None] == offsets
  # The definite pronouns' index task has the metrics of another in the
  # original: see super_glue.py.
  if name.startswith("task_index_dpr"):
    golden_metric_fns = [metrics.accuracy]
  else:
    golden_metric_fns = golden_metrics(name)
  found = [bound(fn, "metric_fn") or fn for fn in task.metric_fns]
  assert [
    fn for fn in found if fn.__name__ != "_log_examples"
  ] == golden_metric_fns
  assert (task.postprocessor is None) == (golden["postprocess"] is None)


@pytest.mark.parametrize(
  "prefix", ["taskless_", "task_index_"], ids=["taskless", "task_index"]
)
@pytest.mark.parametrize("suffix", ["", "_examples"], ids=["", "examples"])
def test_the_postprocessor_of_dpr_is_a_function(registry, prefix, suffix):
  task = registry.get(f"{prefix}dpr_v001_simple{suffix}")
  found = task.postprocess_fn("Tom", example={}, is_target=False)
  wanted = postprocessors.Logged("Tom", "Tom", "") if suffix else "Tom"
  assert found == wanted


def fixed(name, rates):
  """Gives the MNLI mixtures the tasks that their names promise."""
  for prefix in ("taskless_", "task_index_"):
    if name.startswith(f"{prefix}glue_mnli_and_dev"):
      return {f"{prefix}{task}": rate for task, rate in rates.items()}
  return rates


@pytest.mark.parametrize("name", GOLDEN["prompt_tuning_mixtures"])
@pytest.mark.usefixtures("registry")
def test_mixture_is_as_in_the_original(name):
  import seqio

  mixture = seqio.MixtureRegistry.get(name)
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == fixed(name, GOLDEN["mixtures"][name])


@pytest.mark.usefixtures("registry")
def test_equal_rates_train_all_tasks_alike():
  import seqio

  mixture = seqio.MixtureRegistry.get(
    "taskless_super_glue_with_dpr_v102_examples_equal"
  )
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  evaluated = rates.pop("taskless_super_glue_wsc_v102_simple_eval_examples")
  assert evaluated == 0
  assert list(rates.values()) == [1.0] * 9


def test_examples_are_logged_as_text(registry):
  import seqio

  task = registry.get("glue_sst2_v200_examples")
  example = {"inputs_pretokenized": b"sst2 sentence: fine"}
  logged = [
    task.postprocess_fn("positive", example=example, is_target=is_target)
    for is_target in (True, False)
  ]
  accuracy, texts = (fn([logged[0]], [logged[1]]) for fn in task.metric_fns)
  assert accuracy == {"accuracy": 100.0}
  assert isinstance(texts["examples"], seqio.metrics.Text)
  assert "sst2 sentence: fine" in texts["examples"].textdata


def test_no_preprocessor_holds_a_vocabulary(registry):
  import seqio

  for name in registry.names():
    for step in registry.get(name).preprocessors:
      while isinstance(step, functools.partial):
        for value in (*step.args, *step.keywords.values()):
          assert not isinstance(value, seqio.Vocabulary), name
        step = step.func
