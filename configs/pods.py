"""Purpose: the written line at the paper's sizes, to be compiled for TPU pods before any is rented: Qwen3's shapes at random numbers.
Paper: policies of 1.7B to 32B; no figure of its hardware. Prompts of some 2,200 tokens, answers of some 200 (dGR2, on Beauty).
Expected: not measured; experiments.compile_pod says what its steps hold and take at least.
Hardware: a slice of 64 to 512 TPU chips; one accelerator or CPU with `tiny`.
Command: python -m experiments.run --config=configs/pods.py --workdir=runs/pods
Measured: nothing yet; docs/results/README.md lists what is, docs/pods.md what was compiled.

`qwen3_0_6b` (default), `qwen3_1_7b`, `qwen3_8b`, `qwen3_32b` choose the model; its vocabulary is as large as Qwen3's. `long`: what Meta
trains with, 256 prompts of 16,384 tokens x 8 responses of up to 8,192. `tiny`: seconds, learns next to nothing, for tests. `seed=N`: other
draws.
"""

from configs.written import make_market, make_tiny
from experiments.flags import parse_arg
from gr2_jax.errors import ConfigError

MODELS = ("qwen3_0_6b", "qwen3_1_7b", "qwen3_8b", "qwen3_32b")
_ROWS = 256  # of every batch, so that each of 256 chips has one
# Data, fsdp, tensor: parameters are cut where a chip could not hold them, and what the model's 8 key heads allow.
_MESHES = {"qwen3_0_6b": (-1, 1, 1), "qwen3_1_7b": (-1, 4, 1), "qwen3_8b": (-1, 32, 1), "qwen3_32b": (-1, 64, 1)}


def get_config(arg=None):
  args = parse_arg(arg, **dict.fromkeys(MODELS, False), long=False, tiny=False, seed=0)
  chosen = [name for name in MODELS if getattr(args, name)]
  if len(chosen) > 1:
    raise ConfigError(f"config argument: {' and '.join(chosen)} are two models; name one")
  config = make_market("pods", args.seed)
  model = chosen[0] if chosen else MODELS[0]
  config.model.preset = model
  config.mesh.update(dict(zip(("data", "fsdp", "tensor"), _MESHES[model], strict=True)))
  config.tokenize.text_pieces = 150_000  # with frames, names and codes 151,168 tokens; Qwen3's tables have 151,936
  config.tokenize.rqvae.update({"levels": 4, "codebook_size": 256, "latent": 32, "hidden": (512, 256, 128)})
  config.prompt.update({"order": "history_first", "reference": "sid", "max_history": 50, "max_prompt_tokens": 2304})
  config.decoding.update({"constraint": "slate", "max_new_tokens": 512})
  config.midtrain.update({"batch_size": _ROWS, "row_length": 2048})
  config.sft.update({"batch_size": _ROWS, "row_length": 2816})
  config.opd.update({"prompts": _ROWS, "group": 4})
  config.rl.update({"prompts": _ROWS, "group": 8, "max_rounds": 1})
  config.rl.optimizer.learning_rate = 1e-6
  if args.long:
    config.prompt.max_prompt_tokens = 16_384
    config.decoding.max_new_tokens = 8192
  if args.tiny:
    make_tiny(config)
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
    config.tokenize.text_pieces = 512
    config.prompt.update({"max_history": 12, "max_prompt_tokens": 256})
    config.decoding.max_new_tokens = 56
  return config
