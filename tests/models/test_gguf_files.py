import gguf
import jax
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from small_families import CONFIGS, draw_params

from gr2_jax.models.families import FAMILIES
from gr2_jax.models.gguf_files import open_gguf
from gr2_jax.models.hf_folders import write_folder
from gr2_jax.models.published import PublishedError, load_published
from gr2_jax.training.mesh import make_mesh

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
_Q8 = gguf.GGMLQuantizationType.Q8_0


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


def _write(path, family, tmp_path, quantised=False):
  """The small model of a family as GGUF; returns its parameters, as they are after rounding."""
  from safetensors.numpy import load_file

  config, params = CONFIGS[family], draw_params(CONFIGS[family])
  write_folder(tmp_path / "folder", FAMILIES[family], config, params, {})
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
  for name, array in load_file(tmp_path / "folder" / "model.safetensors").items():
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
      heads = array.reshape(-1, 2, config.head_dim // 2, config.width)  # pairs side by side, as llama.cpp rotates them
      array = np.ascontiguousarray(heads.transpose(0, 2, 1, 3).reshape(array.shape))
    if config.norm_offset and array.ndim == 1:
      array = array + np.float32(config.norm_offset)
    if quantised and array.ndim == 2 and array.shape[1] % 32 == 0:
      writer.add_tensor(_name(name, family), quantize(array, _Q8), raw_dtype=_Q8)
    else:
      writer.add_tensor(_name(name, family), array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return params


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_file_gives_the_models_parameters(tmp_path, family):
  params = _write(tmp_path / "model.gguf", family, tmp_path)
  found = open_gguf(tmp_path / "model.gguf")
  same = {"query_scale", "logits_cap"}  # of which GGUF says nothing
  for name in CONFIGS[family].__dataclass_fields__.keys() - same:
    wanted = getattr(CONFIGS[family], name)
    assert getattr(found.config, name) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), name
  read = load_published(found, found.config, make_mesh())
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), read, params)


def test_rotated_rows_of_llama_are_put_back_and_quantised_ones_read(tmp_path, monkeypatch):
  family = dict.fromkeys(["llama"], None)
  monkeypatch.setitem(CONFIGS, "llama", CONFIGS["llama"].__class__(**{**vars(CONFIGS["llama"]), "llama3_rope": None}))
  params = _write(tmp_path / "model.gguf", *family, tmp_path, quantised=True)
  found = open_gguf(tmp_path / "model.gguf")
  read = load_published(found, found.config, make_mesh())
  np.testing.assert_allclose(read["layers"]["q"]["kernel"], params["layers"]["q"]["kernel"], atol=6e-3)  # 1 / 254 of a row's largest
  rounded = dequantize(quantize(params["embedding"], _Q8), _Q8)
  np.testing.assert_array_equal(read["embedding"], rounded)
  np.testing.assert_array_equal(read["final_norm"]["scale"], params["final_norm"]["scale"])


def test_a_file_that_cannot_be_read_is_said_in_a_sentence(tmp_path):
  path = tmp_path / "model.gguf"
  with pytest.raises(PublishedError, match=r"there is no such file"):
    open_gguf(path)
  path.write_bytes(b"no model")
  with pytest.raises(PublishedError, match=r"damaged, cut short or no GGUF file"):
    open_gguf(path)
  _write(path, "qwen3", tmp_path)
  whole = path.read_bytes()
  path.write_bytes(whole[:-5000])
  with pytest.raises(PublishedError, match=r"damaged, cut short"):
    open_gguf(path)
  path.write_bytes(whole.replace(b"qwen3", b"bloom"))
  with pytest.raises(PublishedError, match=r"the architecture bloom is not known"):
    open_gguf(path)
