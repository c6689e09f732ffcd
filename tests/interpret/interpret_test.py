# SPDX-License-Identifier: Apache-2.0
import json
import re
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompt_files
from prompt_tuning.interpret import __main__ as interpret
from prompt_tuning.interpret import sources

FILES = ["report.html", "report.json", "report.txt"]


@pytest.fixture
def prompts(tmp_path, table, ids):
  """A run that began as good, bad, <b>, good, and lost the first of them."""
  initial = table[[ids["good"], ids["bad"], ids["<b>"], ids["good"]]]
  trained = initial.copy()
  trained[0] = 9 * np.eye(16)[3]
  trained[1] *= 3
  folder = tmp_path / "run"
  for step, values in ((0, initial), (200, (initial + trained) / 2)):
    path = f"{folder}/numpy_checkpoints/checkpoint_{step}"
    prompt_files.save(f"{path}/encoder.prompt.prompt.prompt", values, {})
  best = {"task": "films", "step": "400"}
  prompt_files.save(f"{folder}/best/prompt.safetensors", trained, best)
  prompt_files.save(f"{tmp_path}/other.npy", table[[ids["poor"]] * 3], {})
  return tmp_path


@pytest.fixture
def run(prompts, base, vocabulary_file, capsys):
  """Runs the command; returns what it prints and the folder that it fills."""

  def call(*flags):
    output = prompts / "report"
    interpret.main(
      [
        f"--base={base}",
        f"--vocabulary={vocabulary_file}",
        f"--output={output}",
        *flags,
      ]
    )
    return capsys.readouterr().out, output

  return call


def labels_of(output):
  report = json.loads((output / "report.json").read_text())
  return {x["label"]: x for x in report["prompts"][0]["labels"]}


def test_the_report_says_where_labels_are_and_whether_they_persist(
  run, prompts
):
  out, output = run(
    "--label=good", "--label=bad", "--label=film", f"films={prompts}/run"
  )
  found = labels_of(output)
  assert found["good"]["positions"] == [3]
  assert found["good"]["started"] == [0, 3]
  assert found["good"]["persists"]
  assert found["bad"]["best_position"] == 1
  assert found["bad"]["best_cosine"] == pytest.approx(1, abs=1e-6)
  assert found["film"]["started"] == []
  assert "good: found at 3, most similar position 3 (cosine 1.000)" in out
  assert "it began at 0, 3 and persists" in out


def test_a_label_that_is_found_elsewhere_only_is_lost(run, prompts, table, ids):
  initial = table[[ids["good"], ids["bad"]]]
  prompt_files.save(f"{prompts}/initial.npy", initial, {})
  moved = np.stack([-initial[0], initial[0]])
  prompt_files.save(f"{prompts}/trained.npy", moved, {})
  out, output = run(
    "--label=good", f"--initial={prompts}/initial.npy", f"{prompts}/trained.npy"
  )
  assert labels_of(output)["good"]["positions"] == [1]
  assert not labels_of(output)["good"]["persists"]
  assert "it began at 0 and is lost" in out
  assert "1.707 norms from its initial value" in out


def test_a_label_of_several_pieces_is_looked_for_as_their_mean(
  run, prompts, table, ids
):
  mean = table[[ids["good"], ids["bad"]]].mean(0)
  prompt_files.save(f"{prompts}/mean.npy", mean[None] * 7, {})
  _, output = run("--label=good bad", f"{prompts}/mean.npy")
  assert labels_of(output)["good bad"]["positions"] == [0]
  assert labels_of(output)["good bad"]["best_cosine"] == pytest.approx(1)


def test_each_position_has_its_neighbours_norm_and_drift(run, prompts):
  _, output = run(f"{prompts}/run", "--num_neighbours=2")
  report = json.loads((output / "report.json").read_text())
  position = report["prompts"][0]["positions"][1]
  pieces = [x["piece"] for x in position["neighbours"]]
  assert pieces == ["\u2581bad", "\u2581poor"]
  # bad = (0, 2) and poor = (0.1, 1): their cosine is 1 / sqrt(1.01).
  assert position["tightness"] == pytest.approx(1.01**-0.5, rel=1e-5)
  assert position["norm"] == pytest.approx(6)
  assert position["drift"] == pytest.approx(2)
  steps = [x["step"] for x in report["prompts"][0]["history"]]
  assert steps == [0, 200]
  assert report["prompts"][0]["history"][1]["norm"] == pytest.approx(
    (np.sqrt(1 + 4.5**2) + 4 + 1 + 2) / 4, rel=1e-5
  )


def test_tight_clusters_stand_out_from_random_vectors(run, prompts):
  out, output = run(f"{prompts}/other.npy", "--num_neighbours=2")
  report = json.loads((output / "report.json").read_text())
  assert report["random"]["tightness"] < 0.95
  assert "3 positions above 95% of these" in out
  assert "duplicates  3 positions: \u2581poor at 0, 1, 2" in out


def test_several_prompts_are_compared(run, prompts):
  out, output = run(f"a={prompts}/run", f"b={prompts}/other.npy")
  report = json.loads((output / "report.json").read_text())
  a, b = (
    prompt_files.load(str(x)).prompt
    for x in (prompts / "run/best/prompt.safetensors", prompts / "other.npy")
  )
  mean_a, mean_b = a.mean(0), b.mean(0)
  cosine = mean_a @ mean_b / np.linalg.norm(mean_a) / np.linalg.norm(mean_b)
  found = report["similarities"]["average_token"]
  assert found[0][1] == pytest.approx(cosine, rel=1e-5)
  assert "similarity of prompts, per token cosine" in out


def page_of(output):
  text = (output / "report.html").read_text()
  return text, ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def test_the_page_is_well_formed_and_asks_for_nothing_else(run, prompts):
  _, output = run("--label=good", f"{prompts}/run", f"{prompts}/other.npy")
  assert sorted(x.name for x in output.iterdir()) == FILES
  text, root = page_of(output)
  links = [
    value
    for element in root.iter()
    for name, value in element.attrib.items()
    if name in ("href", "src")
  ]
  assert {x.split(",")[0][:8] for x in links} == {"#prompt-", "data:ima"}
  assert "url(" not in text
  assert "script" not in text
  images = re.findall(r"data:image/png;base64,([\w+/=]+)", text)
  assert len(images) == 4


def test_the_page_shows_each_position_and_marks_labels(run, prompts):
  _, output = run("--label=good", f"films={prompts}/run")
  _, root = page_of(output)
  rows = root.findall(".//table[@class='positions']/tbody/tr")
  marked = [i for i, row in enumerate(rows) if row.get("class") == "label"]
  assert (len(rows), marked) == (4, [3])
  labels = root.findall(".//span[@class='piece label']")
  assert {"".join(x.itertext())[:5] for x in labels} == {"\u2581good"}
  bars = root.findall(".//rect[@class='bar marked']")
  assert {bar.findtext("title")[:11] for bar in bars} == {"position 3:"}


def test_words_of_the_vocabulary_are_no_markup(run, prompts):
  _, output = run(f"{prompts}/run", "--label=<b>")
  text, root = page_of(output)
  assert root.find(".//main//b") is not None  # Of the tiles.
  assert {x.text for x in root.findall(".//b")} & {"\u2581", None} == set()
  assert "<i>\u2581</i>&lt;b&gt;" in text


def test_the_report_is_the_same_again(run, prompts):
  contents = []
  for _ in range(2):
    _, output = run("--label=good", f"{prompts}/run")
    contents.append([(output / name).read_bytes() for name in FILES])
  assert contents[0] == contents[1]


def test_a_run_without_a_best_prompt_gives_its_newest(prompts):
  (prompts / "run/best/prompt.safetensors").unlink()
  found = sources.load_prompt(f"{prompts}/run", None)
  np.testing.assert_array_equal(found.values, found.history[-1][1])
  assert found.name == f"{prompts}/run"


def test_ids_behind_the_pieces_are_sentinels_or_unused(vocabulary_file):
  words = sources.open_words(vocabulary_file, num_sentinels=2)
  size = words.encode.__self__.GetPieceSize()
  names = [words.piece(size + i) for i in range(3)]
  assert names == ["<extra_id_1>", "<extra_id_0>", f"<unused {size + 2}>"]


def test_a_prompt_is_known_by_the_base_that_it_was_tuned_for(
  run, prompts, table
):
  own = {"base_id": prompt_files.base_id(jnp.asarray(table))}
  prompt_files.save(f"{prompts}/own.safetensors", table[:2], own)
  run(f"{prompts}/own.safetensors")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["{0}/nothing.npy"], "does not exist"),
    (["{0}/run", "--label="], "--label='' has no tokens"),
    (["{0}/run", "--num_neighbours=1"], "--num_neighbours=1 must be 2 or more"),
    (
      ["{0}/run", "{0}/other.npy", "--initial={0}/other.npy"],
      "1 --initial for 2 prompts: give one for each",
    ),
    (
      ["{0}/run", "--initial={0}/other.npy"],
      "is a prompt (4, 16), its initial value has (3, 16)",
    ),
    (["{0}/wide.npy"], "has width 17, "),
    (["{0}/foreign.safetensors"], "was tuned for another base than"),
    (["{0}/run", "--vocabulary={0}/other.npy"], "are no SentencePiece model"),
    (["{0}/run", "--vocabulary={0}/nothing"], "cannot be read"),
    (["{0}/run", "--base={0}/own.safetensors"], "has no token_embedder/embed"),
  ],
)
def test_a_mistake_is_one_sentence(run, prompts, capsys, flags, message):
  wide, prompt = np.ones((2, 17)), np.ones((2, 16))
  prompt_files.save(f"{prompts}/wide.npy", wide, {})
  foreign = {"base_id": "0" * 32}
  prompt_files.save(f"{prompts}/foreign.safetensors", prompt, foreign)
  prompt_files.save(f"{prompts}/own.safetensors", prompt, {})
  with pytest.raises(SystemExit) as info:
    run(*(flag.format(prompts) for flag in flags))
  assert info.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert len(error.splitlines()) == 1


def test_a_vocabulary_larger_than_the_table_is_refused(
  run, prompts, capsys, tmp_path, table
):
  from prompt_tuning import pretrained

  params = {"token_embedder/embedding": jnp.asarray(table[:4])}
  pretrained.save(f"{tmp_path}/small.safetensors", params, 0, {})
  with pytest.raises(SystemExit):
    run(f"{prompts}/run", f"--base={tmp_path}/small.safetensors", "--label=bad")
  assert "the base's table has 4 rows" in capsys.readouterr().err
