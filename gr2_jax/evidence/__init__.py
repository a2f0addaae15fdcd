"""Facts of a slate's candidates, each strictly from before the request: one place for trees, prompts, teachers and serving."""

from gr2_jax.evidence.codes import FactCodes
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts, next_counts
from gr2_jax.evidence.facts import BASIC_FACTS, FACTS, Fact
from gr2_jax.evidence.patterns import Patterns, fit_patterns, mine_priming, pattern_features
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features

__all__ = [
  "BASIC_FACTS",
  "FACTS",
  "Fact",
  "FactCodes",
  "ItemCounts",
  "LogCounts",
  "Patterns",
  "TransitionCounts",
  "fit_patterns",
  "mine_priming",
  "next_counts",
  "pattern_features",
  "slate_features",
]
