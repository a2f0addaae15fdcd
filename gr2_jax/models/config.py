"""Model sizes as data: one frozen record for every published decoder that the code runs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
  """Llama 3's rescaled rotary frequencies for contexts longer than those it was first trained on (arXiv 2407.21783, the released code).

  Wavelengths beyond `length / low` tokens are stretched by `factor`, those below `length / high` stay, and between them it is blended.
  """

  factor: float
  low: float
  high: float
  length: int


@dataclasses.dataclass(frozen=True)
class LocalLayers:
  """Layers that see the last `window` tokens alone, with a rotary base of their own (Gemma 3, arXiv 2503.19786); `layers` says which do."""

  window: int
  rope_base: float
  layers: tuple[bool, ...]

  def __post_init__(self) -> None:
    if self.window < 1:
      raise ValueError(f"window: {self.window} must be at least 1 token")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and arithmetic of a decoder (RMSNorm, GQA, RoPE on halves, a gated MLP); the defaults are those of the Qwen3 family.

  What families do differently is data: `qk_norm` normalises queries and keys by head; a norm multiplies by `norm_offset + weight`;
  with `extra_norms` what attention and MLP give is normalised too; `activation` gates the MLP; embeddings are multiplied by `embed_scale`;
  scores by `query_scale` (None: head_dim^-1/2); `logits_cap` bounds logits by cap tanh(x / cap).
  `rope_base`, stretched by the factor `rope_stretch` or by `llama3_rope`, holds for all layers that are not `local`.
  `dtype` is the type of activations; parameters are held in `param_dtype`, softmax and losses always in float32.
  `remat` recomputes each layer in the backward pass; tiny models on a CPU are faster without.
  `attention` is how attention is computed, a name in `attention.ATTENTION`; it changes no result beyond rounding.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_base: float = 1e6
  norm_eps: float = 1e-6
  tie_embedding: bool = True
  qk_norm: bool = True
  norm_offset: float = 0.0
  extra_norms: bool = False
  activation: str = "silu"
  embed_scale: float = 1.0
  query_scale: float | None = None
  logits_cap: float | None = None
  rope_stretch: float = 1.0
  llama3_rope: Llama3Rope | None = None
  local: LocalLayers | None = None
  dtype: str = "float32"
  param_dtype: str = "float32"
  remat: bool = False
  attention: str = "matrices"

  def __post_init__(self) -> None:
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"head_dim {self.head_dim} must be even: RoPE turns pairs")
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
    if self.local is not None and len(self.local.layers) != self.num_layers:
      raise ValueError(f"local.layers names {len(self.local.layers)} layers, and the model has {self.num_layers}")


ACTIVATIONS = ("silu", "gelu")  # gelu: its tanh approximation


# (layers, width, heads, kv heads, head dim, mlp width); Qwen3 sizes as in the published configurations.
_SHAPES = {
  "test": (2, 32, 4, 2, 8, 64),
  "micro": (3, 64, 4, 2, 16, 192),
  "tiny": (4, 128, 4, 2, 32, 384),
  "small": (6, 192, 6, 2, 32, 576),
  "qwen3_0_6b": (28, 1024, 16, 8, 128, 3072),
  "qwen3_1_7b": (28, 2048, 16, 8, 128, 6144),
  "qwen3_8b": (36, 4096, 32, 8, 128, 12288),
  "qwen3_32b": (64, 5120, 64, 8, 128, 25600),
}
PRESETS = tuple(_SHAPES)


def preset(name: str, vocab_size: int) -> ModelConfig:
  """The named size for a vocabulary; raises ValueError for a name that is not in PRESETS."""
  if name not in _SHAPES:
    raise ValueError(f"model preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
  layers, width, heads, kv_heads, head_dim, mlp_width = _SHAPES[name]
  large = name.startswith("qwen3")
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_width=mlp_width,
    rope_base=1e6 if large else 1e4,
    tie_embedding=name not in ("qwen3_8b", "qwen3_32b"),
    dtype="bfloat16" if large else "float32",
    remat=large,
  )


def check_parts(config: ModelConfig, fsdp: int, tensor: int) -> None:
  """Raises ValueError, with the axis first, unless each dimension divides into the parts that mesh axes cut it into."""
  cut = {
    "fsdp": (fsdp, {"width": config.width}),
    "tensor": (
      tensor,
      {"key heads": config.num_kv_heads, "heads": config.num_heads, "hidden units": config.mlp_width, "tokens": config.vocab_size},
    ),
  }
  for axis, (parts, dimensions) in cut.items():
    for name, size in dimensions.items():
      if size % parts:
        raise ValueError(f"{axis}: {parts} parts do not divide the model's {size} {name}; use a divisor of {size}")
