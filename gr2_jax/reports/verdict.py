"""What a run showed in one line: whether the policy beats the order it was given, and whether it beats trees on counted features."""

from collections.abc import Mapping
from typing import Any

from gr2_jax.evaluation.results import BASELINE, POLICY
from gr2_jax.reports.names import TABLE_METRICS, ranker_title
from gr2_jax.reports.tables import ONE_USER, ONE_USER_NOTE, format_lift, is_decided

_METRICS = ("recall@1", "ndcg@3")
_TREES = ("lambdamart", "lambdamart_all")
_PRIOR, _CONTROL = "sft", "rl_control"
_START = "midtrain"
_VERBS = {1: "beats", -1: "loses to", 0: "is not told apart from"}  # by the sign of a difference, 0 where its interval holds 0


def verdict(results: Mapping[str, Any]) -> str:
  """`The RL policy beats the upstream order: R@1 +24.0 % [9.0, 41.0], …. It loses to LambdaMART: …`, of results.json.

  Told of the line that validation slates chose (`main_line` of results.json; files without one have the RL policy alone), and where there
  are several, what RL adds to its start and to its control. A difference whose interval holds 0 is said to lie within its interval. Of
  what was not compared nothing is said. A policy that orders worse than the mid-trained model is told so.
  """
  titles, paired = results.get("titles", {}), results["paired"]
  if POLICY not in results["orders"]:
    return "No policy was measured in this run."
  main = results.get("main_line", POLICY)
  policy, base = (ranker_title(name, titles) for name in (main, BASELINE))
  chosen = f", chosen on validation slates before the {ranker_title(POLICY, titles)}," if main != POLICY else ""
  sentences = [_compare(f"The {policy}{chosen}", f"the {base}", paired.get(f"{main}_vs_{BASELINE}", {}))]
  sentences += [_compare("It", ranker_title(tree, titles), of) for tree in _TREES if (of := paired.get(f"{main}_vs_{tree}"))]
  against_start = paired.get(f"{main}_vs_{_START}", {})
  if any(against_start[metric]["delta"] < 0 for metric in _METRICS if metric in against_start):
    sentences.append(_compare("It", f"the {ranker_title(_START, titles)} asked for the next item alone", against_start))
  if "main_line" in results:
    prior = next(iter(results.get("priors", ())), _PRIOR)
    start = f"the {ranker_title(prior, titles)} that it started from"
    lines = ((f"The {ranker_title(POLICY, titles)}", start, prior), ("It", f"its {ranker_title(_CONTROL, titles)}", _CONTROL))
    sentences += [_compare(one, other, of) for one, other, name in lines if (of := paired.get(f"{POLICY}_vs_{name}"))]
  text = " ".join(sentences)
  return f"{text} {ONE_USER_NOTE}" if ONE_USER in text else text


def _compare(one: str, other: str, paired: Mapping[str, Mapping[str, Any]]) -> str:
  """`ONE beats OTHER: METRIC difference, METRIC difference.`"""
  found = {metric: paired[metric] for metric in _METRICS if metric in paired}
  if not found:
    return f"{one} and {other} were not compared in pairs."
  signs = {(1 if of["delta"] > 0 else -1) if is_decided(of) else 0 for of in found.values()}
  verb = _VERBS[signs.pop()] if len(signs) == 1 else "against"
  return f"{one} {verb} {other}: {', '.join(f'{TABLE_METRICS[metric]} {_difference(of)}' for metric, of in found.items())}."


def _difference(of: Mapping[str, Any]) -> str:
  within = of["delta_ci95"] is not None and not is_decided(of)
  return format_lift(of) + (" (within its interval)" if within else "")
