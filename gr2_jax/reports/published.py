"""What the papers report, each figure with its source, beside what a run or a sweep has measured of the same.

The one place for figures that this project did not measure. They are of other data and larger models: what is claimed, no target here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gr2_jax.evaluation.results import BASELINE, COMPRESSED, POLICY
from gr2_jax.reports.names import TABLE_METRICS
from gr2_jax.reports.tables import escape_markdown, format_lift, markdown_table

_REPORT = "[2606.31984](https://arxiv.org/abs/2606.31984)"
_ABSTRACT = f"{_REPORT}, abstract: industrial logs"
_READERS = f"{_REPORT}, by readers' notes: industrial logs"
_V1 = "[2602.07774](https://arxiv.org/abs/2602.07774), by readers' notes: Amazon Beauty"
_STUDENT = "opd"
_NOTE = (
  "here: relative differences in pairs on the same slates, and shares of a teacher's gain, with their 95 % intervals. Data and models are "
  "others than the papers', so signs can be compared, and sizes cannot."
)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A published figure, and where its like stands in results: `ranker` against `base`, of any variant, in `metric`.

  `kind`: the relative difference; of compressed histories the tokens that go; or the share of a teacher's gain that `ranker` keeps.
  """

  what: str
  value: str
  source: str
  ranker: str
  base: str = BASELINE
  metric: str = "recall@1"
  kind: Literal["relative", "tokens", "share"] = "relative"


# By study; a study that no paper gives a figure of has none.
PUBLISHED: Mapping[str, Sequence[Figure]] = {
  "main": (
    Figure("R@1 over the production order", "+18.7 %", _ABSTRACT, POLICY, metric="recall@1"),
    Figure("R@3 over the production order", "+7.1 %", _ABSTRACT, POLICY, metric="recall@3"),
    Figure("N@3 over the production order", "+9.6 %", _ABSTRACT, POLICY, metric="ndcg@3"),
  ),
  "prior": (
    Figure("share of the teacher's gain that OPD keeps", "82 %", _READERS, _STUDENT, kind="share"),
    Figure(
      "R@1 of SFT alone against the order it was given", "-3.7 % (rejection sampling), -30.6 % (targeted)", f"{_V1}, recomputed", "sft"
    ),
    Figure("R@1 of RL after SFT against that order", "+2.9 % (rejection), +0.2 % (targeted)", f"{_V1}, recomputed", POLICY),
  ),
  "reward_hacking": (
    Figure("R@1 of a policy that returns to its input order", "+0.2 %", f"{_V1}, recomputed: RL after targeted traces", POLICY),
  ),
  "compressor": (
    Figure("prompt tokens that go", "more than 80 %", _READERS, COMPRESSED, POLICY, kind="tokens"),
    Figure("R@3 against full prompts", "equal or slightly better", _READERS, COMPRESSED, POLICY, metric="recall@3"),
    Figure("N@3 against full prompts", "equal or slightly better", _READERS, COMPRESSED, POLICY, metric="ndcg@3"),
  ),
  "internalise": (
    Figure(
      "R@1 of direct answers against the same after a reasoning",
      "+1.5 % on reasoning-hard slates",
      f"{_READERS}, recomputed",
      "direct",
      POLICY,
    ),
  ),
  "pruning": (),
  "rl_value": (),
}


def published_in_run(study: str, results: Mapping[str, Any]) -> str:
  """A Markdown table of a study's published figures beside those of results.json."""
  return _table(study, [(results["dataset"], results)], [])


def published_in_sweep(study: str, sweep: Mapping[str, Any]) -> str:
  """A Markdown table of a study's published figures beside those of each variant in sweep.json."""
  found: list[tuple[str, Mapping[str, Any]]] = []
  for variant, of in sweep["variants"].items():
    asked = [line for lines in sweep["comparisons"].values() for line in lines if line["order"].split("/")[0] == variant]
    own = {_pair(line): line["paired"] for line in asked if line["base"].split("/")[0] == variant}
    found.append((variant.replace("_", " "), {"paired": of["paired"] | own}))
    if of["compressed"]:
      found.append((variant.replace("_", " "), of["compressed"]))
  return _table(study, found, sweep["shares"])


def _pair(line: Mapping[str, Any]) -> str:
  return "_vs_".join(line[side].split("/")[1] for side in ("order", "base"))


def _table(study: str, measured: Sequence[tuple[str, Mapping[str, Any]]], shares: Sequence[Mapping[str, Any]]) -> str:
  figures = PUBLISHED[study]
  if not figures:
    return "No paper gives a figure for this study that could be read."
  rows = []
  for figure in figures:
    cells = _share_cells(figure, shares) if figure.kind == "share" else _cells(figure, measured)
    for place, (where, cell) in enumerate(cells or [("–", "not measured here")]):
      told = ["", "", ""] if place else [figure.what, figure.value, figure.source]
      rows.append([*told, escape_markdown(where), cell])
  return markdown_table(["figure", "papers", "source", "variant", "here"], rows) + f"\n\n{_NOTE}"


def _cells(figure: Figure, measured: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, str]]:
  found = []
  for label, of in measured:
    for pair, paired in of["paired"].items():
      ranker, base = pair.split("_vs_")
      many = figure.ranker == COMPRESSED and ranker.startswith(COMPRESSED)
      if base != figure.base or not (ranker == figure.ranker or many):
        continue
      where = f"{label}, {ranker.removeprefix(COMPRESSED).replace('_', ' ')}" if many else label
      if figure.kind == "tokens":
        kept = of["cost"][ranker]["prompt_tokens"] / of["cost"][base]["prompt_tokens"]
        found.append((where, f"{100 * (1 - kept):.0f} %"))
      elif figure.metric in paired:
        found.append((where, format_lift(paired[figure.metric])))
  return found


def _share_cells(figure: Figure, shares: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
  found = []
  for of in shares:
    variant, ranker = of["order"].split("/")
    if ranker == figure.ranker and of[figure.metric]["share"] is not None:
      low, high = of[figure.metric]["ci95"]
      share = f"{TABLE_METRICS[figure.metric]} {100 * of[figure.metric]['share']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
      found.append((variant.replace("_", " "), share))
  return found
