# SPDX-License-Identifier: Apache-2.0
import numpy as np
from paths import GOLDENS
import pytest

from prompt_tuning import checkpoint_tool, prompt_files
from prompt_tuning.pretrained import leaves, open_checkpoint

T5X = f"{GOLDENS}/t5x_checkpoint/checkpoint_3"
HF = f"{GOLDENS}/hf_t5_tiny"
PEFT = f"{GOLDENS}/peft_prompt"


@pytest.fixture
def tool(capsys):
  def run(*argv):
    checkpoint_tool.main(list(argv))
    return capsys.readouterr().out.splitlines()

  return run


def test_inspect_lists_every_array(tool, golden):
  lines = tool("inspect", T5X)
  prompt = golden("t5x_checkpoint_expected")["prompt_after_step"][-1]
  rms = float(np.sqrt(np.mean(np.square(prompt))))
  (line,) = (x for x in lines if x.startswith(prompt_files.NAME))
  assert line.split() == [
    prompt_files.NAME,
    "(5,",
    "32)",
    "float32",
    "640",
    "B",
    "rms",
    f"{rms:.6g}",
  ]
  assert lines[-1].endswith("step 3")
  assert lines[-1].startswith(f"{len(lines) - 1} arrays")


def test_diff_names_what_is_not_equal(tool):
  lines = tool("diff", T5X, HF)
  assert lines[0] == f"{prompt_files.NAME}: only in {T5X}"
  assert lines[1].endswith("arrays are equal")
  assert len(lines) == 2
  assert tool("diff", HF, HF)[-1] == lines[1]


def test_extract_writes_one_variable(tool, tmp_path, golden):
  tool("extract", T5X, prompt_files.NAME, f"{tmp_path}/prompt.npy")
  expected = golden("t5x_checkpoint_expected")["prompt_after_step"][-1]
  np.testing.assert_array_equal(np.load(tmp_path / "prompt.npy"), expected)


def test_recreate_puts_a_prompt_into_a_checkpoint(tool, tmp_path, golden):
  output = f"{tmp_path}/checkpoint_3"
  tool("recreate", T5X, PEFT, output)
  made = open_checkpoint(output).leaves
  leaf = made[prompt_files.NAME]
  prompt = leaves.read(leaf, leaves.whole(leaf.shape), np.dtype(np.float32))
  np.testing.assert_array_equal(
    prompt, golden("prompted_t5_1_1_tiny")["prompt"]
  )
  lines = tool("diff", T5X, output)
  assert lines[0].startswith(f"{prompt_files.NAME}: differs by")
  assert len(lines) == 2


def test_a_prompt_goes_round_through_every_format(tool, tmp_path):
  tool("prompt", PEFT, f"{tmp_path}/a.safetensors")
  tool("prompt", f"{tmp_path}/a.safetensors", f"{tmp_path}/b.npy")
  tool("prompt", f"{tmp_path}/b.npy", f"{tmp_path}/adapter/")
  np.testing.assert_array_equal(
    prompt_files.load(f"{tmp_path}/adapter").prompt,
    prompt_files.load(PEFT).prompt,
  )


def test_peft_is_given_no_prompt_that_it_would_put_elsewhere(
  tool, tmp_path, capsys
):
  path = f"{tmp_path}/behind.safetensors"
  prompt_files.save(path, np.ones((2, 4)), {"place": "suffix_prompt"})
  with pytest.raises(SystemExit):
    tool("prompt", path, f"{tmp_path}/adapter/")
  assert "was tuned as 'suffix_prompt'" in capsys.readouterr().err
  assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("extract", T5X, "encoder/promt", "x"), "has no variable 'encoder/promt'"),
    (("inspect", "/nowhere"), "/nowhere"),
    (("recreate", T5X, PEFT, "/tmp/checkpoint_9"), "the step in the name"),
    (("prompt", "/nowhere", "x"), "PROMPT_FILE='/nowhere' does not exist"),
  ],
)
def test_a_mistake_is_one_sentence(tool, capsys, argv, message):
  with pytest.raises(SystemExit) as info:
    tool(*argv)
  assert info.value.code == 2
  assert message in capsys.readouterr().err


def test_a_prompt_of_another_width_is_refused(tool, tmp_path, capsys):
  np.save(tmp_path / "wide.npy", np.zeros((5, 33), np.float32))
  with pytest.raises(SystemExit):
    tool("recreate", T5X, f"{tmp_path}/wide.npy", f"{tmp_path}/checkpoint_3")
  assert "has width 33" in capsys.readouterr().err
