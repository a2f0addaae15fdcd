"""A published language model, whatever file it lies in: checked whole before anything is allocated, then read part by part."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from gr2_jax.errors import UserError
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import OUTPUT, Family, Tensor
from gr2_jax.models.transformer import Decoder, abstract_boxed
from gr2_jax.training.mesh import state_shardings

Shape = tuple[int, ...]
TOKEN_TABLES = (("embedding",), ("output",))

_BLOCK_BYTES = 32 << 20  # that are read at once of a tensor that no layer has, an embedding of gigabytes
_ALIGNMENT = 64


class PublishedError(UserError):
  """A file or folder that holds no model that can be read; the message names file, tensor and remedy."""


@dataclasses.dataclass(frozen=True)
class Published:
  """A checked model at `path`: its family and shape, and all that its config.json says, or would say; `read(name, index)` gives a part of
  one of its `tensors` as it is published.
  """

  path: pathlib.Path
  family: Family
  config: ModelConfig
  raw: Mapping[str, Any]
  read: Callable[[str, tuple[slice, ...]], np.ndarray]
  tensors: Mapping[str, jax.ShapeDtypeStruct]


def config_json(family: Family, config: ModelConfig) -> dict[str, Any]:
  """What config.json says of a model's shape."""
  return {"architectures": [family.architecture], "model_type": family.model_type} | family.write(config)


def tensor_names(family: Family, config: ModelConfig) -> Iterator[tuple[str, Tensor, int | None]]:
  """(published name, the parameter, its layer if any) of every tensor of a model."""
  for name, tensor in family.once.items():
    yield name, tensor, None
  if not config.tie_embedding:
    yield OUTPUT, Tensor(("output",)), None
  for layer in range(config.num_layers):
    for name, tensor in family.layers.items():
      yield f"model.layers.{layer}.{name}", Tensor(("layers", *tensor.path), tensor.inputs), layer


def check_tensors(path: pathlib.Path, family: Family, config: ModelConfig, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Raises PublishedError unless the tensors of a file or folder are those of the model, one for one and each of its shape."""
  expected = {name: (tensor, layer) for name, tensor, layer in tensor_names(family, config)}
  missing, more = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
  if missing:
    raise PublishedError(f"{path}: {len(missing)} tensors are missing, the first {missing[0]}; fetch the model again")
  if more:
    raise PublishedError(f"{path}: {len(more)} tensors belong to no parameter, the first {more[0]}; it is another model than it says")
  abstract = nn.unbox(abstract_boxed(Decoder(config)))
  for name, (tensor, layer) in expected.items():
    found, wanted = tensors[name].shape, published_shape(parameter_at(abstract, tensor.path).shape, tensor, layer)
    if found != wanted:
      raise PublishedError(f"{path}: {name} has the shape {found}, its config makes it {wanted}; they are of different models")


def load_published(published: Published, config: ModelConfig, mesh: Mesh) -> Any:
  """The parameters on the mesh, in `config.param_dtype`; `config`: the published one, with types and remat of one's own."""
  boxed = abstract_boxed(Decoder(config))
  shardings = state_shardings(boxed, mesh)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)
  return read_parameters(published, abstract)


def read_parameters(published: Published, abstract: Any) -> Any:
  """The parameters, each array of the shape, type and sharding that `abstract` gives it.

  Each device's part of each array is read from the files and placed by itself, so that no more than a part is held beside what is placed.
  Token tables may be longer than the published ones: their rows behind are 0 (see `fill_rows`). Raises PublishedError for shorter ones.
  """
  rows = abstract["embedding"].shape[0]
  if rows < published.config.vocab_size:
    raise PublishedError(
      f"{published.path}: the model has {published.config.vocab_size} token rows, of which {rows} would be kept; use the vocabulary of its "
      "own tokenizer"
    )
  sources: dict[tuple[str, ...], list[tuple[str, Tensor]]] = {}
  for name, tensor, _ in tensor_names(published.family, published.config):
    sources.setdefault(tensor.path, []).append((name, tensor))

  def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    names = sources[tuple(key.key for key in path)]
    devices: dict[Any, list[jax.Device]] = {}  # by the part that they hold
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
      devices.setdefault(tuple(one.indices(size)[:2] for one, size in zip(index, leaf.shape, strict=True)), []).append(device)
    placed = []
    for limits, holders in devices.items():
      part = _read_whole_part(published, names, tuple(slice(*limit) for limit in limits), leaf)
      placed += [jax.device_put(part, device) for device in holders]
      jax.block_until_ready(placed)  # so that the next part is not read while this one is still held
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, placed)

  return jax.tree_util.tree_map_with_path(place, abstract)


def fill_rows(params: Any, first: int, like: Sequence[Sequence[int]], key: jax.Array) -> Any:
  """The parameters with new rows from `first` on of the token tables, drawn about the mean of those before with a tenth of their spread.

  `like`: of the first of these rows the known tokens whose mean they are drawn about instead, none for the mean of all. So a new token says
  at first what its name says, or what an average token says, and no two are the same. The arrays given are used up.
  """
  known = [token for tokens in like for token in tokens]
  owner = [row for row, tokens in enumerate(like) for _ in tokens]
  counts = np.array([len(tokens) for tokens in like], np.float32)[:, None]

  @functools.partial(jax.jit, donate_argnums=0)
  def fill(table: jax.Array, key: jax.Array) -> jax.Array:
    old = table[:first].astype(jnp.float32)
    mean, spread = old.mean(axis=0), old.std(axis=0)
    new = mean + 0.1 * spread * jax.random.normal(key, (len(table) - first, table.shape[1]))
    if known:
      sums = jax.ops.segment_sum(old[jnp.array(known)], jnp.array(owner), len(like))
      new = new.at[: len(like)].add(jnp.where(counts > 0, sums / jnp.maximum(counts, 1) - mean, 0))
    return table.at[first:].set(new.astype(table.dtype))

  keys = dict(zip(TOKEN_TABLES, jax.random.split(key, len(TOKEN_TABLES)), strict=True))
  filled = {path[0]: fill(params[path[0]], keys[path]) for path in TOKEN_TABLES if path[0] in params}
  return {**params, **filled}


def _read_whole_part(
  published: Published, names: Sequence[tuple[str, Tensor]], index: tuple[slice, ...], leaf: jax.ShapeDtypeStruct
) -> np.ndarray:
  """The part of a parameter at `index`, whose published tensors are `names`: one of each layer, or one."""
  part = _empty(_part_shape(index, leaf.shape), leaf.dtype)
  start, stop, _ = index[0].indices(leaf.shape[0])
  if names[0][1].path[0] == "layers":
    for row, layer in enumerate(range(start, stop)):
      part[row] = _read_part(published, *names[layer], index[1:], leaf.shape[1:])
    return part
  known = min(stop, published.config.vocab_size) if names[0][1].path in TOKEN_TABLES else stop
  part[max(known - start, 0) :] = 0  # of tokens that are added
  rows = max(1, _BLOCK_BYTES // max(1, part[:1].nbytes))
  for first in range(start, known, rows):
    last = min(first + rows, known)
    part[first - start : last - start] = _read_part(published, *names[0], (slice(first, last), *index[1:]), leaf.shape)
  return part


def _empty(shape: Shape, dtype: Any) -> np.ndarray:
  """An array that begins where JAX wants it: on a CPU it takes such a one as it is, and copies any other."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def parameter_at(tree: Any, path: Sequence[str]) -> Any:
  """What lies at a path of nested dicts."""
  for name in path:
    tree = tree[name]
  return tree


def published_shape(shape: Sequence[int], tensor: Tensor, layer: int | None) -> tuple[int, ...]:
  """The shape in which a parameter `shape` (of all layers, or of none) is published."""
  own = tuple(shape) if layer is None else tuple(shape)[1:]
  if not tensor.inputs:
    return own
  return int(np.prod(own[tensor.inputs :])), int(np.prod(own[: tensor.inputs]))


def _read_part(published: Published, name: str, tensor: Tensor, index: tuple[slice, ...], shape: Sequence[int]) -> np.ndarray:
  """The part of a parameter `shape` (of one layer) at `index`."""
  if not tensor.inputs:
    return published.read(name, index)
  # The outermost axes of inputs and of outputs are what a mesh cuts; within them parts lie behind each other.
  inputs, outputs = tuple(shape[: tensor.inputs]), tuple(shape[tensor.inputs :])
  columns, rows = _flat_range(index[: tensor.inputs], inputs), _flat_range(index[tensor.inputs :], outputs)
  return published.read(name, (rows, columns)).T.reshape(_part_shape(index, shape))


def _part_shape(index: tuple[slice, ...], shape: Sequence[int]) -> Shape:
  """The shape of the part of an array at slices of it."""
  return tuple(len(range(*one.indices(size))) for one, size in zip(index, shape, strict=True))


def _flat_range(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
  """The range of the flattened axes that a slice of the first one takes; the others are whole."""
  start, stop, _ = index[0].indices(shape[0])
  inner = int(np.prod(shape[1:]))
  whole = all(one.indices(size) == (0, size, 1) for one, size in zip(index[1:], shape[1:], strict=True))
  assert whole, "a mesh cuts heads, and not within them"
  return slice(start * inner, stop * inner)
