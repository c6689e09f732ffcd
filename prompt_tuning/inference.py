# SPDX-License-Identifier: Apache-2.0
"""Predictions for texts, each with a prompt of its own, on one frozen base.

model = inference.load("base", vocabulary=..., prompts={"rte": "rte.npy"})
inference.predict(model, ["premise: ..."], prompts="rte")[0].text

The first device has all of it or, under `partitioning.use`, all devices of all
processes, which then make the same calls, share the rows and get all answers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from prompt_tuning import (
  answers,
  base_sizes,
  batching,
  decoding,
  evaluate,
  partitioning,
  pretrained,
  prompt_bank,
  prompt_files,
  quantization,
  t5,
)
from prompt_tuning import (
  prompts as prompts_lib,
)
from prompt_tuning import (
  vocabulary as vocabulary_lib,
)

# Inputs are padded to a power of two, this one or more, so that few programs
# are compiled.
_SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
  """How texts become predictions.

  Attributes:
    decoder: greedy, a draw, a beam search, or the best of some labels.
    feature_lengths: most tokens of `inputs`, EOS included, to which longer ones
      are cut, and of what is generated, `targets`.
    batch_size: most rows a batch.
    seed: of what is drawn.

  Raises:
    ValueError: for a batch size or length below 1, or other features.
  """

  decoder: answers.Decoder = decoding.SCORED_GREEDY
  feature_lengths: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"inputs": 512, "targets": 64}
  )
  batch_size: int = 32
  seed: int = 0

  def __post_init__(self) -> None:
    if self.batch_size < 1:
      raise ValueError(f"BATCH_SIZE={self.batch_size} must be 1 or more")
    lengths = dict(self.feature_lengths)
    if set(lengths) != {"inputs", "targets"} or min(lengths.values()) < 1:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={lengths} must say how many tokens, 1 or more,"
        " 'inputs' and 'targets' have at most"
      )


class Model(NamedTuple):
  """A base in memory, with prompts for it.

  Attributes:
    network: its prompt says where a prompt is put; the length does not count.
    params: those of the base, by path.
    bank: the prompts.
    vocabulary: of the base.
  """

  network: t5.Transformer
  params: dict[str, Array]
  bank: prompt_bank.PromptBank
  vocabulary: vocabulary_lib.Vocabulary


def load(
  path: str,
  *,
  vocabulary: vocabulary_lib.Vocabulary,
  prompts: Mapping[str, str],
  network: t5.Transformer | None = None,
  capacity: int | None = None,
  mesh: partitioning.MeshConfig | None = None,
) -> Model:
  """Loads a base and prompts for it, once.

  Args:
    path: see `pretrained.open_checkpoint`.
    vocabulary: of the base.
    prompts: name -> file, see `prompt_files`; empty for the base alone. More
      can follow with `prompt_bank.load(model.bank, name, file)`.
    network: sizes and dtypes, and where a prompt is put. None: the sizes of the
      checkpoint, float32, and the prompt in front.
    capacity: how many prompts the bank holds at most; None for any number.
    mesh: what `partitioning.use` was given, if it was.

  Raises:
    ValueError: for a base, prompt or vocabulary that does not fit the others.
  """
  if network is None:
    network = t5.Transformer(base_sizes.read(path))
  evaluate.check_vocabulary(vocabulary, network)
  plain = network.clone(prompt=None)
  target = partitioning.placed(
    t5.param_shapes(plain), plain, mesh or partitioning.MeshConfig()
  )
  params = quantization.quantize(
    pretrained.load(path, target).params, network.config.quantization
  )
  table = params["token_embedder/embedding"]
  place = (network.prompt or prompts_lib.PromptConfig()).place
  bank = prompt_bank.empty(
    partitioning.gather(table), place=place, capacity=capacity
  )
  for name, file in prompts.items():
    prompt_bank.load(bank, name, file)
  return Model(network, params, bank, vocabulary)


def predict(
  model: Model,
  texts: Sequence[str],
  *,
  prompts: str | Sequence[str] | None = None,
  config: InferenceConfig | None = None,
) -> list[answers.Prediction]:
  """Answers every text, in their order.

  Args:
    model: what `load` returned.
    texts: inputs, written as those that the prompt was trained on.
    prompts: the name of the prompt, one for all texts or one for each. None:
      the only one of the bank, or the plain base if it has none.
    config: how; None for greedy results of at most 64 tokens.

  Raises:
    ValueError: for an unknown prompt, or another number of names than of texts.
  """
  config = config or InferenceConfig()
  if prompts is None or isinstance(prompts, str):
    names: list[str | None] = [prompts] * len(texts)
  else:
    names = list(prompts)
  if len(names) != len(texts):
    raise ValueError(
      f"prompts has {len(names)} names for {len(texts)} texts: give one name"
      " for each, or one for all"
    )
  length = config.feature_lengths["inputs"]
  rows = [tokenise(text, model.vocabulary, length=length) for text in texts]
  results: dict[int, answers.Prediction] = {}
  # Texts of similar length share a batch, so that less of it is padding.
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  for start in range(0, len(order), config.batch_size):
    chosen = order[start : start + config.batch_size]
    found = predict_batch(
      model,
      [rows[i] for i in chosen],
      [names[i] for i in chosen],
      config=config,
      first_row=start,
    )
    results |= zip(chosen, found, strict=True)
  return [results[i] for i in range(len(rows))]


def tokenise(
  text: str, vocabulary: vocabulary_lib.Vocabulary, *, length: int
) -> Int[np.ndarray, " T"]:
  """Returns the tokens of an input: cut if they are too many, then EOS."""
  tokens = vocabulary.encode(text)[: length - 1]
  return np.array([*tokens, vocabulary_lib.EOS], np.int32)


def predict_batch(
  model: Model,
  rows: Sequence[Int[np.ndarray, " _"]],
  names: Sequence[str | None],
  *,
  config: InferenceConfig,
  first_row: int,
) -> list[answers.Prediction]:
  """Answers the tokenised rows of one batch, in their order.

  Args:
    model: what `load` returned.
    rows: tokens of each row, with EOS; `config.batch_size` rows at most.
    names: the prompt of each row; None as in `predict`.
    config: how.
    first_row: a number that no other batch has, for what is drawn.

  Raises:
    ValueError: for an unknown prompt, or a batch size that the devices cannot
      share equally.
  """
  partitioning.check_batch_size(config.batch_size)
  size = _num_rows(len(rows), most=config.batch_size)
  longest = config.feature_lengths["inputs"]
  most = max(_SHORTEST, *map(len, rows))
  numbers = [*range(len(rows)), *[-1] * (size - len(rows))]
  tokens = batching.Ragged.from_rows(rows).padded(
    np.array(numbers), _power_of_two(most, longest=longest)
  )
  # Rows that fill the batch up have no tokens, and the prompt of the first.
  filled = [names[max(i, 0)] for i in numbers]
  network, params, lengths = _with_prompts(model, filled)
  batch = answers.Batch(
    partitioning.place_rows(tokens),
    None if lengths is None else partitioning.place_rows(lengths),
  )
  if isinstance(config.decoder, answers.Labels):
    found = answers.rank(
      params,
      batch,
      network=network,
      labels=config.decoder,
      vocabulary=model.vocabulary,
    )
  else:
    found = answers.generate(
      params,
      batch,
      jax.random.fold_in(jax.random.key(config.seed), first_row),
      network=network,
      decoder=config.decoder,
      max_decode_length=config.feature_lengths["targets"],
      vocabulary=model.vocabulary,
    )
  return found[: len(rows)]


def _num_rows(count: int, *, most: int) -> int:
  """Returns how many rows a batch has: for each device a power of two."""
  num_parts = partitioning.num_row_parts()
  own = _power_of_two(-(-count // num_parts), longest=most // num_parts)
  return own * num_parts


def _power_of_two(count: int, *, longest: int) -> int:
  """Returns the smallest power of two that is enough, `longest` at most."""
  return min(1 << (count - 1).bit_length(), longest)


def _with_prompts(
  model: Model, names: Sequence[str | None]
) -> tuple[t5.Transformer, dict[str, Array], Int[np.ndarray, " B"] | None]:
  """Gives every row its prompt.

  Returns:
    The network for prompts of this length, all parameters, and the lengths of
    the prompts, or None if there are none or they need not be known.
  """
  known = list(model.bank.files)
  if None in names and not known:
    return model.network.clone(prompt=None), model.params, None
  if None in names and len(known) > 1:
    raise ValueError(
      f"a row names no prompt, and there are {', '.join(sorted(known))}: name"
      " one of them (PROMPT_FIELD)"
    )
  prompt, lengths = prompt_bank.gather(
    model.bank, [name or known[0] for name in names]
  )
  place = model.network.prompt or prompts_lib.PromptConfig()
  network = model.network.clone(
    prompt=dataclasses.replace(place, length=prompt.shape[1])
  )
  placed = jnp.asarray(partitioning.place_rows(prompt))
  params = model.params | {prompt_files.NAME: placed}
  used = set(lengths.tolist())
  if place.join is prompts_lib.prefix_prompt:
    # Of the whole bank, so that one program reads all batches; and no lengths
    # without need, for the attention kernel does not know them.
    used = {file.prompt.shape[0] for file in model.bank.files.values()}
  return network, params, lengths if len(used) > 1 else None
