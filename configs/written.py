"""Purpose: the report's own form on the quickstart's market: a reasoning, then the permutation, written token by token.
Paper: its line on industrial logs ranks R@1 +18.7 %, R@3 +7.1 %, N@3 +9.6 % above the production order.
Expected: RL policy over the upstream order R@1 +36 % [21, 55], N@3 +17 % [10, 25] (95 % intervals, seed 0).
Hardware: 2 CPU cores, 4 to 14 minutes by machine.
Command: python -m experiments.run --config=configs/written.py --workdir=runs/written
Measured: docs/results/written.md

`seed=N`: another market with other draws; `tiny`: seconds, learns next to nothing, for tests.
"""

from configs.base import base
from experiments.flags import parse_arg


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = make_market("written", args.seed)
  config.midtrain.update({"steps": 240, "batch_size": 32, "row_length": 128, "eval_users": 500, "max_history": 12, "corpus_epochs": 8})
  config.midtrain.optimizer.update({"rule": "muon", "learning_rate": 3e-3})
  config.midtrain.mixture.update({"next_item": 0.7, "persona": 0.3, "item_to_text": 0.0, "text_to_item": 0.0})
  # The history next to the answer and in codes alone, as in mid-training, and semantic IDs as names: what it learnt is of use at once.
  config.prompt.update(
    {
      "order": "candidates_first",
      "reference": "sid",
      "history_fields": (),
      "max_history": 12,
      "max_prompt_tokens": 256,
      "hints": ("upstream_rank", "bought_after"),
    }
  )
  # A model of 1 M parameters needs far more than six minutes to learn by itself that no candidate is named twice.
  config.decoding.constraint = "slate"
  # A cool teacher: below its first choice a warm one's order is mostly noise, which costs a small model its few examples.
  config.traces.temperature = 0.3
  config.sft.update({"steps": 380, "batch_size": 24, "row_length": 152, "reasoning_weight": 0.3})
  config.sft.optimizer.update({"rule": "muon", "learning_rate": 3e-3})
  config.decoding.max_new_tokens = 56
  config.opd.prompts = 32
  config.rl.update({"steps": 30, "prompts": 32, "min_filled": 0.9})
  config.rl.optimizer.learning_rate = 5e-5
  config.direct.min_filled = 0.9
  config.evaluation.shuffles = 1
  if args.tiny:
    make_tiny(config)
  return config


def make_market(name, seed):
  """The defaults, on a market of 600 items and slates of eight, with a tokenizer of its size."""
  config = base()
  config.name = name
  config.seed = seed
  config.data.market_seed = seed
  # More users than the small model can read twice: on fewer, mid-training and SFT learn them by heart.
  config.data.market.update({"slate_size": 8, "train_slates": 12_000})
  config.tokenize.update({"dim": 64, "text_pieces": 512, "num_candidates": 10})
  config.tokenize.rqvae.update({"latent": 16, "hidden": (64,)})
  config.tokenize.training.update({"epochs": 200, "report_every": 20})
  return config


def make_tiny(config):
  """The same stages at a size that only shows that they run."""
  config.model.preset = "test"
  config.data.market.update({"num_items": 120, "train_slates": 60, "validation_slates": 20, "test_slates": 24})
  config.tokenize.training.epochs = 40
  config.midtrain.update({"steps": 3, "batch_size": 4, "save_every": 2, "log_every": 1, "eval_users": 8, "beams": 5})
  config.midtrain.optimizer.warmup_steps = 1
  config.midtrain.warmup_rows.update({"enabled": True, "steps": 2, "log_every": 1})
  config.sft.update({"steps": 3, "batch_size": 2, "row_length": 384, "save_every": 2, "log_every": 1})
  config.sft.optimizer.warmup_steps = 1
  config.opd.update({"steps": 2, "prompts": 2, "group": 2, "save_every": 1})
  config.opd.optimizer.warmup_steps = 1
  config.rl.update({"steps": 2, "prompts": 2, "group": 2, "save_every": 1})
  config.rl.optimizer.warmup_steps = 1
  config.direct.update({"steps": 2, "prompts": 2, "group": 2, "save_every": 1})
  config.direct.optimizer.warmup_steps = 1
  config.prune.update({"layers": 1, "slates": 4, "steps": 2, "prompts": 2, "group": 2, "save_every": 1})
  config.prune.optimizer.warmup_steps = 1
  config.compress.batch_size = 8
  config.compress.rewriter.warmup.update({"steps": 3, "batch_size": 2, "save_every": 2, "log_every": 1})
  config.compress.rewriter.warmup.optimizer.warmup_steps = 1
  config.compress.rewriter.update({"steps": 2, "prompts": 2, "group": 2, "save_every": 1})
  config.compress.rewriter.optimizer.warmup_steps = 1
  config.compress.soft_tokens.update({"steps": 3, "width": 16, "batch_size": 2, "save_every": 2, "log_every": 1})
  config.compress.soft_tokens.optimizer.warmup_steps = 1
  config.evaluation.update({"batch_size": 8, "resamples": 200, "shuffles": 1})
