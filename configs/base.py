"""Every setting of a run with its default; an experiment is this plus a small diff (see quickstart.py, amazon.py)."""

import dataclasses

from ml_collections import ConfigDict, config_dict

from gr2_jax.data import MarketConfig
from gr2_jax.language import Mixture, PromptStyle
from gr2_jax.models import CtrConfig
from gr2_jax.objectives import DAPO, DistillationConfig, PolicyLossConfig
from gr2_jax.rewards import RewardConfig
from gr2_jax.semantic_ids import RqVaeConfig
from gr2_jax.teachers import ChatConfig, TeacherWeights
from gr2_jax.training import OptimizerConfig

GRPO = PolicyLossConfig(aggregation="sequence_mean", clip_high=0.2)  # arXiv 2402.03300


def section(record, **changes) -> ConfigDict:
  """A library record's defaults as a config section, with changes."""
  return ConfigDict({**dataclasses.asdict(record), **changes})


def unset(kind):
  """A value that may stay None; a reference of its own each time, since a shared one would be set in all places at once."""
  return config_dict.placeholder(kind)


def reward() -> ConfigDict:
  """A built-in reward; `alpha` and `invalid` unset: the condition's published values. `fn`: a reward of one's own, "module:function"."""
  return section(RewardConfig(), alpha=unset(float), invalid=unset(float), fn=unset(str))


def learning_from_groups(**changes) -> dict:
  """What reinforcement learning needs to know, wherever it stands."""
  return {
    "steps": 100,
    "prompts": 16,
    "group": 8,
    "temperature": 1.0,
    "presentation": "shuffled",  # or upstream
    # Prompts decoded at a time, and rows for the completions of each (None: all). Below all, rows whose answer has ended take the next one:
    # worth it where the metric `occupancy` is low, because answers differ in length.
    "decode_prompts": unset(int),
    "decode_rows": unset(int),
    "overlong_zone": 8,  # tokens before the limit that cost reward
    "dynamic_sampling": True,  # groups without a signal are left out and replaced; False: one round, all groups count
    "max_rounds": 3,
    "min_filled": 1.0,  # share of the batch at which no further round is begun; below 1 where a round mostly keeps its groups
    "minibatches": 1,  # gradient steps on a rollout batch, each on its share of the prompts
    "microbatches": 1,  # parts of a gradient step, to save memory
    # Rows of max_new_tokens into which the update packs a group's completions, exactly; None: one for each. A little above
    # group x (completion_length / max_new_tokens) where lengths vary; `packed_fraction` says how often all of them fitted.
    "packed_rows": unset(int),
    "loss": section(DAPO, importance_cap=unset(float)),  # rl_losses.py has the others by name
    "reward": reward(),
    "optimizer": optimizer(1e-4, warmup_steps=5),
    "save_every": 25,
    "log_every": 1,
    "max_skips": 10,  # also steps in a row in which no group carries a signal
    **changes,
  }


def optimizer(learning_rate: float, **changes) -> ConfigDict:
  return section(OptimizerConfig(learning_rate=learning_rate), **changes)


def base() -> ConfigDict:
  """The main line at GR2's published constants where there are any (reference values in the comments)."""
  return ConfigDict(
    {
      "name": "base",
      "seed": 0,
      "distributed": False,  # jax.distributed.initialize() before anything else
      "wandb_project": "",
      "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
      "data": {
        # or a folder with items.jsonl[.gz] and interactions.jsonl[.gz], slates_*.jsonl[.gz] or both; or tfds:beauty, sports, toys, own_log
        "source": "synthetic",
        "manual_dir": "",
        "on_error": "stop",  # or skip: leave out bad lines and events of unknown items, count them, list them in RUN/data/bad_lines.jsonl
        "max_history": 50,
        "market_seed": 0,
        "market": section(MarketConfig()),
      },
      "tokenize": {
        "vectors": "",  # a .npy file of item vectors; empty: TF-IDF + SVD of the items' text
        "dim": 256,
        # Levels and codebook size None: by the size of the catalogue, see choose_sizes in gr2_jax/semantic_ids/sizes.py.
        "rqvae": section(RqVaeConfig(), levels=unset(int), codebook_size=unset(int)),
        "training": {"epochs": 500, "batch_size": 2048, "learning_rate": 1e-3, "report_every": 10},
        "last_level": "random",
        "allow_collisions": False,
        "text_pieces": 4096,
        "num_candidates": 32,
      },
      "model": {"preset": "tiny"},
      "midtrain": {
        "mixture": section(Mixture()),
        "corpus_epochs": 64,
        "max_history": 20,
        "batch_size": 32,
        "row_length": 256,
        "steps": 1000,
        "optimizer": optimizer(1e-3, schedule="cosine", warmup_steps=50, weight_decay=0.01),
        "save_every": 500,
        "log_every": 20,
        "max_skips": 10,  # updates in a row, skipped because loss or gradient is not finite, after which the run stops
        # New token rows first, the rest held still: what a pretrained backbone needs (OneRec-Think: lr 5e-4).
        "warmup_rows": {"enabled": False, "steps": 100, "optimizer": optimizer(5e-4), "save_every": 500, "log_every": 20, "max_skips": 10},
        "beams": 20,
        "eval_users": unset(int),  # None: all of them
      },
      "slates": {
        "source": "log",  # the source's own slates; or ctr (legacy ranker, cross-fitted), or beam (the mid-trained model)
        "size": 10,
        "folds": 4,
        "per_user": 3,
        "ctr": section(CtrConfig()),
        "beams": 20,
        "validation_share": 0.15,
      },
      "prompt": section(PromptStyle()),
      # slate: every answer is a full permutation by construction, with the same mask in every loss, and a rewritten history names its items
      # by whole semantic IDs; none: free answers, strict parser.
      # max_new_tokens: the limit of answers with their reasoning, in every stage that decodes them.
      "decoding": {"constraint": "none", "max_new_tokens": 48},
      "traces": {
        "sampling": "rejection",  # or targeted
        "attempts": 8,
        "temperature": 0.8,
        "presentation": "shuffled",
        "max_slates": unset(int),  # None: all training slates
        "teacher": section(TeacherWeights()),
      },
      "sft": {
        "reasoning_weight": 0.1,  # λ_r < λ_o, Eq 3
        "answer_weight": 1.0,
        "compressed_share": 0.0,  # of the examples, whose history the rules shorten to a random number of items: a policy that reads both
        "without_reasoning": False,  # once more, on the answers alone: the policy whose failures are the reasoning-hard slates
        "presentation": "shuffled",
        "batch_size": 16,
        "row_length": 512,
        "steps": 500,
        "optimizer": optimizer(1e-3, schedule="cosine", warmup_steps=20, weight_decay=0.01),
        "save_every": 200,
        "log_every": 10,
        "max_skips": 10,
      },
      "opd": {  # runs where rl.init is opd
        "teacher_run": "",  # directory of a finished run on the same semantic IDs and vocabulary, of any size
        "teacher_stage": "rl",  # or sft
        "init": "midtrain",  # or sft: what the student starts from
        "steps": 100,
        "prompts": 16,
        "group": 8,
        "decode_prompts": unset(int),  # see rl
        "decode_rows": unset(int),
        "overlong_zone": 8,
        "microbatches": 1,
        "temperature": 1.0,
        "distillation": section(DistillationConfig()),
        "reward_weight": 1.0,  # 0: the teacher alone
        "clip_low": 0.2,
        "clip_high": 0.28,
        "presentation": "shuffled",  # or upstream
        "reward": reward(),
        "optimizer": optimizer(1e-3, warmup_steps=5),
        "save_every": 25,
        "log_every": 1,
        "max_skips": 10,
      },
      # init: the prior, sft, opd, or midtrain for none; stages that are not needed for it are left out.
      "rl": {"init": "sft", **learning_from_groups()},
      # A second pass in which the policy learns to answer without reasoning.
      "direct": {
        "enabled": False,
        "init": "rl",  # or midtrain, sft, opd
        # rl; sft on the answers of init; distil: init, after its own reasoning, scores the answers; scores: listwise, for one-pass scoring
        "method": "rl",
        "max_slates": unset(int),  # training slates that init answers for sft; None: all
        **learning_from_groups(steps=60),
      },
      # Layers that change the hidden state least are dropped; the full model then teaches the pruned one on its own answers.
      "prune": {
        "enabled": False,
        "layers": 2,  # how many are kept
        "init": "rl",  # or direct: answers then come without reasoning
        "slates": 64,  # training prompts on which the layers' influence is measured
        "steps": 60,  # of recovery by distillation; with 0 the policy stays as it is cut
        "prompts": 16,
        "group": 8,
        "temperature": 1.0,
        "presentation": "shuffled",
        "optimizer": optimizer(1e-3, warmup_steps=5),
        "save_every": 25,
        "log_every": 1,
        "max_skips": 10,
      },
      "compress": {
        "variants": (),  # of sids (semantic IDs alone), rules, rewriter, soft_tokens; without any the stage is left out
        "budget": 48,  # tokens of a compressed history
        "splits": ("test",),  # whose histories are compressed; the evaluation reads those of the test slates
        "batch_size": 64,
        # From the mid-trained model: fine-tuned on what the rules write, then GRPO.
        "rewriter": {
          "warmup": {
            "batch_size": 16,
            "row_length": 512,
            "steps": 300,
            "optimizer": optimizer(1e-3, schedule="cosine", warmup_steps=20, weight_decay=0.01),
            "save_every": 100,
            "log_every": 10,
            "max_skips": 10,
          },
          "steps": 60,
          "prompts": 8,
          "group": 8,
          "temperature": 1.0,
          "alpha": (0.3, 0.5),  # weight of length against quality (Eq 11), from the first to the last step
          "judge": "ranker",  # the run's policy; or chat, an OpenAI-compatible endpoint
          "metric": "auc",  # or ndcg: by which the ranker judges
          "chat": section(ChatConfig()),
          "loss": section(GRPO, importance_cap=unset(float)),
          "optimizer": optimizer(5e-5, warmup_steps=5),
          "save_every": 20,
          "log_every": 1,
          "max_skips": 10,
        },
        # Vectors of an item, which the frozen policy reads instead of its tokens.
        "soft_tokens": {
          "per_item": 1,
          "width": 128,
          "batch_size": 16,
          "steps": 300,
          "temperature": 1.0,  # of the policy's answers to full prompts, on which both are compared
          "optimizer": optimizer(1e-3, schedule="cosine", warmup_steps=20),
          "save_every": 100,
          "log_every": 10,
          "max_skips": 10,
        },
      },
      "evaluation": {
        "batch_size": 64,
        "max_slates": unset(int),  # None: all test slates
        "gain": "exponential",
        "resamples": 10_000,
        "shuffles": 2,  # shuffled presentations, beside the upstream one
      },
    }
  )
