"""GGUF files, the quantised form in which many models are passed on: read by the package `gguf`, as float32."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gr2_jax.models.families import FAMILIES, OUTPUT, Family
from gr2_jax.models.published import Published, PublishedError, check_tensors, config_json

_ONCE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": OUTPUT}
_LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
# What comes between attention and MLP stands under other names where there are norms before and after both.
_NORMS = {"ffn_norm": "post_attention_layernorm"}
_NORMS_AROUND = {
  "post_attention_norm": "post_attention_layernorm",
  "ffn_norm": "pre_feedforward_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}
# Of the families here only Llama's rows are stored with the pairs that are rotated side by side.
_INTERLEAVED = "llama"
_ROTATED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")


def open_gguf(path: str | os.PathLike[str]) -> Published:
  """The model in a GGUF file; raises PublishedError for a file that is cut short, of an unknown family, or held in a type that is not read,
  and where the package `gguf` is not installed.
  """
  path = pathlib.Path(path)
  reader = open_reader(path)
  from gguf import dequantize

  fields = {name: _plain(field.contents()) for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
  family = FAMILIES.get(kind := str(fields.get("general.architecture")))
  if family is None:
    raise PublishedError(f"{path}: the architecture {kind} is not known; there are {', '.join(FAMILIES)}")
  tensors = _rename(path, family, {tensor.name: tensor for tensor in reader.tensors})
  try:
    config = family.read(_config_of(family, fields, tensors))
  except (KeyError, ValueError) as error:
    raise PublishedError(f"{path}: its metadata make no {family.name} model ({error}); take the file from where it was published") from None
  read_as = {name: jax.ShapeDtypeStruct(tuple(map(int, reversed(tensor.shape))), np.float32) for name, tensor in tensors.items()}
  check_tensors(path, family, config, read_as)

  for name, tensor in {tensor.tensor_type: (name, tensor) for name, tensor in tensors.items()}.values():
    try:
      dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError:
      raise PublishedError(f"{path}: {name} is held as {tensor.tensor_type.name}, which the package gguf does not read back") from None

  def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
    data, kind, shape = tensors[name].data, tensors[name].tensor_type, read_as[name].shape
    if family.name == _INTERLEAVED and name.endswith(_ROTATED):
      part = _side_by_side_to_halves(dequantize(data, kind).reshape(shape), config.head_dim)[index]
    elif len(shape) == 2 and index:
      part = dequantize(data[index[0]], kind)[:, *index[1:]]  # of a file's types all hold each row by itself
    else:
      part = dequantize(data, kind).reshape(shape)[index]
    # The file holds what a norm multiplies by.
    return part - np.float32(config.norm_offset) if config.norm_offset and len(shape) == 1 else part

  length = fields.get(f"{family.name}.context_length")
  raw = config_json(family, config) | ({} if length is None else {"max_position_embeddings": length})
  return Published(path, family, config, raw, read, read_as)


def _plain(value: Any) -> Any:
  """A float32 as the shortest number that is rounded to it: 1e-05 for 9.99999974e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def open_reader(path: pathlib.Path) -> Any:
  """The package's reader of a file, which maps it into memory; raises PublishedError for a file that it does not read."""
  try:
    from gguf import GGUFReader
  except ImportError:
    raise PublishedError(f"{path}: reading GGUF needs the package gguf; install it with pip install 'gr2_jax[gguf]'") from None
  if not path.is_file():
    raise PublishedError(f"{path}: there is no such file")
  try:
    return GGUFReader(path)
  except (ValueError, IndexError, KeyError, OverflowError) as error:
    raise PublishedError(f"{path}: is damaged, cut short or no GGUF file ({error}); fetch it again") from None


def _rename(path: pathlib.Path, family: Family, tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The tensors by the names that the family publishes; those that it does not know keep theirs, for `check_tensors` to name."""
  norms = _NORMS_AROUND if "pre_feedforward_layernorm.weight" in family.layers else _NORMS
  of_layer = _LAYER | norms

  def rename(name: str) -> str:
    head, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    known = of_layer.get(part.removesuffix(".weight"))
    return f"model.layers.{layer}.{known}.weight" if head == "blk" and known else _ONCE.get(name, name)

  if "rope_freqs.weight" in tensors:
    raise PublishedError(f"{path}: rope_freqs.weight, rotary frequencies as a table, is not read; give the model as safetensors")
  return {rename(name): tensor for name, tensor in tensors.items()}


def _config_of(family: Family, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The metadata under the names of config.json."""

  def value(key: str, default: Any = None) -> Any:
    found = fields.get(f"{family.name}.{key}", default)
    if found is None:
      raise KeyError(f"{family.name}.{key} is missing")
    return found

  width, heads = value("embedding_length"), value("attention.head_count")
  base = {"rope_theta": value("rope.freq_base", 10_000.0)}
  scaling = fields.get(f"{family.name}.rope.scaling.type", "none")
  if scaling != "none":
    base |= {"rope_scaling": {"rope_type": scaling, "factor": value("rope.scaling.factor")}}
  return base | {
    "vocab_size": int(tensors["model.embed_tokens.weight"].shape[1]),
    "num_hidden_layers": value("block_count"),
    "hidden_size": width,
    "num_attention_heads": heads,
    "num_key_value_heads": value("attention.head_count_kv", heads),
    "head_dim": value("attention.key_length", width // heads),
    "intermediate_size": value("feed_forward_length"),
    "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
    "tie_word_embeddings": OUTPUT not in tensors,
    "sliding_window": fields.get(f"{family.name}.attention.sliding_window"),
    # Files of Gemma name no scale of queries: it is that of the head, but in the largest one, which the shape tells.
    "query_pre_attn_scalar": width // heads if value("block_count") == 62 else value("attention.key_length", width // heads),
  }


def _side_by_side_to_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows `[H * Dh, .]` whose rotated pairs are neighbours, with the pairs' first members in the first half of each head."""
  heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
  return heads.transpose(0, 2, 1, 3).reshape(rows.shape)
