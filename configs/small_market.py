"""Purpose: the main line where a small model learns to re-rank in two minutes, on slates of six named by slots; ablations build on it.
Paper: no figure at this size.
Expected: SFT policy over the upstream order R@1 +26 % [20, 33] (95 % interval, seeds 0 to 2: `sft_rejection_test` of the study of priors);
  RL policy R@1 .352, N@3 .613 (seeds 0 and 1, of the study of internalised reasoning).
Hardware: 2 CPU cores, two minutes.
Command: python -m experiments.run --config=configs/small_market.py --workdir=runs/small_market
Measured: docs/results/prior.md, docs/results/internalise.md

`seed=N`: another market with other draws; `tiny`: for tests.
"""

from configs import written
from experiments.flags import parse_arg


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = written.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "small_market"
  if not args.tiny:
    shrink(config)
  return config


def shrink(config):
  """A slot is one token, so an answer is short, and the loss of answers begins to fall after 300 steps of SFT, not thousands."""
  config.model.preset = "test"
  config.data.market.update({"num_items": 240, "slate_size": 6, "validation_slates": 200})
  config.tokenize.update({"num_candidates": 6})
  config.tokenize.rqvae.update({"levels": 3, "codebook_size": 16})
  config.tokenize.training.epochs = 100
  config.midtrain.update({"steps": 60, "eval_users": 100})
  config.prompt.update({"reference": "slot", "item_fields": (), "max_history": 6, "max_prompt_tokens": 128})
  config.sft.update({"steps": 800, "batch_size": 16, "row_length": 224, "reasoning_weight": 0.1})
  # Many small steps: nothing is learnt before the student has found out where to look, which takes steps, not samples.
  config.opd.update({"steps": 1000, "prompts": 8, "group": 4, "save_every": 250, "log_every": 5})
  config.opd.optimizer.update({"rule": "muon", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20})
  # Answers have some 22 tokens. With less room RL learns to keep out of the zone before the limit, by shorter reasoning, and little else.
  config.decoding.max_new_tokens = 40
  config.rl.update({"steps": 40, "prompts": 32})
  config.rl.optimizer.learning_rate = 3e-4  # at 1e-3 the reasoning ends in one word, repeated to the limit
