"""Model sizes as data: one frozen record for every published decoder that the code runs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and arithmetic of a decoder of the Qwen3 family (RMSNorm, GQA, QK-norm, RoPE, SwiGLU).

  `dtype` is the type of activations; parameters are held in `param_dtype`, softmax and losses always in float32.
  `remat` recomputes each layer in the backward pass; tiny models on a CPU are faster without.
  `attention` is how attention is computed, a name in `transformer.ATTENTION`; it changes no result beyond rounding.
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
  dtype: str = "float32"
  param_dtype: str = "float32"
  remat: bool = False
  attention: str = "matrices"

  def __post_init__(self) -> None:
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"head_dim {self.head_dim} must be even: RoPE turns pairs")


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
