"""Gemma 3, text (arXiv 2503.19786): most layers see a window alone, norms before and after, scaled embeddings, GELU.

config.json may name `attn_logit_softcapping`, which Gemma 2 had: as in transformers, nothing is made of it.
"""

from typing import Any

from gr2_jax.models.config import LocalLayers, ModelConfig
from gr2_jax.models.families.family import LAYER, ONCE, QK_NORM, Family, Json, Tensor, read_scaling, read_shape, write_rope, write_shape

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_NORMS = {
  "post_attention_layernorm.weight": Tensor(("attention_out_norm", "scale")),
  "pre_feedforward_layernorm.weight": Tensor(("mlp_norm", "scale")),
  "post_feedforward_layernorm.weight": Tensor(("mlp_out_norm", "scale")),
}


def _read(config: Json) -> ModelConfig:
  shape = read_shape(config, activation=("hidden_activation", "gelu_pytorch_tanh"), tied=True)
  kinds = config.get("layer_types")
  if kinds is None:
    every = config.get("sliding_window_pattern", 6)
    kinds = [_GLOBAL if (layer + 1) % every == 0 else _LOCAL for layer in range(shape["num_layers"])]
  rope = config.get("rope_parameters")
  if rope is None:  # files of transformers 4
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    rope = {
      _GLOBAL: {"rope_theta": config.get("rope_theta", 1e6), **scaling},
      _LOCAL: {"rope_theta": config.get("rope_local_base_freq", 10_000.0)},
    }
  local = LocalLayers(config["sliding_window"], rope[_LOCAL]["rope_theta"], tuple(kind == _LOCAL for kind in kinds))
  return ModelConfig(
    **shape,
    rope_base=rope[_GLOBAL]["rope_theta"],
    **read_scaling(rope[_GLOBAL]),
    norm_offset=1.0,
    extra_norms=True,
    activation="gelu",
    embed_scale=shape["width"] ** 0.5,
    query_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
    logits_cap=config.get("final_logit_softcapping"),
    local=local,
  )


def _write(config: ModelConfig) -> dict[str, Any]:
  assert config.local is not None and config.query_scale is not None  # as `_read` sets them
  rope = write_rope(config)
  return write_shape(config) | {
    **rope,
    "rope_parameters": {_GLOBAL: rope["rope_parameters"], _LOCAL: {"rope_type": "default", "rope_theta": config.local.rope_base}},
    "rope_local_base_freq": config.local.rope_base,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": [_LOCAL if local else _GLOBAL for local in config.local.layers],
    "sliding_window": config.local.window,
    "query_pre_attn_scalar": round(config.query_scale**-2),
    "final_logit_softcapping": config.logits_cap,
  }


FAMILY = Family("gemma3", "Gemma3ForCausalLM", "gemma3_text", _read, _write, ONCE, LAYER | QK_NORM | _NORMS)
