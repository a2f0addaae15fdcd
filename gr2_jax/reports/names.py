"""How tables and plots call orders and metrics, and in which order they list them."""

from collections.abc import Iterable

_ORDER_TITLES = {
  "upstream": "upstream order",
  "random": "random",
  "popularity": "popularity",
  "last_transition": "last-item transitions",
  "lambdamart": "LambdaMART",
  "sft": "SFT policy",
  "opd": "OPD policy",
  "policy": "RL policy",
  "sft_direct": "SFT without reasoning",
  "direct": "direct policy",
  "direct_scores": "direct policy, one pass",
  "pruned": "pruned policy",
  "oracle": "oracle",
}

TABLE_METRICS = {"recall@1": "R@1", "recall@3": "R@3", "ndcg@3": "N@3", "ndcg@5": "N@5", "mrr": "MRR"}


def order_title(name: str) -> str:
  """The name that a reader sees."""
  return _ORDER_TITLES.get(name, name.replace("_", " "))


def sort_orders(names: Iterable[str]) -> list[str]:
  """Known orders from upstream to oracle, the others before the oracle in their own order."""
  known = list(_ORDER_TITLES)
  return sorted(names, key=lambda name: known.index(name) if name in known else known.index("oracle") - 0.5)
