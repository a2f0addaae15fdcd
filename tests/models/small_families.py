"""One small decoder of each family, with everything on that the family can do, and parameters that any machine draws alike."""

import jax
import numpy as np
from flax import linen as nn

from gr2_jax.models.config import Llama3Rope, LocalLayers, ModelConfig
from gr2_jax.models.transformer import Decoder, init_boxed

_SHAPE = {"vocab_size": 96, "num_layers": 7, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "mlp_width": 48}
CONFIGS = {
  "qwen3": ModelConfig(**_SHAPE),
  "llama": ModelConfig(
    **_SHAPE, rope_base=5e5, qk_norm=False, norm_eps=1e-5, tie_embedding=False, llama3_rope=Llama3Rope(8.0, 1.0, 4.0, 16)
  ),
  "gemma3": ModelConfig(
    **_SHAPE,
    rope_stretch=8.0,
    norm_offset=1.0,
    extra_norms=True,
    activation="gelu",
    embed_scale=32**0.5,
    query_scale=24**-0.5,
    logits_cap=10.0,
    local=LocalLayers(5, 1e4, tuple((layer + 1) % 6 != 0 for layer in range(7))),
  ),
}
TOKENS = np.random.default_rng(2).integers(1, 96, (2, 24))


def draw_params(config):
  """Parameters far enough from their start that no feature hides behind another."""
  abstract = jax.eval_shape(lambda key: nn.unbox(init_boxed(Decoder(config), key)), jax.random.key(0))
  random = np.random.default_rng(1)

  def draw(path, leaf):
    noise = random.normal(size=leaf.shape).astype(np.float32)
    return 1 - config.norm_offset + 0.2 * noise if path[-1].key == "scale" else 0.15 * noise

  return jax.tree_util.tree_map_with_path(draw, abstract)
