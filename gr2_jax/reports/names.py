"""How tables and plots call rankers and metrics, and in which order they list them."""

from collections.abc import Iterable, Mapping

# The classical rankers; the titles of all others stand in results.json.
_CLASSICAL = {
  "upstream": "upstream order",
  "random": "random",
  "popularity": "popularity",
  "last_transition": "last-item transitions",
  "midtrain": "mid-trained model",
  "lambdamart": "LambdaMART",
  "lambdamart_all": "LambdaMART, all facts",
  "prm": "PRM",
  "listwise_mlp": "listwise MLP",
  "transition_graph": "transition graph with text",
  "bayes": "Bayes order",
  "oracle": "oracle",
}

# The rows that a reader looks for first, of those that a run has.
HEADLINE = (
  *("upstream", "lambdamart", "lambdamart_all", "midtrain", "sft", "opd", "policy", "rl_control", "direct", "direct_scores"),
  *("bayes", "oracle"),
)

CEILINGS = ("bayes", "oracle")  # they know what no ranker can, the second even the user

TABLE_METRICS = {"recall@1": "R@1", "recall@3": "R@3", "ndcg@3": "N@3", "ndcg@5": "N@5", "mrr": "MRR"}

# What is measured besides, see `evaluation.slate_metrics`.
_OTHER_METRICS = {
  "true_recall@1": "true R@1",
  "true_ndcg@3": "true N@3",
  "brands@3": "distinct brands of the first three, share",
  "small_brands@1": "small brands at the first place, share",
  "price@3": "mean log price of the first three, over the slate's",
  "slate_reward": "reward of the slate",
}


def metric_title(name: str) -> str:
  """The name that a reader sees of a metric."""
  return (TABLE_METRICS | _OTHER_METRICS).get(name, name)


def ranker_title(name: str, titles: Mapping[str, str]) -> str:
  """The name that a reader sees; `titles`: those of the rankers that are no classical ones (`titles` of results.json)."""
  return (_CLASSICAL | dict(titles)).get(name, name.replace("_", " "))


def sort_rankers(names: Iterable[str], titles: Mapping[str, str]) -> list[str]:
  """The classical rankers, those of `titles` in its order, the others in their own, and at the end those that know what none can."""
  known = [*(name for name in _CLASSICAL if name not in CEILINGS), *titles]

  def place(name: str) -> int:
    return known.index(name) if name in known else len(known) + (CEILINGS.index(name) + 1 if name in CEILINGS else 0)

  return sorted(names, key=place)
