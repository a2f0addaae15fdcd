"""Purpose: the report's own form of prompt and answer on the small market: full instructions, knowledge priming, titles, one JSON object.
Paper: v1 on Beauty, prompts of about 2,200 tokens: N@5 .5234 after RL with knowledge priming, .5172 without.
Expected: not measured; shows the form end to end.
Hardware: 2 CPU cores; not timed, `tiny` two minutes.
Command: python -m experiments.run --config=configs/verbose_prompts.py --workdir=runs/verbose
Measured: nothing yet; docs/results/README.md lists what is.

Items come with semantic ID, title and category, and free answers with an explanation. `seed=N`: another market with other draws; `tiny`:
for tests.
"""

from ml_collections import ConfigDict

from configs import small_market
from experiments.flags import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(arg, tiny=False, seed=0)
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "verbose_prompts"
  config.decoding.constraint = "none"  # a JSON object is read strictly, not written under a mask
  config.prompt.update(
    {
      "instructions": "full",
      "answer": "json",
      "knowledge_priming": True,
      "sid_markers": True,
      "reference": "sid",
      "item_fields": ("title", "category"),
      "history_fields": ("title", "category"),
    }
  )
  # The longest prompt has 761 tokens and the longest scripted answer 130; on the tiny market, whose slates and histories are longer and
  # whose vocabulary has fewer words in one piece, 1,291 and 201. The rest is room for markets of other seeds.
  prompt, answer = (1408, 256) if args.tiny else (896, 160)
  config.prompt.max_prompt_tokens = prompt
  config.decoding.max_new_tokens = answer
  config.sft.row_length = prompt + answer
  return config
