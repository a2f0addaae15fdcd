"""What a run or a sweep says, in sentences made of its own numbers: who is above whom, by how much, and where nothing can be told."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gr2_jax.evaluation.results import BASELINE, COMPRESSED, POLICY
from gr2_jax.reports.comparisons import order_title
from gr2_jax.reports.names import metric_title, ranker_title
from gr2_jax.reports.tables import ONE_USER, escape_markdown, format_share, is_decided

_METRICS = ("recall@1", "ndcg@3")
_VERSIONS = ("git_commit", "gr2_jax", "jax", "python", "device_kind", "devices")  # of versions.json, which has more


def format_difference(of: Mapping[str, Any]) -> str:
  """A paired difference with its interval, `+.042 [.027, .057]`; `+.042 [one user]` where it has none."""
  interval = of["delta_ci95"]
  between = ONE_USER if interval is None else f"[{', '.join(_short(x) for x in interval)}]"
  return f"{'' if of['delta'] < 0 else '+'}{_short(of['delta'])} {between}"


def _short(value: float) -> str:
  """Three digits, without the zero before the point; `-.000` is `.000`."""
  text = f"{value:.3f}"
  text = text.lstrip("-") if float(text) == 0 else text
  return text.replace("0.", ".", 1) if abs(value) < 1 and float(text.lstrip("-")) < 1 else text


def compare_sentence(one: str, other: str, paired: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] = _METRICS) -> str:
  """`ONE is above OTHER by +.042 [.027, .057] R@1, and not told apart from it in N@3 (+.001 [-.003, .005]).`"""
  found = {metric: paired[metric] for metric in metrics if metric in paired}
  if not found:
    return f"{one} and {other} were not compared in pairs."
  parts: list[str] = []
  for sign, verb in ((1, "above"), (-1, "behind"), (0, "not told apart from")):
    of = {metric: pair for metric, pair in found.items() if _sign(pair) == sign}
    if not of:
      continue
    whom = "it" if parts else other
    told = [f"{format_difference(pair)} {metric_title(metric)}" for metric, pair in of.items()]
    if sign:
      parts.append(f"{verb} {whom} by {' and '.join(told)}")
    else:
      named = [f"{metric_title(metric)} ({format_difference(pair)})" for metric, pair in of.items()]
      parts.append(f"{verb} {whom} in {' and '.join(named)}")
  return f"{one} is {', and '.join(parts)}."


def _sign(of: Mapping[str, Any]) -> int:
  return (1 if of["delta"] > 0 else -1) if is_decided(of) else 0


def describe_run(versions: Mapping[str, str | None], results: Mapping[str, Any]) -> str:
  """One line of what a run is, as Markdown: data, seeds, slates, versions."""
  head = f"{results['dataset']}, seed {', '.join(map(str, results['seeds']))}, {results['n']:,} test slates"
  return escape_markdown(f"{head}; {_versions({name: [value] for name, value in versions.items() if value is not None})}.")


def describe_sweep(sweep: Mapping[str, Any]) -> str:
  """One line of what a sweep is, as Markdown: data, variants, seeds, time, versions."""
  seeds = ", ".join(map(str, dict.fromkeys(seed for of in sweep["variants"].values() for seed in of["seeds"])))
  head = f"{sweep['dataset']}, {len(sweep['variants'])} variants, seed {seeds}, {sweep['seconds'] / 60:.0f} minutes of stages"
  return escape_markdown(f"{head}; {_versions(sweep['versions'])}.")


def _versions(found: Mapping[str, Sequence[str]]) -> str:
  return ", ".join(f"{name} {' / '.join(found[name])}" for name in _VERSIONS if name in found)


def run_sentences(results: Mapping[str, Any]) -> list[str]:
  """A sentence for each policy of a run against the upstream order, and for each pair of policies that it compared."""
  titles = results.get("titles", {})
  sentences = []
  for pair, paired in results["paired"].items():
    name, base = pair.split("_vs_")
    if name in titles and (base == BASELINE or base in titles):
      sentences.append(compare_sentence(f"The {ranker_title(name, titles)}", f"the {ranker_title(base, titles)}", paired))
  return sentences


def ranking_sentence(sweep: Mapping[str, Any]) -> str:
  """Which variant's policy is furthest above the upstream order, which the least, and how many are above it at all."""
  metric = _METRICS[0]
  lifts = {variant: of["paired"].get(f"{POLICY}_vs_{BASELINE}", {}).get(metric) for variant, of in sweep["variants"].items()}
  told = _extremes({variant.replace("_", " "): of for variant, of in lifts.items() if of})
  return f"RL policies against the upstream order, {metric_title(metric)}: {told}." if told else "No policy was compared in pairs."


def copying_sentence(sweep: Mapping[str, Any]) -> str:
  """Where sampled answers copy most, and where least, in the last tenth of the RL steps."""
  rates = {variant.replace("_", " "): of["training"]["identity_rate"]["last"] for variant, of in sweep["variants"].items()}
  rates = {variant: rate for variant, rate in rates.items() if rate is not None}
  if not rates:
    return "No variant logged how much its answers copy."
  most, least = max(rates, key=lambda v: rates[v]), min(rates, key=lambda v: rates[v])
  if most == least:
    return f"In the last tenth of RL {most} copies {100 * rates[most]:.0f} % of its input orders."
  return (
    f"In the last tenth of RL {most} copies its input order most often, in {100 * rates[most]:.0f} % of the valid answers, and {least} "
    f"least, in {100 * rates[least]:.0f} %."
  )


def comparison_sentences(sweep: Mapping[str, Any]) -> list[str]:
  """A sentence for each comparison that the ablation asks for, in the first metric that its table shows."""
  titles, sentences = sweep.get("titles", {}), []
  for title, lines in sweep["comparisons"].items():
    metric = sweep.get("shown", {}).get(title, _METRICS)[0]
    pairs = {f"{order_title(of['order'], titles)} – {order_title(of['base'], titles)}": of["paired"].get(metric) for of in lines}
    told = _extremes({name: of for name, of in pairs.items() if of})
    if told:
      sentences.append(f"{title}, {metric_title(metric)}: {told}.")
  return sentences


def _extremes(pairs: Mapping[str, Mapping[str, Any]]) -> str:
  """`above in 3 of 5, most by +.042 [..] (NAME); behind in 1, most by -.010 [..] (NAME); not told apart in 1`."""
  parts = []
  for sign, verb in ((1, "above"), (-1, "behind")):
    of = {name: pair for name, pair in pairs.items() if _sign(pair) == sign}
    if of:
      name = max(of, key=lambda name: abs(of[name]["delta"]))
      most = "most " if len(of) > 1 else ""
      parts.append(f"{verb} in {len(of)} of {len(pairs)}, {most}by {format_difference(of[name])} ({name})")
  undecided = [name for name, pair in pairs.items() if not _sign(pair)]
  if undecided:
    parts.append(f"not told apart in {len(undecided)} of {len(pairs)}")
  return "; ".join(parts)


def shares_sentence(sweep: Mapping[str, Any], metric: str = _METRICS[0]) -> str:
  """Which student keeps most of its teacher's gain over the upstream order, and which least."""
  titles = sweep.get("titles", {})
  shares = {order_title(of["order"], titles): of[metric] for of in sweep["shares"] if of[metric]["share"] is not None}
  if not shares:
    return "The teacher's gain may be none, so no student has a share of it."
  most, least = (choose(shares, key=lambda name: shares[name]["share"]) for choose in (max, min))
  told = [f"{name} keeps {format_share(shares[name])}" for name in dict.fromkeys((most, least))]
  return f"Of the teacher's gain in {metric_title(metric)}, {', and '.join(told)}."


def compression_sentence(sweep: Mapping[str, Any], metric: str = "ndcg@3") -> str:
  """Which compressed histories leave out most tokens, of those that are not told to be worse than full ones."""
  found = {}
  for variant, of in sweep["variants"].items():
    for pair, paired in of["compressed"].get("paired", {}).items():
      name, base = pair.split("_vs_")
      cost = of["compressed"]["cost"]
      gone = 1 - cost[name]["prompt_tokens"] / cost[base]["prompt_tokens"]
      found[f"{name.removeprefix(COMPRESSED).replace('_', ' ')} in {variant.replace('_', ' ')}"] = (gone, paired[metric])
  kept = {name: of for name, of in found.items() if _sign(of[1]) >= 0}
  if not kept:
    return f"Every compressed history costs {metric_title(metric)}." if found else "No histories were compressed."
  name = max(kept, key=lambda name: kept[name][0])
  gone, paired = kept[name]
  return (
    f"Of {len(found)} kinds of compressed histories {len(kept)} are not told to be behind full ones in {metric_title(metric)}; of these "
    f"{name} leaves out most, {100 * gone:.0f} % of the prompt's tokens, at {format_difference(paired)}."
  )


def steps_sentence(name: str, lines: Sequence[Mapping[str, Any]], metric: str) -> str:
  """How a logged metric of a training moved, from the first to the last tenth of its steps."""
  values = [line[metric] for line in lines if line.get(metric) is not None]
  if not values:
    return f"{name}: no {metric_title(metric)} was logged."
  tenth = max(len(values) // 10, 1)
  first, last = (_short(sum(part) / tenth) for part in (values[:tenth], values[-tenth:]))
  return f"{name}: {metric_title(metric)} of sampled answers goes from {first} in the first tenth of the steps to {last} in the last."


def sentences_list(sentences: Iterable[str]) -> str:
  """Sentences as a Markdown list."""
  return "\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences)
