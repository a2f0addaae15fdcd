"""Adapters as `peft` lays them out, written and read: adapter_config.json and adapter_model.safetensors, on a published base.

Rows of the token tables travel as peft's `trainable_token_indices` do: the rows alone, under the name `trainable_tokens_delta`, though they
take the place of the base's. The base must have its token tables in their full size.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  # numpy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gr2_jax.files import replacing, write_json
from gr2_jax.models.adapters import Lora, abstract_adapters
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import Family
from gr2_jax.models.hf_folders import read_json
from gr2_jax.models.published import PublishedError
from gr2_jax.models.transformer import Decoder

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_TABLES = {"embedding_rows": ("embed_tokens", "model.embed_tokens"), "output_rows": ("lm_head", "lm_head")}
# What peft computes otherwise where a config says more than this.
_PLAIN = {
  "peft_type": "LORA",
  "bias": "none",
  "fan_in_fan_out": False,
  "use_dora": False,
  "use_rslora": False,
  "lora_bias": False,
  "modules_to_save": None,
  "layers_to_transform": None,
  "layer_replication": None,
  "target_parameters": None,
  "rank_pattern": {},
  "alpha_pattern": {},
}


def write_adapters(folder: str | os.PathLike[str], family: Family, config: ModelConfig, lora: Lora, adapters: Any, base_name: str) -> None:
  """Writes adapters of a decoder for `peft`, in float32; `base_name`: the path or name of the folder that holds their base."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  modules, tensors = _modules_of(family), {}
  for target, factors in adapters["layers"].items():
    for layer in range(config.num_layers):
      a, b = (np.asarray(factors[name][layer], np.float32) for name in ("lora_a", "lora_b"))
      name = f"base_model.model.model.layers.{layer}.{modules[target]}"
      tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
      tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.reshape(lora.rank, -1).T)
  rows = {name: of for name, of in _TABLES.items() if name in adapters}
  for name, (_, module) in rows.items():
    tensors[f"base_model.model.{module}.token_adapter.trainable_tokens_delta"] = np.asarray(adapters[name], np.float32)
  with replacing(folder / _TENSORS) as partial:
    save_file(tensors, partial, metadata={"format": "pt"})
  last = list(range(config.vocab_size - lora.rows, config.vocab_size))
  about: dict[str, Any] = {
    **_PLAIN,
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_name,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "target_modules": [modules[target].rpartition(".")[2] for target in lora.targets],
    "trainable_token_indices": {module: last for module, _ in rows.values()} or None,
    "inference_mode": True,
  }
  write_json(folder / _CONFIG, about)


def read_adapters(
  folder: str | os.PathLike[str], family: Family, config: ModelConfig, base_name: str | None = None
) -> tuple[Lora, dict[str, Any]]:
  """(the shape of adapters that `peft` wrote, or we, for a base of this family and config; they themselves, NumPy arrays in float32).

  Raises PublishedError for what is missing or damaged, for adapters that compute something else than these do, and for those of another
  base: `base_name`, where it is given, must be the one that they name.
  """
  folder = pathlib.Path(folder)
  lora = _read_shape(folder / _CONFIG, family, config, base_name)
  path = folder / _TENSORS
  try:
    tensors = load_file(path)
  except FileNotFoundError:
    raise PublishedError(f"{path} is missing; give a folder with {_CONFIG} and {_TENSORS}") from None
  except (SafetensorError, OSError) as error:
    raise PublishedError(f"{path}: is damaged or cut short ({error}); fetch that file again") from None

  abstract = abstract_adapters(Decoder(config), lora)
  modules = _modules_of(family)

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    name = f"base_model.model.{name}"
    if name not in tensors:
      raise PublishedError(f"{path}: {name} is missing, which {_CONFIG} promises for this base; give the adapters' own base")
    if (found := tensors[name].shape) != shape:
      raise PublishedError(f"{path}: {name} has the shape {found}, and this base makes it {shape}; give the adapters' own base")
    return tensors.pop(name).astype(np.float32)

  layers = {}
  for target in lora.targets:
    a, b = (abstract["layers"][target][name].value.shape for name in ("lora_a", "lora_b"))
    names = [f"model.layers.{layer}.{modules[target]}" for layer in range(config.num_layers)]
    layers[target] = {
      "lora_a": np.stack([take(f"{name}.lora_A.weight", (lora.rank, int(np.prod(a[1:-1])))).T.reshape(a[1:]) for name in names]),
      "lora_b": np.stack([take(f"{name}.lora_B.weight", (int(np.prod(b[2:])), lora.rank)).T.reshape(b[1:]) for name in names]),
    }
  rows = {
    name: take(f"{module}.token_adapter.trainable_tokens_delta", abstract[name].value.shape)
    for name, (_, module) in _TABLES.items()
    if name in abstract
  }
  if tensors:
    raise PublishedError(f"{path}: {len(tensors)} tensors belong to no adapter, the first {min(tensors)}; give the adapters' own base")
  return lora, {"layers": layers, **rows}


def _modules_of(family: Family) -> dict[str, str]:
  """Our name of a matrix -> its module's, behind `model.layers.N.`."""
  return {tensor.path[0]: name.removesuffix(".weight") for name, tensor in family.layers.items() if tensor.path[-1] == "kernel"}


def _read_shape(path: pathlib.Path, family: Family, config: ModelConfig, base_name: str | None) -> Lora:
  about = read_json(path, f"give a folder with {_CONFIG} and {_TENSORS}")
  wrong = next((key for key, plain in _PLAIN.items() if (about.get(key, plain) or None) != (plain or None)), None)
  if wrong is not None:
    raise PublishedError(f"{path}: {wrong} is {about[wrong]!r}, which is not read; give adapters with {_PLAIN[wrong]!r} there")
  if base_name is not None and (named := about.get("base_model_name_or_path")) != base_name:
    raise PublishedError(f"{path}: is for the base {named}, not for {base_name}; give the adapters' own base")
  known = {module.rpartition(".")[2]: target for target, module in _modules_of(family).items()}
  wanted = about.get("target_modules")
  if not isinstance(wanted, list) or not wanted or not {*wanted} <= {*known}:
    unknown = wanted if not isinstance(wanted, list) else ", ".join(sorted({*map(str, wanted)} - {*known})) or "empty"
    raise PublishedError(f"{path}: target_modules is {unknown}, which this decoder has not; there are {', '.join(known)}")
  targets = tuple(target for module, target in known.items() if module in wanted)
  return Lora(int(about["r"]), float(about["lora_alpha"]), targets, _count_rows(path, about.get("trainable_token_indices"), config))


def _count_rows(path: pathlib.Path, indices: Mapping[str, Sequence[int]] | Sequence[int] | None, config: ModelConfig) -> int:
  """Of the last tokens those whose rows are trained."""
  if not indices:
    return 0
  tables = dict(indices) if isinstance(indices, Mapping) else {"embed_tokens": indices}
  names = [module for module, _ in _TABLES.values()][: 1 if config.tie_embedding else 2]
  first = min(tables.get("embed_tokens", [0]), default=0)
  last = list(range(first, config.vocab_size))
  if sorted(tables) != sorted(names) or any(sorted(of) != last for of in tables.values()):
    raise PublishedError(
      f"{path}: trainable_token_indices are not the last rows of {' and '.join(names)}, which has {config.vocab_size}; other rows are not "
      "trained here, give adapters without them"
    )
  return len(last)
