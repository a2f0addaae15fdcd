"""The policy on compressed histories against the same policy on full ones: tokens kept, ranking in pairs, prefill time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gr2_jax.evaluation.per_slate import PerSlate, pool_seeds
from gr2_jax.evaluation.results import COMPRESSED, POLICY, compare_rankers, mean_metrics
from gr2_jax.reports.names import TABLE_METRICS
from gr2_jax.reports.tables import format_lift, format_number, markdown_table

_METRICS = ("recall@3", "ndcg@3")
_NOTE = (
  "The same policy on prompts whose history was compressed; differences are relative to its answers to full prompts, with paired 95 % "
  "intervals. Tokens are those of the whole prompt, candidates and instructions included; kept: their share of the full one's. Prefill: "
  "the forward pass over a batch of prompts, by slate, all histories taking turns."
)


def compressed_rankers(names: Iterable[str]) -> list[str]:
  """Those of the rankers that are the policy on compressed histories."""
  return [name for name in names if name.startswith(COMPRESSED)]


def compression_table(
  orders: Mapping[str, Mapping[str, float]], paired: Mapping[str, Mapping[str, Any]], cost: Mapping[str, Mapping[str, float]]
) -> str:
  """A line for full histories and one for each compressor, in the three parts' format of results.json; a sentence where there is none."""
  names = compressed_rankers(orders)
  if not names:
    return "No histories were compressed in this run."
  rows = []
  for name in (POLICY, *names):
    tokens, full = cost[name]["prompt_tokens"], cost[POLICY]["prompt_tokens"]
    row = [name.removeprefix(COMPRESSED) if name != POLICY else "full", f"{tokens:,.1f}", f"{100 * tokens / full:.1f} %"]
    for metric in _METRICS:
      of = paired.get(f"{name}_vs_{POLICY}", {}).get(metric)
      row += [format_number(orders[name][metric]), format_lift(of)]
    rows.append([*row, format_number(cost[name].get("prefill_ms"), ".2f")])
  header = ["history", "prompt tokens", "kept"]
  header += [text for metric in _METRICS for text in (TABLE_METRICS[metric], "over full")]
  return markdown_table([*header, "prefill ms"], rows) + "\n\n" + _NOTE


def pool_compressed(tested: Mapping[int, PerSlate], results: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
  """`orders`, `paired` and `cost` of full and compressed histories over the slates of all seeds of one variant; {} where there are none.

  `tested`: seed -> metrics of each slate; `results`: the results.json of each seed. Users of each seed are what is resampled.
  """
  names = compressed_rankers(next(iter(tested.values())).rankers)
  if not names:
    return {}
  metrics, clusters, weights = pool_seeds(tested, (POLICY, *names))
  pairs = [(name, POLICY) for name in names]
  return {
    "orders": {name: mean_metrics(of, weights) for name, of in metrics.items()},
    "paired": compare_rankers(metrics, pairs, clusters, seed=0, resamples=resamples, weights=weights),
    "cost": {
      name: {key: float(np.mean([of["cost"][name][key] for of in results])) for key in results[0]["cost"][name]} for name in metrics
    },
  }
