"""Folders as Hugging Face lays them out: config.json and safetensors, in one file or several, read and written."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  # numpy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gr2_jax.files import replacing, write_json
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import FAMILIES, OUTPUT, Family, Tensor
from gr2_jax.models.published import Published, PublishedError, Shape, check_tensors, parameter_at, tensor_names

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 5 << 30  # of a written file
_DTYPES = ("F32", "F16", "BF16")


def open_folder(folder: str | os.PathLike[str]) -> Published:
  """The model in a folder; raises PublishedError for one that is missing, cut short, of an unknown family, or with other tensors."""
  folder = pathlib.Path(folder)
  raw = _read_json(folder / "config.json", "give a folder with config.json and *.safetensors")
  family, config = parse_config(raw, folder / "config.json")
  files = _find_tensors(folder)
  if config.tie_embedding:
    files.pop(OUTPUT, None)  # some write the embedding twice
  check_tensors(folder, family, config, _read_shapes(files))

  opened = functools.cache(_open)  # a file's list of tensors is read once, not for each of them

  def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
    part: np.ndarray = opened(files[name]).get_slice(name)[index]
    return part

  return Published(folder, family, config, read)


def write_folder(folder: str | os.PathLike[str], family: Family, config: ModelConfig, params: Any, extra: Mapping[str, Any]) -> None:
  """Writes config.json (`extra` over what the shape says) and safetensors, in files of at most 5 GB, in the parameters' own types."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  parts: list[dict[str, Any]] = [{}]  # of each file: what it holds by name, still where the parameters lie
  sizes = [0]
  for name, tensor, layer in tensor_names(family, config):
    leaf = parameter_at(params, tensor.path)
    size = leaf.nbytes if layer is None else leaf.nbytes // config.num_layers
    if parts[-1] and sizes[-1] + size > _SHARD_BYTES:
      parts.append({})
      sizes.append(0)
    parts[-1][name], sizes[-1] = (leaf, tensor, layer), sizes[-1] + size
  names = [_SINGLE] if len(parts) == 1 else [f"model-{number:05d}.safetensors" for number in range(1, len(parts) + 1)]
  for file, part in zip(names, parts, strict=True):
    with replacing(folder / file) as partial:
      save_file({name: _to_published(*of) for name, of in part.items()}, partial, metadata={"format": "pt"})
  if len(parts) > 1:
    places = {name: file for file, part in zip(names, parts, strict=True) for name in part}
    write_json(folder / _INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": places})
  head = {"architectures": [family.architecture], "model_type": family.model_type}
  write_json(folder / "config.json", head | family.write(config) | dict(extra))


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


def _read_shapes(files: Mapping[str, pathlib.Path]) -> dict[str, Shape]:
  """Name -> shape of the tensors, of which nothing else is read; raises PublishedError for a type that is not."""
  shapes = {}
  for path in sorted(set(files.values())):
    with _open(path) as file:
      held = set(file.keys())
      for name in (name for name, of in files.items() if of == path):
        if name not in held:
          raise PublishedError(f"{path}: {name} is not in it, and the index says so; fetch that file again")
        part = file.get_slice(name)
        if (kind := part.get_dtype()) not in _DTYPES:
          raise PublishedError(f"{path}: {name} is held as {kind}, which is not read; give a model in {', '.join(_DTYPES)}")
        shapes[name] = tuple(part.get_shape())
  return shapes


def _open(path: pathlib.Path) -> Any:
  try:
    return safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as error:
    raise PublishedError(f"{path}: is damaged or cut short ({error}); fetch that file again") from None


def _to_published(leaf: Any, tensor: Tensor, layer: int | None) -> np.ndarray:
  """A parameter, or one layer of it, as it is published."""
  array = np.asarray(leaf if layer is None else leaf[layer])
  if not tensor.inputs:
    return np.ascontiguousarray(array)
  return np.ascontiguousarray(array.reshape(int(np.prod(array.shape[: tensor.inputs])), -1).T)


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
