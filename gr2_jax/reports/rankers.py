"""The card's tables of rankers: who beats whom, the headline, all rankers and pairs, and the orders in which candidates are shown."""

from collections.abc import Iterable, Mapping
from typing import Any

from gr2_jax.evaluation.results import BASELINE, COMPRESSED, REQUIRED_RANKERS
from gr2_jax.reports.names import HEADLINE, TABLE_METRICS, ranker_title, sort_rankers
from gr2_jax.reports.tables import count_slates, escape_markdown, format_lift, format_number, markdown_table
from gr2_jax.reports.verdict import LEVEL_NOTE, list_comparisons

_HEADLINE_METRICS = {metric: TABLE_METRICS[metric] for metric in ("recall@1", "recall@3", "ndcg@3")}
_METRICS_NOTE = (
  "R@k: the share of a slate's positive candidates among the first k; with a single target, how often it stands there. N@k: NDCG of the "
  "first k, which counts a place the less the later it comes. MRR: mean of 1 / rank of the first positive one. All lie in 0 to 1, and "
  "higher is better; an invalid answer scores 0. A difference without % is not relative: the upstream order's own mean is 0, or may be."
)
_PAIRS_NOTE = "p: two-sided, of the difference being 0, from the same resamples."
_PRESENTATIONS_NOTE = (
  "shown: the order in which the prompt lists the candidates. A model that re-ranks well only when it is shown the upstream order has "
  "learnt positions."
)


def titles_of(results: Mapping[str, Any]) -> Mapping[str, str]:
  """The titles of the rankers that are no classical ones; files of the versions without titles have none."""
  titles: Mapping[str, str] = results.get("titles", {})
  return titles


def write_ranker(name: str, titles: Mapping[str, str]) -> str:
  """A ranker's title in Markdown."""
  return escape_markdown(ranker_title(name, titles))


def rankers_table(table: Mapping[str, Any], names: Iterable[str], metrics: Mapping[str, str], titles: Mapping[str, str]) -> str:
  """Rankers of a table of results.json (`orders`, `paired`), each value above its relative difference to the upstream order."""
  rows = []
  for name in sort_rankers(names, titles):
    cells = []
    for metric in metrics:
      lift = format_lift(table["paired"].get(f"{name}_vs_{BASELINE}", {}).get(metric))
      cells.append(format_number(table["orders"][name][metric]) + (f"<br>{lift}" if lift else ""))
    rows.append([write_ranker(name, titles), *cells])
  return markdown_table(["ranker", *metrics.values()], rows)


def comparisons_section(results: Mapping[str, Any]) -> str:
  """The pairs that a reader looks for, a line each."""
  lines = list_comparisons(results, escape_markdown)
  if not lines:
    return "No policy was compared with another ranker in this run."
  return "\n".join(f"- {line}" for line in lines) + f"\n\n{LEVEL_NOTE}"


def headline_section(results: Mapping[str, Any]) -> str:
  """The rankers that a reader looks for, in three metrics."""
  of = results["bootstrap"]
  drawn = f"{of['clusters']:,} {'slates' if of['clusters'] == results['n'] else 'users'}"
  interval = "no interval, since all slates are of one user" if of["clusters"] == 1 else "its paired 95 % interval"
  resamples = "" if of["clusters"] == 1 else f" ({of['resamples']:,} resamples of {drawn})"
  return "\n\n".join(
    [
      f"{count_slates(results['n'], 'test ')}; NDCG with {results['gain']} gain. Below each value the relative difference to the upstream "
      f"order with {interval}{resamples}.",
      rankers_table(results, (name for name in HEADLINE if name in results["orders"]), _HEADLINE_METRICS, titles_of(results)),
    ]
  )


def all_rankers_section(results: Mapping[str, Any]) -> str:
  """Every ranker in all metrics, what was not measured, and every pair that was compared beside those with the upstream order."""
  titles = titles_of(results)
  missing = [name for name in REQUIRED_RANKERS if name not in results["orders"]]
  text = [rankers_table(results, results["orders"], TABLE_METRICS, titles), _METRICS_NOTE]
  if missing:
    text.append(f"Not measured in this run: {', '.join(write_ranker(name, titles) for name in missing)}.")
  others = [pair for pair in results["paired"] if not pair.endswith(f"_vs_{BASELINE}") and not pair.startswith(COMPRESSED)]
  if others:
    rows = []
    for pair in others:
      name, base = pair.split("_vs_")
      paired = [results["paired"][pair][metric] for metric in TABLE_METRICS]
      cells = (f"{format_lift(of)}<br>p = {format_number(of['p'])}" for of in paired)
      rows.append([f"{write_ranker(name, titles)} over {write_ranker(base, titles)}", *cells])
    text += [markdown_table(["relative difference", *TABLE_METRICS.values()], rows), _PAIRS_NOTE]
  return "\n\n".join(text)


def presentations_section(results: Mapping[str, Any]) -> str:
  """The metrics of the rankers that were shown the candidates in several orders, by order."""
  presented, titles = results["presentations"], titles_of(results)
  if not presented:
    return "All rankers were measured with the candidates shown in the upstream order only."
  rows = [
    [write_ranker(name, titles), presentation.replace("_", " "), *(format_number(of[m]) for m in TABLE_METRICS)]
    for name in sort_rankers(presented, titles)
    for presentation, of in presented[name].items()
  ]
  return markdown_table(["ranker", "shown", *TABLE_METRICS.values()], rows) + "\n\n" + _PRESENTATIONS_NOTE
