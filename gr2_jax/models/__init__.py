"""Linen modules behind pure functions: the decoder in its sizes, its cache, depth pruning; the upstream rankers.

>>> import jax, jax.numpy as jnp
>>> from gr2_jax.models import Decoder, init_params, preset
>>> decoder = Decoder(preset("test", vocab_size=64))
>>> params = init_params(decoder, jax.random.key(0))
>>> tokens = jnp.array([[5, 6, 7]])
>>> hidden, _ = decoder.apply({"params": params}, tokens, jnp.arange(3)[None], jnp.ones_like(tokens))
>>> decoder.apply({"params": params}, hidden, method="logits").shape
(1, 3, 64)
"""

from gr2_jax.models.cache import Cache, Prefix
from gr2_jax.models.config import PRESETS, ModelConfig, preset
from gr2_jax.models.ctr import CtrConfig, ctr_scores, fit_ctr
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import Decoder, init_params

__all__ = [
  "PRESETS",
  "Cache",
  "CtrConfig",
  "Decoder",
  "ModelConfig",
  "PackedSlates",
  "Prefix",
  "SlateScorer",
  "ctr_scores",
  "fit_ctr",
  "init_params",
  "preset",
]
