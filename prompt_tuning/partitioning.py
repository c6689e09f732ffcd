# SPDX-License-Identifier: Apache-2.0
"""The mesh of devices, and which part of an array each of them holds.

The mesh has two axes. Along `data` the rows of a batch are divided and, if
wanted, the parameters; along `model` the heads, the MLP and the vocabulary.
Rules map the logical axes of the parameters to these, as in T5X. All devices of
all processes make one mesh, and each process computes its part of one program.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import TypeVar

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Num, PyTree, Shaped
import numpy as np

from prompt_tuning import t5

AXES = ("data", "model")

# Of the host before, of the devices after it has been placed.
Rows = Num[np.ndarray, "..."] | Num[Array, "..."]
Batch = Mapping[str, Rows]
_MeshAxes = tuple[str, ...]
_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices share a model; the names are T5X's where it has them.

  Attributes:
    num_partitions: how many devices share a copy of the model, the size of the
      mesh axis `model`. All others make the axis `data`.
    model_parallel_submesh: the same as a box of a TPU's torus, `(x, y, z,
      cores of a chip)`, whose devices then share a copy. Where devices have no
      coordinates only its product counts.
    parameter_sharding: divide the parameters along `data` too (as FSDP, or
      T5X's `parameter_partitioning_dims=2`). They are gathered layer by layer.
    prompt_sharding: divide the prompt and its optimizer state over all devices.

  Raises:
    ValueError: for a number below 1, or two that contradict each other.
  """

  num_partitions: int = 1
  model_parallel_submesh: Sequence[int] | None = None
  parameter_sharding: bool = False
  prompt_sharding: bool = False

  def __post_init__(self) -> None:
    submesh = self.model_parallel_submesh
    if self.num_partitions < 1:
      raise ValueError(
        f"NUM_PARTITIONS={self.num_partitions} must be 1 or more"
      )
    if submesh is None:
      return
    if len(submesh) != 4 or min(submesh) < 1:
      raise ValueError(
        f"MODEL_PARALLEL_SUBMESH={submesh} must be four numbers from 1 on, x,"
        " y, z and the cores of a chip: (2, 2, 1, 1) for four chips of a v4"
      )
    if self.num_partitions not in (1, math.prod(submesh)):
      raise ValueError(
        f"NUM_PARTITIONS={self.num_partitions} contradicts"
        f" MODEL_PARALLEL_SUBMESH={submesh} of {math.prod(submesh)} devices:"
        " set one of them"
      )

  @property
  def model_size(self) -> int:
    """How many devices share a copy of the model."""
    return math.prod(self.model_parallel_submesh or (self.num_partitions,))


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Makes the mesh of some devices, by default of all.

  Raises:
    ValueError: if copies of the model do not fill the devices.
  """
  found = list(jax.devices() if devices is None else devices)
  size = config.model_size
  if len(found) % size:
    raise ValueError(
      f"{len(found)} devices cannot be divided into groups of {size}: choose"
      f" NUM_PARTITIONS or MODEL_PARALLEL_SUBMESH to divide {len(found)}"
    )
  types = (AxisType.Auto, AxisType.Auto)
  submesh = config.model_parallel_submesh
  if submesh is not None and hasattr(found[0], "coords"):
    places = [(*x.coords, x.core_on_chip) for x in found]
    boxes = np.array(found, object)[_boxes(places, submesh)]
    return Mesh(boxes, AXES, axis_types=types)
  shape = (len(found) // size, size)
  return jax.make_mesh(shape, AXES, types, devices=found)


def _boxes(
  places: Sequence[tuple[int, ...]], submesh: Sequence[int]
) -> Int[np.ndarray, "N M"]:
  """Divides the torus of a TPU into boxes; returns the devices of each."""
  bounds = [max(axis) + 1 for axis in zip(*places, strict=True)]
  if any(bound % size for bound, size in zip(bounds, submesh, strict=True)):
    raise ValueError(
      f"MODEL_PARALLEL_SUBMESH={tuple(submesh)} does not fill the torus of"
      f" {tuple(bounds)}: each number must divide the torus's"
    )
  torus = np.zeros(bounds, int)
  for i, place in enumerate(places):
    torus[place] = i
  split = np.reshape(
    torus,
    [
      x
      for b, size in zip(bounds, submesh, strict=True)
      for x in (b // size, size)
    ],
  )
  boxes = split.transpose(0, 2, 4, 6, 1, 3, 5, 7)
  return boxes.reshape(-1, math.prod(submesh))


def axis_rules(config: MeshConfig) -> dict[str, _MeshAxes]:
  """Maps logical axes to mesh axes; those of T5X but for the prompt's."""
  return {
    "batch": ("data",),
    "embed": ("data",) if config.parameter_sharding else (),
    "heads": ("model",),
    "joined_kv": ("model",),
    "mlp": ("model",),
    "prompt": (),
    "prompt_embed": AXES if config.prompt_sharding else (),
    "relpos_buckets": (),
    "vocab": ("model",),
  }


def param_shardings(
  names: Iterable[str], model: t5.Transformer, config: MeshConfig
) -> dict[str, NamedSharding]:
  """Places parameters on the current mesh, by the rules.

  Args:
    names: paths of parameters.
    model: the network that they belong to.
    config: which rules.

  Raises:
    ValueError: if an axis cannot be divided into equal parts.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.size == 1:  # Spares a look at the network.
    return dict.fromkeys(names, NamedSharding(mesh, PartitionSpec()))
  shapes, axes = t5.param_shapes(model), t5.param_axes(model)
  rules = axis_rules(config)
  result = {}
  for name in names:
    spec = [rules[axis] for axis in axes[name]]
    for size, axis, over in zip(
      shapes[name].shape, axes[name], spec, strict=True
    ):
      _check_divides(name, size, axis, math.prod(mesh.shape[a] for a in over))
    result[name] = NamedSharding(mesh, PartitionSpec(*spec))
  return result


def _check_divides(name: str, size: int, axis: str, num_parts: int) -> None:
  """Refuses an axis that cannot be divided into equal parts."""
  if size % num_parts:
    macro = {
      "embed": "PARAMETER_SHARDING=False",
      "prompt_embed": "PROMPT_SHARDING=False",
    }.get(axis, f"NUM_PARTITIONS to divide {size}")
    raise ValueError(
      f"{name}: its axis {axis} of {size} cannot be divided among"
      f" {num_parts} devices: set {macro}"
    )


def at(
  tree: PyTree, shardings: PyTree[NamedSharding]
) -> PyTree[jax.ShapeDtypeStruct]:
  """Describes arrays, or what describes them, as being where they belong."""
  describe = lambda x, sharding: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=sharding
  )
  return jax.tree.map(describe, tree, shardings)


def placed(
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  model: t5.Transformer,
  config: MeshConfig,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Describes parameters with their places; see `param_shardings`.

  As they are, where there is no current mesh.
  """
  if jax.sharding.get_mesh().empty:
    return dict(shapes)
  return at(dict(shapes), param_shardings(shapes, model, config))


def num_row_parts() -> int:
  """Returns among how many devices the rows of a batch are divided."""
  return jax.sharding.get_mesh().shape.get("data", 1)


def check_batch_size(batch_size: int, *, num_microbatches: int = 1) -> None:
  """Refuses a batch that the mesh axis `data` cannot share equally."""
  num_parts = num_row_parts() * num_microbatches
  if batch_size % num_parts:
    raise ValueError(
      f"BATCH_SIZE={batch_size} must be divisible by {num_parts}:"
      f" {num_row_parts()} parts of the mesh axis data times"
      f" {num_microbatches} microbatches"
    )


def state_shardings(
  state: PyTree, model: t5.Transformer, config: MeshConfig
) -> PyTree[NamedSharding]:
  """Places a state, on the current mesh, as its parameters are.

  An array under the name of a parameter is divided as that, whatever axes it
  has in front; Adafactor's factored second moments lack one axis. All else is
  on every device.

  Args:
    state: parameters and the state of their optimizer, of one trial or more.
    model: the network that they belong to.
    config: which rules.

  Returns:
    A sharding for each array.
  """
  mesh = jax.sharding.get_mesh()
  everywhere = NamedSharding(mesh, PartitionSpec())
  if mesh.size == 1:
    return jax.tree.map(lambda _: everywhere, state)
  described = t5.param_shapes(model)
  shardings = param_shardings(described, model, config)

  def choose(
    path: tuple, leaf: Shaped[Array, "..."] | jax.ShapeDtypeStruct
  ) -> NamedSharding:
    keys = [x.key for x in path if isinstance(x, jax.tree_util.DictKey)]
    fields = [x.name for x in path if isinstance(x, jax.tree_util.GetAttrKey)]
    for name in described.keys() & set(keys):
      shape, spec = described[name].shape, shardings[name].spec
      kept = _kept_axes(shape, fields)
      front = leaf.ndim - len(kept)
      # Not so the empty array of a moment that is factored, or that is not.
      if leaf.shape[max(front, 0) :] == tuple(shape[i] for i in kept):
        parts = [*[None] * front, *[spec[i] for i in kept]]
        return NamedSharding(mesh, PartitionSpec(*parts))
    return everywhere

  return jax.tree.map_with_path(choose, state)


def _kept_axes(shape: Sequence[int], fields: Sequence[str]) -> list[int]:
  """Returns the axes of a parameter that a field of the optimizer has.

  Of the two longest, as optax chooses them, a row of Adafactor lacks the
  second, a column the first.
  """
  axes = list(range(len(shape)))
  if "v_row" in fields and len(shape) > 1:
    axes.remove(int(np.argsort(shape)[-1]))
  elif "v_col" in fields and len(shape) > 1:
    axes.remove(int(np.argsort(shape)[-2]))
  return axes


def place(tree: _Tree, shardings: PyTree[NamedSharding]) -> _Tree:
  """Moves arrays of the current mesh to where they belong."""
  return jax.jit(lambda x: x, out_shardings=shardings)(tree)


def place_batch(batch: Batch, *, row_axis: int = 0) -> Batch:
  """Gives each device of the current mesh its rows of a batch.

  Args:
    batch: all rows, which every process has.
    row_axis: their axis: 1 behind an axis of trials.
  """
  return {name: place_rows(x, row_axis=row_axis) for name, x in batch.items()}


def place_rows(x: Rows, *, row_axis: int = 0) -> Rows:
  """Gives each device its rows of an array; see `place_batch`."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty or mesh.size == 1:  # The call of a program moves it faster.
    return x
  sharding = NamedSharding(mesh, PartitionSpec(*[None] * row_axis, "data"))
  return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


def gather(tree: _Tree) -> _Tree:
  """Makes arrays readable for every process, all of which call this.

  A process alone can read all of its devices as it is.
  """
  leaves, structure = jax.tree.flatten(tree)
  parts = [i for i, x in enumerate(leaves) if not x.is_fully_replicated]
  if jax.process_count() == 1 or not parts:
    return tree
  everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
  whole = place([leaves[i] for i in parts], [everywhere] * len(parts))
  for i, x in zip(parts, whole, strict=True):
    leaves[i] = x
  return jax.tree.unflatten(structure, leaves)


@contextlib.contextmanager
def use(config: MeshConfig) -> Iterator[Mesh]:
  """Makes the mesh of all devices the current one."""
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    yield mesh


@contextlib.contextmanager
def gathered_parameters() -> Iterator[None]:
  """Lets layers gather, over `data`, a parameter that they are about to use.

  Without, XLA sends activations around instead, at many times the cost. It is
  `flax.linen.partitioning.param_with_axes` that reads these rules.
  """
  rules = []
  if jax.sharding.get_mesh().size > 1:
    rules = list(axis_rules(MeshConfig()).items())
  with nn.logical_axis_rules([(name, axes or None) for name, axes in rules]):
    yield
