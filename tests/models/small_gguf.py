"""Small models as GGUF files, as llama.cpp's converter writes them."""

import tempfile

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import load_file
from small_families import draw_params

from gr2_jax.models.families import FAMILIES
from gr2_jax.models.hf_folders import write_folder

_NAMES = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "post_feedforward_layernorm": "post_ffw_norm",
}
Q8 = gguf.GGMLQuantizationType.Q8_0


def _name(published, family):
  ends = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
  if published in ends:
    return ends[published]
  _, _, layer, part = published.removesuffix(".weight").split(".", 3)
  norms = (
    {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
    if family == "gemma3"
    else {"post_attention_layernorm": "ffn_norm"}
  )
  return f"blk.{layer}.{(_NAMES | norms)[part]}.weight"


def write_gguf(path, family, config, quantised=False, add=lambda writer: None):
  """A model with random parameters as GGUF, and what `add` adds to its metadata; returns the parameters before they are quantised."""
  params = draw_params(config)
  with tempfile.TemporaryDirectory() as folder:
    write_folder(folder, FAMILIES[family], config, params, {})
    tensors = load_file(f"{folder}/model.safetensors")
  writer = gguf.GGUFWriter(path, family)
  writer.add_block_count(config.num_layers)
  writer.add_embedding_length(config.width)
  writer.add_feed_forward_length(config.mlp_width)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  writer.add_rope_freq_base(config.rope_base)
  if config.local is not None:
    writer.add_sliding_window(config.local.window)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config.rope_stretch)
  for name, array in tensors.items():
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
      heads = array.reshape(-1, 2, config.head_dim // 2, config.width)  # pairs side by side, as llama.cpp rotates them
      array = np.ascontiguousarray(heads.transpose(0, 2, 1, 3).reshape(array.shape))
    if config.norm_offset and array.ndim == 1:
      array = array + np.float32(config.norm_offset)
    if quantised and array.ndim == 2 and array.shape[1] % 32 == 0:
      writer.add_tensor(_name(name, family), quantize(array, Q8), raw_dtype=Q8)
    else:
      writer.add_tensor(_name(name, family), array)
  add(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return params
