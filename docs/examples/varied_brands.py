"""A reward on the host: a business rule that reads the catalogue, and a rule on the answer's text.

Train with it by `--config.rl.reward.fn=docs.examples.varied_brands:reward`. It is plain Python: numpy arrays, the text of every answer, the
slates' records and the catalogue.
"""

import re

import numpy as np

from gr2_jax.data.schema import Catalogue, Slate
from gr2_jax.rewards.own import Answers, Rewards, Slates, on_host

INVALID = -1.0
REASONED = 0.1  # for an answer that gives a reason


def reciprocal_rank(ranking: list[int], slate: Slate) -> float:
  """1 / rank of the best-labelled candidate, of several the one put highest."""
  best = max(slate.labels)
  return next((1 / rank for rank, candidate in enumerate(ranking, start=1) if best > 0 and slate.labels[candidate] == best), 0.0)


def opens_with_one_brand(ranking: list[int], slate: Slate, catalogue: Catalogue) -> bool:
  """Whether the first two candidates are of the same brand, and it is known."""
  rows = catalogue.to_rows([slate.candidates[candidate] for candidate in ranking[:2]])
  brands = [catalogue.items[row].brand for row in rows]
  return len(brands) == 2 and bool(brands[0]) and brands[0] == brands[1]


def reasons(text: str) -> bool:
  """Whether there is text in the think block."""
  thought = re.search(r"<think>(.*?)</think>", text, flags=re.DOTALL)
  return thought is not None and bool(thought[1].strip())


@on_host
def reward(answers: Answers, slates: Slates) -> Rewards:
  """Reciprocal rank, halved for an answer that opens with two candidates of one brand; a little more for one that gives a reason."""
  total = np.full(answers.valid.shape, INVALID, np.float32)
  raw = total.copy()
  for p, g in np.argwhere(answers.valid):
    slate = slates.records[p]
    ranking = answers.rankings[p, g, : len(slate.candidates)].tolist()
    earned = reciprocal_rank(ranking, slate)
    if opens_with_one_brand(ranking, slate, slates.catalogue):
      earned /= 2
    # Groups are filtered on `raw`: one whose rankings earn alike is not learnt from, however its texts differ.
    raw[p, g], total[p, g] = earned, earned + (REASONED if reasons(answers.texts[p][g]) else 0.0)
  return Rewards(total, raw)
