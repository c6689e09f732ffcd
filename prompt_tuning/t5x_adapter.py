# SPDX-License-Identifier: Apache-2.0
"""Our prompts inside T5X's own programs: t5x.train, t5x.eval, t5x.infer.

    python -m t5x.train --gin_file=gin/models/t5_1_1_base.gin \
      --gin_file=gin/t5x/prompt_finetune.gin --gin.MODEL_DIR="'/tmp/sst2'" ...

`t5.Transformer` is the module of `t5x.models.EncoderDecoderModel` as it is.
What T5X lacks is here: our partition as one of its optimizers, a prompt that
starts from the base's embeddings or a file, the prompt beside its checkpoints,
and tasks in another vocabulary. docs/t5x.md tells how to install T5X.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import importlib
from typing import Any, NamedTuple

import flax
from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
import numpy as np
import optax
import seqio
from t5x import models, optimizers, train_state, utils

from prompt_tuning import data, optim, prompt_files, prompt_init, t5
from prompt_tuning.pretrained import leaves, open_checkpoint

_PROMPT = tuple(prompt_files.NAME.split("/"))
_EMBEDDING = ("token_embedder", "embedding")
_FROZEN = "frozen"


def optax_optimizer(partition: optim.Partition) -> optimizers.OptaxWrapper:
  """Makes our partition an optimizer of T5X; what no rule matches is frozen.

  T5X differentiates all parameters, but XLA drops the gradients that nothing
  reads.

  Raises:
    ValueError: once T5X has a model, for a regular expression that matches
      none of its parameters.
  """

  def labels(params: PyTree) -> PyTree:
    flat = traverse_util.flatten_dict(params, sep="/")
    trained = partition.labels(flat)
    tree = traverse_util.unflatten_dict(
      {name: str(trained.get(name, _FROZEN)) for name in flat}, sep="/"
    )
    # T5X has frozen dicts here and plain ones there.
    return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(tree))

  rules = {
    str(i): optimizer for i, (_, optimizer) in enumerate(partition.rules)
  }
  return optimizers.OptaxWrapper(
    optax.partition({**rules, _FROZEN: optax.set_to_zero()}, labels)
  )


def multi_optimizer(
  rules: Sequence[tuple[Sequence[str], optimizers.OptimizerDef]],
  module: t5.Transformer,
) -> optimizers.MultiOptimizer:
  """Makes a partition of T5X's own optimizers, such as its Adafactor.

  Unlike `optax_optimizer`'s they count steps from those of the base.

  Args:
    rules: as in `optim.Partition`.
    module: the network whose parameters are meant.

  Raises:
    ValueError: for a regular expression that matches no parameter.
  """
  partition = optim.Partition([(x, optax.identity()) for x, _ in rules])
  labels = partition.labels(t5.param_shapes(module))

  def traversal(rule: int) -> traverse_util.ModelParamTraversal:
    return traverse_util.ModelParamTraversal(
      lambda path, _: labels.get(path.removeprefix("/")) == rule
    )

  return optimizers.MultiOptimizer(
    [(traversal(i), optimizer) for i, (_, optimizer) in enumerate(rules)]
  )


def _replicated(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda _: None, tree)


def _factored_axes(state: optax.FactoredState, axes: PyTree) -> PyTree:
  """Names the axes of a second moment: the parameter's, if it is not factored.

  The factors are vectors, small enough to be everywhere; what is not used has
  the shape [1].
  """

  def whole(param_axes: Any, v: Any) -> Any:
    if isinstance(v, optax.MaskedNode):
      return v
    return None if v.shape == (1,) else param_axes

  return optax.FactoredState(
    count=None,
    v_row=_replicated(state.v_row),
    v_col=_replicated(state.v_col),
    v=jax.tree.map(whole, axes, state.v),
  )


def _injected_axes(
  state: optax.InjectStatefulHyperparamsState, axes: PyTree
) -> PyTree:
  rules = optimizers.OptaxStatePartitionRules
  return optax.InjectStatefulHyperparamsState(
    count=None,
    hyperparams=_replicated(state.hyperparams),
    hyperparams_states=_replicated(state.hyperparams_states),
    inner_state=rules.derive_optax_logical_axes(state.inner_state, axes),
  )


# T5X shards the state of an optax optimizer by such rules, a list that it says
# to add to; it has none for the state of `optim.adafactor`.
optimizers.OptaxStatePartitionRules._RULES.update(
  {
    optax.FactoredState: _factored_axes,
    optax.InjectStatefulHyperparamsState: _injected_axes,
  }
)


class TrainStateInitializer(NamedTuple):
  """What T5X's programs use of a `t5x.utils.TrainStateInitializer`.

  Attributes:
    global_train_state_shape: shapes and dtypes of a train state.
    train_state_axes: its mesh axes.
    from_scratch: draws a train state with a JAX key.
  """

  global_train_state_shape: train_state.TrainState
  train_state_axes: train_state.TrainState
  from_scratch: Callable[[Array], train_state.TrainState]


def train_state_initializer(
  *,
  init_fn: Callable[..., Any],
  input_shapes: Mapping[str, Sequence[int]],
  input_types: Mapping[str, Any] | None = None,
  initial_prompt: prompt_init.PromptInit,
  checkpoint_path: str | None,
  seed: int = 0,
  **kwargs: Any,
) -> TrainStateInitializer:
  """Has T5X start the prompt as `initial_prompt` says.

  T5X fills in what a base lacks (`fallback_to_scratch`) from a network that it
  draws for that; this puts the prompt into it. Goes where T5X asks for a
  `train_state_initializer_cls`.

  Args:
    init_fn: `get_initial_variables` of T5X's model.
    input_shapes: of the features of a batch.
    input_types: their dtypes; t5x.eval does not say them, all are int32.
    initial_prompt: an initialiser of `prompt_init`.
    checkpoint_path: where the base's embeddings are; None for those drawn.
    seed: of the prompt; equal seeds give the prompt of `prompt_tuning.train`.
    **kwargs: the other arguments of T5X's initializer.
  """
  base = utils.TrainStateInitializer(
    init_fn=init_fn,
    input_shapes=input_shapes,
    input_types=input_types or dict.fromkeys(input_shapes, jnp.int32),
    **kwargs,
  )
  model: models.EncoderDecoderModel = init_fn.__self__  # type: ignore[attr-defined]

  def from_scratch(rng: Array) -> train_state.TrainState:
    state = base.from_scratch(rng)
    params = traverse_util.flatten_dict(flax.core.unfreeze(state.params))
    if checkpoint_path is None:
      table = params[_EMBEDDING]
    else:
      table = _read_table(checkpoint_path)
    prompt = initial_prompt(
      jax.random.fold_in(jax.random.key(seed), 1),  # As prompt_tuning.train.
      model.module.prompt.length,
      table,
      model.input_vocabulary.encode,
    )
    drawn = params[_PROMPT]
    params[_PROMPT] = jax.device_put(np.asarray(prompt), drawn.sharding)
    nested = traverse_util.unflatten_dict(params)
    return state.replace_params(flax.core.freeze(nested))

  return TrainStateInitializer(
    base.global_train_state_shape, base.train_state_axes, from_scratch
  )


def _read_table(checkpoint_path: str) -> Float[Array, "V D"]:
  """Reads the embeddings of a base.

  Raises:
    ValueError: if it has none.
  """
  name = "/".join(_EMBEDDING)
  found = open_checkpoint(checkpoint_path).leaves
  if name not in found:
    raise ValueError(f"{checkpoint_path} has no {name}: it is no T5")
  leaf = found[name]
  region = leaves.whole(leaf.shape)
  return jnp.asarray(leaves.read(leaf, region, np.dtype(np.float32)))


def save_prompt(
  state_dict: Mapping[str, Any], parameter_infos: PyTree, *, model_dir: str
) -> tuple[Mapping[str, Any], PyTree]:
  """Writes the prompt beside a checkpoint that T5X is about to write.

  To `numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt`, as the
  original does. A `SaveCheckpointConfig.state_transformation_fns` of T5X, which
  changes nothing.

  Args:
    state_dict: T5X's state.
    parameter_infos: T5X's, returned as they are.
    model_dir: the folder of T5X's checkpoints, also one of a bucket.
  """
  if jax.process_index() == 0:
    step = int(state_dict["state"]["step"])
    prompt = functools.reduce(
      lambda tree, key: tree[key], _PROMPT, state_dict["target"]
    )
    folder = f"{model_dir}/numpy_checkpoints/checkpoint_{step}"
    path = f"{folder}/{'.'.join(_PROMPT)}"
    prompt_files.save(path, np.asarray(prompt), {})
  return state_dict, parameter_infos


def with_vocabulary(
  name: str, *, module: str | None, vocabulary: seqio.Vocabulary
) -> str:
  """Registers a task or mixture anew, with another vocabulary than its own.

  T5X looks tasks up by name, so that the registry itself has to change.

  Args:
    name: of the task or mixture; the tasks of a mixture are mixed by their
      rates, whatever its own way of sampling.
    module: the module whose import registers it, None if it is registered.
    vocabulary: of all its features.

  Returns:
    The name.
  """
  if module is not None:
    importlib.import_module(module)
  provider = seqio.get_mixture_or_task(name)
  for task in seqio.get_subtasks(provider):
    seqio.TaskRegistry.remove(task.name)
    changed = data.with_vocabulary(task, vocabulary)
    seqio.TaskRegistry.add_provider(task.name, changed)
  if isinstance(provider, seqio.Mixture):
    rates = [(x.name, provider.get_rate(x)) for x in provider.tasks]
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, rates)
  return name
