"""How rankers do in groups of slates: a table a dimension for the policies beside the trees, and all rankers in the segments."""

from collections.abc import Iterator, Mapping
from typing import Any

from gr2_jax.evaluation.results import BASELINE, POLICY, TREES
from gr2_jax.evaluation.segments import DAYS, HEAD, TORSO
from gr2_jax.reports.names import TABLE_METRICS
from gr2_jax.reports.rankers import rankers_table, titles_of, write_ranker
from gr2_jax.reports.tables import count_slates, escape_markdown, format_lift, format_number, markdown_table
from gr2_jax.reports.verdict import main_line

FEWEST = 50  # slates of a group that is shown: of fewer, R@1 is known to no more than 0.14 either way
_METRIC = "ndcg@3"
_FULL_METRICS = {m: TABLE_METRICS[m] for m in ("recall@1", "recall@3", "ndcg@3")}
_SEEN = ("seen_users_and_items", "unseen_users", "unseen_items")
# Dimension -> title and meaning; those of `evaluation.segments`, and those that other parts of results.json hold.
_DIMENSIONS = {
  "history_length": ("history length", "items of the history that the slate comes with"),
  "upstream_place": ("target's place", "in the upstream order, from 1"),
  "target_popularity": (
    "target's popularity",
    "by its events in the log without those that are asked for; head: the most frequent items, which have the first "
    f"{100 * HEAD:.0f} % of all events together, torso: the next ones, up to {100 * TORSO:.0f} %, tail: all others",
  ),
  "day": ("day", "whether the item before was taken on the request's day (UTC), where the order of the two may be a tie-break"),
  "segment": ("segment", "as the slates name it"),
  "seen": ("seen before", "whether user and target have an event before the days of validation; a slate may be of two groups"),
}
_HARD_NOTE = (
  "Reasoning-hard are slates whose target the SFT policy does not put first when it answers without reasoning (hard_slates.json)."
)


def segments_section(results: Mapping[str, Any]) -> str:
  """A table for each dimension by which slates are grouped, of the upstream order, both trees and the policies in N@3."""
  tables, few = [], []
  for dimension, groups in _dimensions(results):
    title, meaning = _DIMENSIONS[dimension]
    shown = {name: of for name, of in groups.items() if of["n"] >= FEWEST}
    left = ", ".join(f"{_name(name)} ({of['n']})" for name, of in groups.items() if name not in shown)
    if shown:
      tables.append(f"{_groups_table(results, title, shown)}\n\n{title}: {meaning}.{f' Too few slates: {left}.' if left else ''}")
    else:
      few.append(f"{title}: {left}")
  text = [f"{TABLE_METRICS[_METRIC]}; differences are relative, with paired 95 % intervals.", *tables] if tables else []
  if few:
    text.append(f"Fewer than {FEWEST} slates in every group of {'; '.join(few)}.")
  if "buckets" not in results:
    text.append("Groups by history length, place and popularity were not measured in this run, which is older than they are.")
  return "\n\n".join(text) or "The slates were not grouped."


def all_segments_section(results: Mapping[str, Any]) -> str:
  """All rankers in every segment that the slates name, and in the subsets that stages have found."""
  segments, subsets = results["segments"], results["subsets"]
  if not segments and not subsets:
    return "The slates carry no segments."
  text = []
  for name, table in (segments | subsets).items():
    rankers = rankers_table(table, table["orders"], _FULL_METRICS, titles_of(results))
    text.append(f"**{_name(name)}** ({count_slates(table['n'])})\n\n{rankers}")
  if "reasoning_hard" in subsets:
    text.append(_HARD_NOTE)
  return "\n\n".join(text)


def _dimensions(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Dimension -> group -> table, of those that are there, in the order of `_DIMENSIONS`."""
  segments, subsets = results["segments"], results["subsets"]
  found = {
    "day": {name: segments[name] for name in DAYS if name in segments},
    "segment": {name: of for name, of in segments.items() if name not in DAYS},
    "seen": {name: subsets[name] for name in _SEEN if name in subsets},
  }
  found |= results.get("buckets", {})  # files of the versions without buckets have none; `day` stands there or among the segments
  return ((dimension, found[dimension]) for dimension in _DIMENSIONS if found.get(dimension))


def _groups_table(results: Mapping[str, Any], title: str, groups: Mapping[str, Any]) -> str:
  titles, main = titles_of(results), main_line(results)
  lines = dict.fromkeys((POLICY, main))
  names = [name for name in (BASELINE, *TREES, *lines) if name in results["orders"]]
  bases = [name for name in (BASELINE, *TREES) if f"{main}_vs_{name}" in results["paired"]]
  header = [title, "slates", *(write_ranker(name, titles) for name in names)]
  header += [f"{write_ranker(main, titles)} over {write_ranker(base, titles)}" for base in bases]
  rows = []
  for group, of in groups.items():
    values = [format_number(of["orders"][name][_METRIC]) for name in names]
    lifts = [format_lift(of["paired"][f"{main}_vs_{base}"][_METRIC]) for base in bases]
    rows.append([_name(group), f"{of['n']:,}", *values, *lifts])
  return markdown_table(header, rows)


def _name(group: str) -> str:
  return escape_markdown(group.replace("_", " "))
