"""What a family of published decoders says of itself: how its config.json reads and which of its tensors is which parameter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gr2_jax.models.config import Llama3Rope, ModelConfig

Json = Mapping[str, Any]


class Tensor(NamedTuple):
  """A parameter, by its path in the pytree. A published matrix is `[outputs, inputs]`; ours has its `inputs` leading axes first (0: no
  matrix, the same array)."""

  path: tuple[str, ...]
  inputs: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
  """`architecture` and `model_type` as config.json names them; `read(config.json)` gives our config without types of arrays, and
  `write(config)` is its inverse; tensors that are there `once`, and those of `layers`, by the name behind `model.layers.N.`.
  """

  name: str
  architecture: str
  model_type: str
  read: Callable[[Json], ModelConfig]
  write: Callable[[ModelConfig], dict[str, Any]]
  once: Mapping[str, Tensor]
  layers: Mapping[str, Tensor]


ONCE = {
  "model.embed_tokens.weight": Tensor(("embedding",)),
  "model.norm.weight": Tensor(("final_norm", "scale")),
}
OUTPUT = "lm_head.weight"  # where it is not the embedding
LAYER = {
  "input_layernorm.weight": Tensor(("attention_norm", "scale")),
  "self_attn.q_proj.weight": Tensor(("q", "kernel"), 1),
  "self_attn.k_proj.weight": Tensor(("k", "kernel"), 1),
  "self_attn.v_proj.weight": Tensor(("v", "kernel"), 1),
  "self_attn.o_proj.weight": Tensor(("out", "kernel"), 2),
  "post_attention_layernorm.weight": Tensor(("mlp_norm", "scale")),
  "mlp.gate_proj.weight": Tensor(("gate", "kernel"), 1),
  "mlp.up_proj.weight": Tensor(("up", "kernel"), 1),
  "mlp.down_proj.weight": Tensor(("down", "kernel"), 1),
}
QK_NORM = {
  "self_attn.q_norm.weight": Tensor(("q_norm", "scale")),
  "self_attn.k_norm.weight": Tensor(("k_norm", "scale")),
}


def read_shape(config: Json, *, activation: tuple[str, str] = ("hidden_act", "silu"), tied: bool = False) -> dict[str, Any]:
  """The fields that all families name alike; `activation`: its key and the one value that the family has; `tied`: whether the output is
  the embedding where config.json does not say.

  Raises ValueError for what no decoder here computes.
  """
  for key, value in (("attention_bias", False), ("mlp_bias", False), activation):
    if config.get(key, value) != value:
      raise ValueError(f"{key}: {config[key]!r} is not computed by this decoder, only {value!r}")
  heads, width = config["num_attention_heads"], config["hidden_size"]
  return {
    "vocab_size": config["vocab_size"],
    "num_layers": config["num_hidden_layers"],
    "width": width,
    "num_heads": heads,
    "num_kv_heads": config.get("num_key_value_heads") or heads,
    "head_dim": config.get("head_dim") or width // heads,
    "mlp_width": config["intermediate_size"],
    "norm_eps": config["rms_norm_eps"],
    "tie_embedding": config.get("tie_word_embeddings", tied),
  }


def write_shape(config: ModelConfig) -> dict[str, Any]:
  """The inverse of `read_shape`."""
  return {
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.width,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_width,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tie_embedding,
    "attention_bias": False,
  }


def read_rope(config: Json, base: float) -> tuple[float, Json]:
  """(the rotary base, how it is scaled: `rope_type` and its numbers); `base` where config.json has none.

  Files of transformers 5 have both in `rope_parameters`, older ones `rope_theta` and `rope_scaling`.
  """
  new = config.get("rope_parameters")
  if new is not None:
    return new.get("rope_theta", base), new
  scaling = config.get("rope_scaling") or {}
  return config.get("rope_theta", base), {"rope_type": scaling.get("type", "default"), **scaling}


def read_scaling(scaling: Json) -> dict[str, Any]:
  """`rope_stretch` or `llama3_rope` of a config; raises ValueError for a kind that is not computed."""
  kind = scaling.get("rope_type", "default")
  if kind == "default":
    return {}
  if kind == "linear":
    return {"rope_stretch": scaling["factor"]}
  if kind == "llama3":
    numbers = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    return {"llama3_rope": Llama3Rope(*numbers)}
  raise ValueError(f"rope_type: {kind!r} is not computed by this decoder, only default, linear and llama3")


def write_scaling(config: ModelConfig) -> dict[str, Any]:
  """The `rope_parameters` of the layers that are not local."""
  of = {"rope_theta": config.rope_base}
  if (scaled := config.llama3_rope) is not None:
    numbers = {"factor": scaled.factor, "low_freq_factor": scaled.low, "high_freq_factor": scaled.high}
    return of | {"rope_type": "llama3", **numbers, "original_max_position_embeddings": scaled.length}
  return of | ({"rope_type": "default"} if config.rope_stretch == 1 else {"rope_type": "linear", "factor": config.rope_stretch})


def write_rope(config: ModelConfig) -> dict[str, Any]:
  """`rope_parameters`, as transformers 5 reads them, and the same under the names of transformers 4, which would pass over them."""
  base, scaling = config.rope_base, write_scaling(config)
  older = None if scaling["rope_type"] == "default" else {name: value for name, value in scaling.items() if name != "rope_theta"}
  return {"rope_parameters": scaling, "rope_theta": base, "rope_scaling": older}
