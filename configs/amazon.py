"""Purpose: the main line on a real catalogue: Amazon Reviews 2014 (5-core), leave-one-out, the legacy click model's top ten re-ranked.
Paper: v1 on Beauty, slates of its own: R@1 .2892 upstream, .2977 re-ranked; N@5 .5101 and .5234.
Expected: `beauty,small` over the upstream order: RL policy R@1 +99 % [83, 118], N@3 +62 % [54, 70]; direct policy R@1 +108 % [90, 128],
  N@3 +67 % [59, 75] (95 % intervals, seeds 0 to 2 together).
Hardware: 2 CPU cores, under an hour with `small`; without it one GPU or a TPU host, not timed.
Command: python -m experiments.run --config=configs/amazon.py:beauty,small --workdir=runs/beauty
Measured: docs/results/beauty.md; retrieval docs/results/retrieval.md; `strong` docs/results/strong.md; `time` docs/results/time.md

`beauty`, `sports`, `toys` choose the catalogue; TFDS downloads it, or `--config.data.source=FOLDER` names one with items.jsonl[.gz] and
interactions.jsonl[.gz].
`small`: for two CPU cores. Without it: a larger model and longer training.
`strong`: the order to beat is that of SASRec with the items' text, and training slates are its own and the CTR model's.
`written`: the report's own form, a reasoning and then the permutation token by token; without it answers are scored, as in quickstart.py.
`smollm2`, `qwen3_0_6b`, `gemma3_1b`: a published language model is the start, `--config.model.init=hf:FOLDER`; it reads titles and evidence
in words and answers by candidates' names (see configs/published.py).
`time`: the log is split by time, its last days held out, instead of each user's last items.
`tiny`: the same path on a synthetic log, in about a minute, for tests. `seed=N`: other draws.
"""

from configs.base import base, optimizer
from configs.published import PUBLISHED, make_published, make_tiny_published
from configs.quickstart import make_scored, make_tiny_scored
from configs.written import make_tiny
from experiments.flags import parse_arg
from gr2_jax.errors import ConfigError

CATALOGUES = ("beauty", "sports", "toys")


def get_config(arg=None):
  published = dict.fromkeys(PUBLISHED, False)
  args = parse_arg(
    arg, beauty=False, sports=False, toys=False, small=False, strong=False, written=False, time=False, tiny=False, seed=0, **published
  )
  chosen = [name for name in CATALOGUES if getattr(args, name)]
  if len(chosen) != 1:
    raise ConfigError(f"config argument: name one catalogue of {', '.join(CATALOGUES)}, for example configs/amazon.py:beauty,small")
  config = base()
  config.name = f"amazon_{chosen[0]}"
  config.seed = args.seed
  config.data.source = f"tfds:{chosen[0]}"
  config.tokenize.update({"text_pieces": 2048, "num_candidates": 10})
  config.tokenize.rqvae.update({"levels": 4, "codebook_size": 256})  # GR2's
  config.slates.source = "ctr"
  if args.time:
    config.data.split = "time"
  # What the quickstart showed for small models; its comments say why.
  config.decoding.constraint = "slate"
  config.traces.temperature = 0.3
  config.prompt.update(
    {
      "order": "candidates_first",
      "reference": "sid",
      "history_fields": (),
      "max_history": 20,
      "max_prompt_tokens": 320,
      "hints": ("upstream_rank", "bought_after"),
    }
  )
  config.decoding.max_new_tokens = 96
  if args.small or args.tiny:
    make_small(config)
  else:
    make_large(config)
  start = [name for name in PUBLISHED if getattr(args, name)]
  if len(start) > 1:
    raise ConfigError(f"config argument: {' and '.join(start)} are two models to start from; name one")
  if start:
    make_published(config, start[0], small=args.small or args.tiny)
  elif not args.written:
    make_scored_log(config, large=not (args.small or args.tiny))
  if args.strong:
    make_strong(config)
  if args.tiny:
    make_tiny(config)
    if start:
      make_tiny_published(config)
    elif not args.written:
      make_tiny_scored(config)
    config.data.source = "synthetic"
    config.data.market.update({"num_items": 120, "train_slates": 300, "validation_slates": 20, "test_slates": 20})
    config.tokenize.update({"text_pieces": 512, "dim": 64})
    config.tokenize.rqvae.update({"levels": 3, "codebook_size": 32, "latent": 16, "hidden": (64,)})
    config.slates.ctr.epochs = 3
    config.slates.sasrec.update({"width": 16, "layers": 1, "epochs": 3})
  return config


def make_scored_log(config, large):
  """Scored answers on a real log, whose training slates are cut from what mid-training reads: users are cross-fitted."""
  make_scored(config)
  config.slates.source = "ctr"
  # Some 17 epochs of the users' histories: docs/results/retrieval.md says what fewer cost.
  config.midtrain.update({"steps": 1200, "batch_size": 52, "max_history": 20})
  config.midtrain.packed.update({"folds": 4, "negatives": 1024, "dropout": 0.2, "chosen_by": "ndcg@10", "evaluate_every": 200})
  # Slates are few: fewer passes, and draws that stay near what was taught.
  config.rl.temperature = 0.25
  if large:
    config.model.preset = "small"
    config.midtrain.steps = 4000


def make_strong(config):
  """A strong upstream order finds the targets of few training histories that it has not seen: slates of the click model stand beside."""
  config.name += "_strong"
  config.slates.update({"source": "sasrec", "also": "ctr"})
  config.evaluation.baselines = ("prm", "listwise_mlp", "transition_graph")


def make_small(config):
  """Two CPU cores, about an hour."""
  config.tokenize.training.update({"epochs": 120})
  config.midtrain.update({"steps": 1500, "batch_size": 40, "row_length": 128, "save_every": 250, "eval_users": 4000})
  config.midtrain.mixture.update({"next_item": 0.7, "persona": 0.2, "item_to_text": 0.05, "text_to_item": 0.05})
  config.midtrain.optimizer = optimizer(3e-3, rule="muon", schedule="cosine", warmup_steps=50, weight_decay=0.01)
  # Training slates are few, since the legacy order finds one target in twenty: more positions of each user.
  config.slates.per_user = 8
  config.sft.update({"steps": 500, "batch_size": 16, "row_length": 352, "reasoning_weight": 0.3})  # two examples a row
  config.sft.optimizer = optimizer(3e-3, rule="muon", schedule="cosine", warmup_steps=20, weight_decay=0.01)
  config.opd.update({"steps": 800, "prompts": 16, "group": 4, "save_every": 200})  # many small steps, as in small_market.py
  config.opd.optimizer.update({"rule": "muon", "learning_rate": 3e-3})
  config.rl.update({"steps": 60, "prompts": 32, "min_filled": 0.8})
  config.direct.min_filled = 0.8
  config.rl.optimizer.learning_rate = 5e-5


def make_large(config):
  """One accelerator: a larger model, several passes over the log, beams of the model itself as the upstream order."""
  config.model.preset = "small"
  config.slates.source = "beam"
  config.midtrain.update({"steps": 20_000, "batch_size": 64, "save_every": 1000})
  config.sft.update({"steps": 3000, "batch_size": 32})
  config.opd.update({"steps": 1500, "prompts": 128})
  config.rl.update({"steps": 1000, "prompts": 64, "group": 16})
  config.direct.group = 16
