"""Published language models in and out: a folder with config.json and safetensors, checked whole before anything is allocated."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes  # noqa: F401  # numpy learns bfloat16 from it
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gr2_jax.errors import UserError
from gr2_jax.files import replacing, write_json
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import FAMILIES, OUTPUT, Family, Tensor
from gr2_jax.models.transformer import Decoder, init_boxed
from gr2_jax.training.mesh import state_shardings

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 5 << 30  # of a written file
_DTYPES = ("F32", "F16", "BF16")


class PublishedError(UserError):
  """A folder that holds no model that can be read; the message names file, tensor and remedy."""


@dataclasses.dataclass(frozen=True)
class Published:
  """A checked folder: its family, its shape, the whole config.json, and in which file each tensor lies."""

  folder: pathlib.Path
  family: Family
  config: ModelConfig
  raw: Mapping[str, Any]
  files: Mapping[str, pathlib.Path]


def tensor_names(family: Family, config: ModelConfig) -> Iterator[tuple[str, Tensor, int | None]]:
  """(published name, the parameter, its layer if any) of every tensor of a model."""
  for name, tensor in family.once.items():
    yield name, tensor, None
  if not config.tie_embedding:
    yield OUTPUT, Tensor(("output",)), None
  for layer in range(config.num_layers):
    for name, tensor in family.layers.items():
      yield f"model.layers.{layer}.{name}", Tensor(("layers", *tensor.path), tensor.inputs), layer


def open_published(folder: str | os.PathLike[str]) -> Published:
  """The model in a folder; raises PublishedError for one that is missing, cut short, of an unknown family, or with other tensors."""
  folder = pathlib.Path(folder)
  raw = _read_json(folder / "config.json", "give a folder with config.json and *.safetensors")
  family, config = _read_config(folder, raw)
  files = _find_tensors(folder)
  expected = {name: (tensor, layer) for name, tensor, layer in tensor_names(family, config)}
  if config.tie_embedding:
    files = {name: file for name, file in files.items() if name != OUTPUT}  # some write the embedding twice
  _check_names(folder, expected, files)
  abstract = _abstract_params(config)
  for name, (shape, kind) in _read_headers(files).items():
    tensor, layer = expected[name]
    if kind not in _DTYPES:
      raise PublishedError(f"{files[name]}: {name} is held as {kind}, which is not read; give a model in {', '.join(_DTYPES)}")
    if shape != (wanted := _published_shape(_at(abstract, tensor.path).shape, tensor, layer)):
      raise PublishedError(f"{files[name]}: {name} has the shape {shape}, config.json makes it {wanted}; they are of different models")
  return Published(folder, family, config, raw, files)


def load_published(published: Published, config: ModelConfig, mesh: Mesh) -> Any:
  """The parameters as a pytree on the mesh, in `config.param_dtype`; `config`: the published one, with types and remat of one's own.

  Each device's part of each array is read from the files by itself, so that no more than a part is held beside what is placed.
  """
  boxed = jax.eval_shape(lambda key: init_boxed(Decoder(config), key), jax.random.key(0))
  shardings, abstract = state_shardings(boxed, mesh), nn.unbox(boxed)
  sources: dict[tuple[str, ...], list[tuple[str, Tensor]]] = {}
  for name, tensor, _ in tensor_names(published.family, config):
    sources.setdefault(tensor.path, []).append((name, tensor))

  def place(path: Any, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
    names = sources[tuple(key.key for key in path)]

    def read(index: Any) -> np.ndarray:
      dtype, stacked = np.dtype(leaf.dtype), names[0][1].path[0] == "layers"
      if not stacked:
        return _read_part(published, *names[0], index, leaf.shape).astype(dtype)
      chosen = range(*index[0].indices(leaf.shape[0]))
      shape = tuple(len(range(*one.indices(size))) for one, size in zip(index, leaf.shape, strict=True))
      part = np.empty(shape, dtype)
      for place, layer in enumerate(chosen):
        part[place] = _read_part(published, *names[layer], index[1:], leaf.shape[1:])
      return part

    return jax.make_array_from_callback(leaf.shape, sharding, read)

  return jax.tree_util.tree_map_with_path(place, abstract, shardings)


def write_published(folder: str | os.PathLike[str], family: Family, config: ModelConfig, params: Any, extra: Mapping[str, Any]) -> None:
  """Writes config.json (`extra` over what the shape says) and safetensors, in files of at most 5 GB, in the parameters' own types."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files: list[dict[str, np.ndarray]] = [{}]
  for name, tensor, layer in tensor_names(family, config):
    leaf = _at(params, tensor.path)
    array = _to_published(np.asarray(leaf if layer is None else leaf[layer]), tensor)
    if files[-1] and sum(x.nbytes for x in files[-1].values()) + array.nbytes > _SHARD_BYTES:
      _write_part(folder, len(files), files[-1])
      files[-1] = dict.fromkeys(files[-1], np.empty(0))  # its names are kept for the index, not its values
      files.append({})
    files[-1][name] = array
  if len(files) == 1:
    with replacing(folder / _SINGLE) as partial:
      save_file(files[0], partial, metadata={"format": "pt"})
  else:
    _write_part(folder, len(files), files[-1])
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    places = {name: _part_name(number) for number, of in enumerate(files, 1) for name in of}
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})
  head = {"architectures": [family.architecture], "model_type": family.model_type}
  write_json(folder / "config.json", head | family.write(config) | dict(extra))


def _read_config(folder: pathlib.Path, raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
  path, known = folder / "config.json", ", ".join(family.architecture for family in FAMILIES.values())
  if "vision_config" in raw:
    raise PublishedError(f"{path}: is a model that reads images; give the text model alone ({known})")
  if "quantization_config" in raw:
    raise PublishedError(f"{path}: is quantised ({raw['quantization_config'].get('quant_method')}), which is not read; give its original")
  named = raw.get("architectures") or []
  family = next((family for family in FAMILIES.values() if family.architecture in named), None)
  if family is None:
    raise PublishedError(f"{path}: the architecture {', '.join(map(str, named)) or '(none)'} is not known; there are {known}")
  try:
    return family, family.read(raw)
  except KeyError as error:
    raise PublishedError(f"{path}: {error.args[0]} is missing; take the file from where the model was published") from None
  except (ValueError, TypeError) as error:
    raise PublishedError(f"{path}: {error}") from None


def _find_tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> file; raises PublishedError where a file is missing or cannot be opened."""
  if (folder / _INDEX).exists():
    places = _read_json(folder / _INDEX, "fetch it again").get("weight_map")
    if not isinstance(places, dict) or any(pathlib.Path(str(file)).name != file for file in places.values()):
      raise PublishedError(f"{folder / _INDEX}: its weight_map names no files of this folder; fetch it again")
    for file in sorted(set(places.values())):
      if not (folder / file).exists():
        raise PublishedError(f"{folder / file} is missing, and {_INDEX} names it; fetch that file too")
  elif not (folder / _SINGLE).exists():
    raise PublishedError(f"{folder}: has neither {_SINGLE} nor {_INDEX}; give a folder with the weights in safetensors")
  else:
    with _open(folder / _SINGLE) as file:
      places = dict.fromkeys(file.keys(), _SINGLE)
  return {name: folder / file for name, file in places.items()}


def _check_names(folder: pathlib.Path, expected: Mapping[str, Any], files: Mapping[str, Any]) -> None:
  missing, more = sorted(expected.keys() - files.keys()), sorted(files.keys() - expected.keys())
  if missing:
    raise PublishedError(f"{folder}: {len(missing)} tensors are missing, the first {missing[0]}; fetch the model again")
  if more:
    raise PublishedError(f"{folder}: {len(more)} tensors belong to no parameter, the first {more[0]}; it is another model than it says")


def _read_headers(files: Mapping[str, pathlib.Path]) -> dict[str, tuple[tuple[int, ...], str]]:
  """Name -> (shape, type) of the tensors, of which nothing else is read."""
  headers = {}
  for path in sorted(set(files.values())):
    with _open(path) as file:
      held = set(file.keys())
      for name in (name for name, of in files.items() if of == path):
        if name not in held:
          raise PublishedError(f"{path}: {name} is not in it, and the index says so; fetch that file again")
        part = file.get_slice(name)
        headers[name] = tuple(part.get_shape()), part.get_dtype()
  return headers


def _open(path: pathlib.Path) -> Any:
  try:
    return safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as error:
    raise PublishedError(f"{path}: is damaged or cut short ({error}); fetch that file again") from None


def _published_shape(shape: Sequence[int], tensor: Tensor, layer: int | None) -> tuple[int, ...]:
  own = tuple(shape) if layer is None else tuple(shape)[1:]
  if not tensor.inputs:
    return own
  return int(np.prod(own[tensor.inputs :])), int(np.prod(own[: tensor.inputs]))


def _to_published(array: np.ndarray, tensor: Tensor) -> np.ndarray:
  if not tensor.inputs:
    return np.ascontiguousarray(array)
  return np.ascontiguousarray(array.reshape(int(np.prod(array.shape[: tensor.inputs])), -1).T)


def _read_part(published: Published, name: str, tensor: Tensor, index: tuple[slice, ...], shape: Sequence[int]) -> np.ndarray:
  """The part of a parameter `shape` (of one layer) at `index`. Of a matrix whole rows or columns of heads are read, then cut."""
  with _open(published.files[name]) as file:
    if not tensor.inputs:
      return file.get_slice(name)[index]
    # The outermost axes of inputs and of outputs are what a mesh cuts; within them parts lie behind each other.
    inputs, outputs = tuple(shape[: tensor.inputs]), tuple(shape[tensor.inputs :])
    columns, rows = _flat_range(index[: tensor.inputs], inputs), _flat_range(index[tensor.inputs :], outputs)
    part = file.get_slice(name)[rows, columns].T
  counts = [len(range(*one.indices(size))) for one, size in zip(index, shape, strict=True)]
  return part.reshape(counts)


def _flat_range(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
  """The range of the flattened axes that a slice of the first one takes; the others are whole."""
  start, stop, _ = index[0].indices(shape[0])
  inner = int(np.prod(shape[1:]))
  whole = all(one.indices(size) == (0, size, 1) for one, size in zip(index[1:], shape[1:], strict=True))
  assert whole, "a mesh cuts heads, and not within them"
  return slice(start * inner, stop * inner)


def _abstract_params(config: ModelConfig) -> Any:
  return jax.eval_shape(lambda key: nn.unbox(init_boxed(Decoder(config), key)), jax.random.key(0))


def _at(tree: Any, path: Sequence[str]) -> Any:
  for name in path:
    tree = tree[name]
  return tree


def _read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise PublishedError(f"{path} is missing; {remedy}") from None
  except ValueError as error:
    raise PublishedError(f"{path}: is no JSON ({error}); {remedy}") from None
  if not isinstance(value, dict):
    raise PublishedError(f"{path}: holds no JSON object; {remedy}")
  return value


def _part_name(number: int) -> str:
  return f"model-{number:05d}.safetensors"


def _write_part(folder: pathlib.Path, number: int, tensors: Mapping[str, np.ndarray]) -> None:
  with replacing(folder / _part_name(number)) as partial:
    save_file(dict(tensors), partial, metadata={"format": "pt"})
