"""Our parameters in the models of peers, so that a comparison runs the same arithmetic."""

import numpy as np

from gr2_jax.models.config import ModelConfig


def to_hf_qwen3(config: ModelConfig, params):
  """A transformers `Qwen3ForCausalLM` in float32 that computes what our decoder computes with `params`."""
  import torch
  import transformers

  model = transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config(
      vocab_size=config.vocab_size,
      hidden_size=config.width,
      intermediate_size=config.mlp_width,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads,
      head_dim=config.head_dim,
      rope_theta=config.rope_base,
      rms_norm_eps=config.norm_eps,
      tie_word_embeddings=config.tie_embedding,
      bos_token_id=None,
      eos_token_id=None,
    )
  )
  layers = params["layers"]
  state = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["final_norm"]["scale"]}
  state["lm_head.weight"] = params["embedding"] if config.tie_embedding else params["output"]
  for n in range(config.num_layers):
    at = f"model.layers.{n}."
    for ours, theirs in _SCALES.items():
      state[f"{at}{theirs}.weight"] = layers[ours]["scale"][n]
    for ours, theirs in _KERNELS.items():
      kernel = layers[ours]["kernel"][n]  # [in, out], where either may be split into heads
      inputs = config.num_heads * config.head_dim if ours == "out" else kernel.shape[0]
      state[f"{at}{theirs}.weight"] = kernel.reshape(inputs, -1).T
  # A copy, since torch wants memory that it may write to.
  model.load_state_dict({name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()})
  return model.eval()


_SCALES = {
  "attention_norm": "input_layernorm",
  "mlp_norm": "post_attention_layernorm",
  "q_norm": "self_attn.q_norm",
  "k_norm": "self_attn.k_norm",
}
_KERNELS = {
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "out": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}
