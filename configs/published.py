"""Runs that start from a published language model: prompts in words, low-rank adapters, and the sizes of one accelerator.

`configs/amazon.py:beauty,smollm2` and its like call these; by itself this file is no config.
"""

from configs.base import optimizer

# Name -> (folder that the config asks for unless --config.model.init names another, rows of a batch on one 80 GB accelerator).
PUBLISHED = {
  "smollm2": ("weights/SmolLM2-135M-Instruct", 32),
  "qwen3_0_6b": ("weights/Qwen3-0.6B", 16),
  "gemma3_1b": ("weights/gemma-3-1b-it", 8),
}
# What the tree gains most by, and few, since each is a clause for each candidate.
_FACTS = ("upstream_rank", "next_count_last", "popularity")


def make_published(config, name, small):
  """Titles and evidence in sentences, candidates by the names of their slots, an answer by reward after reasonings of the tree."""
  folder, batch = PUBLISHED[name]
  config.name += f"_{name}"
  config.model.update({"init": f"hf:{folder}", "dtype": "bfloat16", "remat": True})
  config.model.lora.update({"rank": 32, "alpha": 64.0})
  config.midtrain.form = "tokens"
  config.slates.source = "ctr"
  config.midtrain.mixture.update({"next_item": 0.5, "persona": 0.1, "item_to_text": 0.2, "text_to_item": 0.2})
  config.prompt.update(
    {
      "order": "history_first",
      "reference": "slot",
      "instructions": "full",
      "item_fields": ("title", "brand"),
      "history_fields": ("title",),
      "hints": (),
      "facts": _FACTS,
      "fact_form": "sentences",
      "max_words": 24,
      "max_history": 10,
      "max_prompt_tokens": 1536,
    }
  )
  config.evidence.tree.enabled = True
  config.traces.source = "tree"
  config.decoding.update({"constraint": "slate", "max_new_tokens": 256})
  config.midtrain.update({"steps": 3000, "batch_size": batch, "row_length": 1024, "save_every": 500})
  config.midtrain.optimizer = optimizer(2e-4, schedule="cosine", warmup_steps=100, weight_decay=0.01)
  config.sft.update({"steps": 1500, "batch_size": batch, "row_length": 1792})
  config.sft.optimizer = optimizer(1e-4, schedule="cosine", warmup_steps=50, weight_decay=0.01)
  config.rl.update({"steps": 300, "prompts": 32, "group": 8, "microbatches": 4})
  config.rl.optimizer = optimizer(2e-5, warmup_steps=10)
  config.direct.update({"prompts": 32, "group": 8, "microbatches": 4})
  if small:
    _make_small(config)


def _make_small(config):
  """Two CPU cores: short prompts, rankings at once, and a training on 1,500 slates."""
  config.model.update({"dtype": "float32", "remat": False})
  config.model.lora.update({"rank": 16, "alpha": 32.0})
  config.prompt.update({"instructions": "short", "item_fields": ("title",), "facts": _FACTS[:2], "max_words": 10, "max_history": 3})
  config.prompt.direct = True
  config.prompt.max_prompt_tokens = 1024
  config.midtrain.update({"steps": 0, "eval_users": 20})
  config.midtrain.optimizer.warmup_steps = 0
  config.traces.update({"source": "scripted", "max_slates": 1500})
  config.evidence.tree.enabled = False
  config.sft.update({"steps": 350, "batch_size": 2, "row_length": 1152, "save_every": 25, "log_every": 5})
  config.rl.update({"steps": 10, "prompts": 8, "group": 4})
  config.evaluation.update({"max_slates": 500, "shuffles": 0, "batch_size": 8})


def make_tiny_published(config):
  """For tests, after `make_tiny`: prompts of a tiny tokenizer are long."""
  config.prompt.max_prompt_tokens = 4096
  config.sft.row_length = 4352
  config.model.lora.update({"rank": 2, "alpha": 4.0})
  config.rl.microbatches = config.direct.microbatches = 1
