"""Folders as Hugging Face lays them out: config.json and safetensors, in one file or several, read and written."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  # numpy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError, safe_open

from gr2_jax.files import replacing, write_json
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import FAMILIES, OUTPUT, Family, Tensor
from gr2_jax.models.published import (
  Published,
  PublishedError,
  Shape,
  check_tensors,
  config_json,
  parameter_at,
  published_shape,
  tensor_names,
)

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 5 << 30  # of a written file
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors names them


@dataclasses.dataclass(frozen=True)
class Unwritten:
  """A tensor as it will be published, of which nothing is held before `read` is called."""

  shape: Shape
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes in the file."""
    return int(np.prod(self.shape)) * self.dtype.itemsize


def open_folder(folder: str | os.PathLike[str]) -> Published:
  """The model in a folder; raises PublishedError for one that is missing, cut short, of an unknown family, or with other tensors."""
  folder = pathlib.Path(folder)
  raw = read_json(folder / "config.json", "give a folder with config.json and *.safetensors")
  family, config = parse_config(raw, folder / "config.json")
  files = _find_tensors(folder)
  if config.tie_embedding:
    files.pop(OUTPUT, None)  # some write the embedding twice
  tensors = _read_headers(files)
  check_tensors(folder, family, config, tensors)

  opened = functools.cache(_open)  # a file's list of tensors is read once, not for each of them

  def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
    part: np.ndarray = opened(files[name]).get_slice(name)[index]
    return part

  return Published(folder, family, config, raw, read, tensors)


def write_folder(folder: str | os.PathLike[str], family: Family, config: ModelConfig, params: Any, extra: Mapping[str, Any]) -> None:
  """Writes config.json (`extra` over what the shape says) and safetensors, in files of at most 5 GB, in the parameters' own types."""
  write_tensors(folder, as_published(family, config, params))
  write_json(pathlib.Path(folder) / "config.json", config_json(family, config) | dict(extra))


def as_published(family: Family, config: ModelConfig, params: Any) -> dict[str, Unwritten]:
  """The parameters as tensors under their published names."""
  tensors = {}
  for name, tensor, layer in tensor_names(family, config):
    leaf = parameter_at(params, tensor.path)
    read = functools.partial(_to_published, leaf, tensor, layer)
    tensors[name] = Unwritten(published_shape(leaf.shape, tensor, layer), np.dtype(leaf.dtype), read)
  return tensors


def write_tensors(
  folder: str | os.PathLike[str], tensors: Mapping[str, Unwritten], written: Callable[[int], object] = lambda amount: None
) -> None:
  """Writes safetensors, in files of at most 5 GB, one tensor after the other; `written` hears how many bytes each had."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  parts: list[dict[str, Unwritten]] = [{}]  # what each file will hold
  for name, tensor in tensors.items():
    if parts[-1] and sum(other.nbytes for other in parts[-1].values()) + tensor.nbytes > _SHARD_BYTES:
      parts.append({})
    parts[-1][name] = tensor
  files = [_SINGLE] if len(parts) == 1 else [f"model-{number:05d}.safetensors" for number in range(1, len(parts) + 1)]
  for file, part in zip(files, parts, strict=True):
    _write_file(folder / file, part, written)
  if len(parts) > 1:
    total = sum(tensor.nbytes for tensor in tensors.values())
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_file(path: pathlib.Path, tensors: Mapping[str, Unwritten], written: Callable[[int], object]) -> None:
  """A safetensors file: the length of its header, the header in JSON, the tensors. The library's writer wants them all in memory."""
  kinds = {dtype: kind for kind, dtype in DTYPES.items()}
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, tensor in tensors.items():
    start, end = end, end + tensor.nbytes
    header[name] = {"dtype": kinds[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
  head = json.dumps(header).encode()
  head += b" " * (-len(head) % 8)  # so that tensors begin at whole words
  with replacing(path) as partial, open(partial, "wb") as file:
    file.write(struct.pack("<Q", len(head)) + head)
    for name, tensor in tensors.items():
      array = tensor.read()
      assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype), name
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
      written(tensor.nbytes)


def identify(folder: str | os.PathLike[str]) -> str:
  """A digest that tells one published model from another: of config.json, and of each file of tensors its name, size and first megabyte.

  A megabyte holds the list of the tensors and the first values; all of it would take minutes for a large model.
  """
  digest = hashlib.sha256((pathlib.Path(folder) / "config.json").read_bytes())
  for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
    digest.update(f"{path.name} {path.stat().st_size}".encode())
    with path.open("rb") as file:
      digest.update(file.read(1 << 20))
  return digest.hexdigest()


def parse_config(raw: Mapping[str, Any], path: pathlib.Path) -> tuple[Family, ModelConfig]:
  """Family and shape of a config.json, which lies at `path`; raises PublishedError for a model that is not read."""
  known = ", ".join(family.architecture for family in FAMILIES.values())
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
    places = read_json(folder / _INDEX, "fetch it again").get("weight_map")
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


def _read_headers(files: Mapping[str, pathlib.Path]) -> dict[str, jax.ShapeDtypeStruct]:
  """Name -> shape and type of the tensors, of which nothing else is read; raises PublishedError for a type that is not."""
  found = {}
  for path in sorted(set(files.values())):
    with _open(path) as file:
      held = set(file.keys())
      for name in (name for name, of in files.items() if of == path):
        if name not in held:
          raise PublishedError(f"{path}: {name} is not in it, and the index says so; fetch that file again")
        part = file.get_slice(name)
        if (kind := part.get_dtype()) not in DTYPES:
          raise PublishedError(f"{path}: {name} is held as {kind}, which is not read; give a model in {', '.join(DTYPES)}")
        found[name] = jax.ShapeDtypeStruct(tuple(part.get_shape()), np.dtype(DTYPES[kind]))
  return found


def _open(path: pathlib.Path) -> Any:
  try:
    return safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as error:
    raise PublishedError(f"{path}: is damaged or cut short ({error}); fetch that file again") from None


def _to_published(leaf: Any, tensor: Tensor, layer: int | None) -> np.ndarray:
  """A parameter, or one layer of it, as it is published."""
  array = np.asarray(leaf if layer is None else leaf[layer])
  return array.reshape(int(np.prod(array.shape[: tensor.inputs])), -1).T if tensor.inputs else array


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  """A JSON object; raises PublishedError, with the remedy, for a file that is missing or holds anything else."""
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise PublishedError(f"{path} is missing; {remedy}") from None
  except ValueError as error:
    raise PublishedError(f"{path}: is no JSON ({error}); {remedy}") from None
  if not isinstance(value, dict):
    raise PublishedError(f"{path}: holds no JSON object; {remedy}")
  return value
