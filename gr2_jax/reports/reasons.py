"""What reasonings are worth as reasons, in plain words: a table for the card, and a warning beside the verdict."""

from collections.abc import Mapping
from typing import Any

from gr2_jax.reports.names import ranker_title, sort_rankers
from gr2_jax.reports.tables import escape_markdown, markdown_table

_NOTE = (
  "states nothing: share of reasonings without a fact about a candidate. true: share of the stated facts that the evidence table says too, "
  "to the bucket. matters: share of them whose candidate's score moves the way that the reasoning says (down for the best, up for another) "
  "against the others' when that fact is set to its median behind the same reasoning; measured on the first {slates} slates, of facts that "
  "the policy reads. names the first: share of reasonings whose best candidate is the answer's first. In brackets 95 % intervals."
)
_FEW = 0.95  # of what is stated, and of the names, below which readers are warned


def reasons_table(results: Mapping[str, Any]) -> str:
  """The table of all rankers that reason, with what its columns mean; a sentence where there is none."""
  reasons, titles = results.get("reasons", {}), results.get("titles", {})
  if not reasons:
    return "No ranker of this run reasons in words that can be checked."
  rows = []
  for name in sort_rankers(reasons, titles):
    of = reasons[name]
    shares = [_write_share(of[key]) for key in ("true", "matter", "named_first")]
    rows.append([escape_markdown(ranker_title(name, titles)), f"{100 * of['no_fact']:.0f} %", f"{of['facts']:.1f}", *shares])
  head = ["ranker", "states nothing", "facts", "true", "matters", "names the first"]
  sampled = max(of["matter_slates"] for of in reasons.values())
  by_fact = [
    [escape_markdown(ranker_title(name, titles)), f"`{fact}`", f"{of['stated']:,}", f"{100 * of['true']:.0f} %"]
    for name in sort_rankers(reasons, titles)
    for fact, of in reasons[name]["by_fact"].items()
  ]
  return "\n\n".join(
    [markdown_table(head, rows), _NOTE.format(slates=f"{sampled:,}"), markdown_table(["ranker", "fact", "stated", "true"], by_fact)]
  )


def warn_of_reasons(results: Mapping[str, Any]) -> str:
  """`Reasonings that are no reasons to rely on: RL policy: 36 % name the answer's first, …`, where they are not; else nothing."""
  titles, warnings = results.get("titles", {}), []
  for name, of in results.get("reasons", {}).items():
    true, named = of["true"]["share"], of["named_first"]["share"]
    found = [f"{100 * named:.0f} % name the answer's first"] if named < _FEW else []
    if true is None:
      found.append("none states a fact")
    elif true < _FEW:
      found.append(f"{100 * true:.0f} % of the facts in them are true")
    if found:
      warnings.append(f"{ranker_title(name, titles)}: {', '.join(found)}")
  return f"Reasonings that are no reasons to rely on: {'; '.join(warnings)}." if warnings else ""


def _write_share(of: Mapping[str, Any]) -> str:
  if of["share"] is None:
    return "–"
  interval = "" if of["ci95"] is None else f" [{100 * of['ci95'][0]:.1f}, {100 * of['ci95'][1]:.1f}]"
  return f"{100 * of['share']:.1f} %{interval}"
