"""Who beats whom, by paired intervals: a run's verdict in one line, and the comparisons behind it, a line each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gr2_jax.evaluation.results import BASELINE, CEILING, POLICY, TREES
from gr2_jax.reports.names import TABLE_METRICS, ranker_title
from gr2_jax.reports.tables import ONE_USER_NOTE, format_lift, is_decided

_METRICS = ("recall@1", "ndcg@3")
_PRIOR, _CONTROL, _DIRECT, _START = "sft", "rl_control", "direct", "midtrain"
_STANDINGS = ("above", "behind", "level with", "not told apart from")

LEVEL_NOTE = (
  "Above and behind: the paired 95 % interval of the difference lies on one side of 0. Level: it holds 0, which does not show that two "
  "are equal."
)


def main_line(results: Mapping[str, Any]) -> str:
  """The policy that validation slates chose for the run to stand for; files without that choice have the RL policy alone."""
  return str(results.get("main_line", POLICY))


def verdict(results: Mapping[str, Any]) -> str:
  """`The RL policy is above the upstream order; level with LambdaMART. It is above the SFT policy that it started from.`, of results.json.

  Told of the line that validation slates chose, against the upstream order, both trees, and the mid-trained model where that is not behind
  it; then what RL adds to its start and to its control. R@1 and N@3 decide; where they differ, each is told. Of what was not compared
  nothing is said.
  """
  titles, paired = results.get("titles", {}), results["paired"]
  if POLICY not in results["orders"]:
    return "No policy was measured in this run."
  main, prior = main_line(results), _prior(results)
  chosen = f", chosen on validation slates before the {_title(POLICY, titles)}," if main != POLICY else ""
  others = {BASELINE: f"the {_title(BASELINE, titles)}"} | {tree: _title(tree, titles) for tree in TREES}
  if any(of["delta"] < 0 for of in _compared(paired, main, _START).values()):
    others[_START] = f"the {_title(_START, titles)} asked for the next item alone"
  found = [(title, of) for name, title in others.items() if (of := _compared(paired, main, name))]
  if not found:
    return f"The {_title(main, titles)} and the {_title(BASELINE, titles)} were not compared in pairs."
  sentences = [f"The {_title(main, titles)}{chosen} is {_write_standings(found)}."]
  added = {prior: f"the {_title(prior, titles)} that it started from", _CONTROL: f"its {_title(_CONTROL, titles)}"}
  found = [(title, of) for name, title in added.items() if (of := _compared(paired, POLICY, name))]
  if found:
    sentences.append(f"{'It' if main == POLICY else f'The {_title(POLICY, titles)}'} is {_write_standings(found)}.")
  text = " ".join(sentences)
  return f"{text} {ONE_USER_NOTE}" if _STANDINGS[-1] in text else text


def list_comparisons(results: Mapping[str, Any], escape: Callable[[str], str] = str) -> list[str]:
  """`The RL policy is above LambdaMART: R@1 +3.0 % [1.2, 4.9], N@3 …`, a line for every pair that a reader looks for and that was compared.

  `escape` is applied to the titles of rankers.
  """
  titles, lines = results.get("titles", {}), []
  for name, other, role in _pairs(results):
    if of := _compared(results["paired"], name, other):
      differences = ", ".join(f"{TABLE_METRICS[metric]} {format_lift(of[metric])}" for metric in of)
      one, base = (escape(_title(x, titles)) for x in (name, other))
      lines.append(f"The {one} is {_write_standing(of, role.format(base))}: {differences}.")
  return lines


def _pairs(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
  """(ranker, base, how the base is called) of the comparisons that are told, the chosen line first."""
  main, prior = main_line(results), _prior(results)
  for line in dict.fromkeys((main, POLICY)):
    yield line, BASELINE, "the {}"
    yield from ((line, tree, "{}") for tree in TREES)
    yield line, _START, "the {} asked for the next item alone"
    yield line, CEILING, "the {}, which no ranker is above in expectation"
  yield POLICY, prior, "the {} that it started from"
  yield POLICY, _CONTROL, "its {}, trained by supervision on the same labels"
  yield _DIRECT, POLICY, "the {}"
  yield prior, BASELINE, "the {}"


def _prior(results: Mapping[str, Any]) -> str:
  """What RL may have started from: the latest stage before it."""
  return str(next(iter(results.get("priors", ())), _PRIOR))


def _title(name: str, titles: Mapping[str, str]) -> str:
  """A ranker's title within a sentence, where commas part the rankers."""
  title, comma, rest = ranker_title(name, titles).partition(", ")
  return f"{title} ({rest})" if comma else title


def _compared(paired: Mapping[str, Any], name: str, base: str) -> dict[str, Mapping[str, Any]]:
  """The deciding metrics in which two were compared."""
  of = paired.get(f"{name}_vs_{base}", {})
  return {metric: of[metric] for metric in _METRICS if metric in of}


def standing(of: Mapping[str, Any]) -> str:
  """`above`, `behind` or `level with`, by whether a paired difference's interval holds 0; `not told apart from` where it has none."""
  above, behind, level, unknown = _STANDINGS
  if of["delta_ci95"] is None:
    return unknown
  return level if not is_decided(of) else above if of["delta"] > 0 else behind


def _write_standing(of: Mapping[str, Mapping[str, Any]], other: str) -> str:
  """`above OTHER`, or, where metrics differ, `above OTHER in N@3 and level in R@1`."""
  by_standing: dict[str, list[str]] = {}
  for metric, paired in of.items():
    by_standing.setdefault(standing(paired), []).append(TABLE_METRICS[metric])
  if len(by_standing) == 1:
    return f"{next(iter(by_standing))} {other}"
  first, *rest = sorted(by_standing.items(), key=lambda entry: _STANDINGS.index(entry[0]))
  told = [f"{first[0]} {other} in {first[1][0]}", *(f"{word.removesuffix(' with')} in {metrics[0]}" for word, metrics in rest)]
  return " and ".join(told)


def _write_standings(found: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> str:
  """Several of `_write_standing`, those alike together: `above A and B; level with C`."""
  alike: dict[str, list[str]] = {}
  mixed = []
  for other, of in found:
    words = {standing(paired) for paired in of.values()}
    if len(words) == 1:
      alike.setdefault(words.pop(), []).append(other)
    else:
      mixed.append(_write_standing(of, other))
  ordered = [f"{word} {_join(alike[word])}" for word in _STANDINGS if word in alike]
  return "; ".join([*ordered, *mixed])


def _join(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
