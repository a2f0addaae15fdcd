"""A sweep's result: variants side by side, their slates pooled over the seeds; `sweep.json`, `sweep.md` and its plots."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.paired import RESAMPLES
from gr2_jax.evaluation.per_slate import PerSlate, have_same_slates, pool_seeds, read_per_slate
from gr2_jax.evaluation.results import BASELINE, POLICY, ResultsError, check_results, compare_rankers, mean_metrics
from gr2_jax.reports import plots
from gr2_jax.reports.comparisons import (
  compare_variants,
  comparison_differences,
  comparison_sections,
  compute_fronts,
  compute_shares,
  count_acceptance,
)
from gr2_jax.reports.compression import compression_table, pool_compressed
from gr2_jax.reports.names import TABLE_METRICS, ranker_title
from gr2_jax.reports.tables import (
  ONE_USER_NOTE,
  TABLE_STYLE,
  code_block,
  code_span,
  console_text,
  escape_markdown,
  format_lift,
  format_number,
  lift_style,
  markdown_table,
)
from gr2_jax.runs.run_file import RunRecord

Runs = Mapping[str, Mapping[int, RunRecord]]  # variant -> seed -> finished run

_PRIORS = ("opd", "sft")  # of files of the versions that do not tell their priors
_BASES = {"upstream": "the upstream order", "prior": "its prior", "reference": "the reference"}
_COPYING = {"identity_rate": "copies", "near_identity_rate": "near copies"}
_TAU = "kendall_tau_to_upstream"
_PRESENTATIONS = {"upstream": "shown upstream", "shuffled_1": "shown shuffled"}
_SHORT = ("recall@1", "ndcg@3")  # the metrics with intervals in the tables
_RANKING_NOTE = (
  "R@1: how often the first candidate is a positive one; N@3: NDCG of the first three. over: the policy's relative difference to that "
  "ranker on the same slates."
)
_COPYING_NOTE = (
  "Copies repeat the shown or the upstream order; near copies differ from one of them by at most one swap of two candidates. In training: "
  "sampled answers in the variant's own presentation, from the first to the last tenth of the RL steps. At evaluation: greedy answers. "
  "τ is Kendall's, to the upstream order. Agreement is the mean Kendall τ between the answers to one slate in both presentations."
)


def build_sweep(
  runs: Runs,
  changes: Mapping[str, Mapping[str, Any]],
  resamples: int = RESAMPLES,
  *,
  comparisons: Mapping[str, Sequence[tuple[str, str]]] | None = None,
  shares: Mapping[str, Sequence[str]] | None = None,
  shown: Mapping[str, Sequence[str]] | None = None,
  fronts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
  """The content of sweep.json; `changes`: variant -> dotted config key -> value. `comparisons` and all after it: see `reports.comparisons`.

  The slates of all seeds are pooled, and the users of each seed are what is resampled. The first variant is the reference of
  `policy_vs_reference`, which a variant that was tested on other slates lacks. Raises ResultsError for a run whose results cannot be read.
  """
  for variant, of in runs.items():
    for seed, run in of.items():
      check_results(run.results, f"{variant}/seed_{seed}: results.json")
  tested = {
    variant: {seed: read_per_slate(run.per_slate, f"{variant}/seed_{seed}: per_slate.npz") for seed, run in of.items()}
    for variant, of in runs.items()
  }
  reference, *_ = runs
  every = [run for of in runs.values() for run in of.values()]
  results = {variant: [run.results for run in of.values()] for variant, of in runs.items()}
  return {
    "dataset": results[reference][0]["dataset"],
    "titles": {name: title for of in results.values() for one in of for name, title in one.get("titles", {}).items()},
    "reference": reference,
    "variants": {
      variant: {"changes": dict(changes[variant]), "seeds": list(of)}
      | _compare(tested[variant], None if variant == reference else tested[reference], _priors(results[variant]), resamples)
      | _watch(of.values(), results[variant])
      | {"compressed": pool_compressed(tested[variant], results[variant], resamples)}
      for variant, of in runs.items()
    },
    "comparisons": compare_variants(tested, comparisons or {}, resamples),
    "shown": {title: list(metrics) for title, metrics in (shown or {}).items()},
    "fronts": compute_fronts(tested, fronts or {}),
    "shares": compute_shares(tested, shares or {}, resamples),
    "acceptance": count_acceptance(every),
    "bootstrap": {"resamples": resamples, "seed": 0},
    "seconds": _seconds(every),
    "versions": _versions(every),
    "commands": _commands(every),
  }


def _priors(results: Iterable[Mapping[str, Any]]) -> list[str]:
  """The priors that any of the runs names, the latest stage first."""
  return list(dict.fromkeys(name for of in results for name in of.get("priors", _PRIORS)))


def _compare(of: Mapping[int, PerSlate], reference: Mapping[int, PerSlate] | None, priors: Sequence[str], resamples: int) -> dict[str, Any]:
  """Means of the rankers over the slates of all seeds, and the policy's paired differences; the priors that every seed has."""
  priors = [name for name in priors if all(name in slates.rankers for slates in of.values())]
  metrics, clusters, weights = pool_seeds(of, (BASELINE, *priors, POLICY))
  means = {name: mean_metrics(values, weights) for name, values in metrics.items()}
  pairs = [(POLICY, BASELINE), *((POLICY, prior) for prior in priors)]
  if reference is not None and all(have_same_slates(slates, reference[seed]) for seed, slates in of.items()):
    metrics["reference"] = pool_seeds({seed: reference[seed] for seed in of}, [POLICY]).rankers[POLICY]
    pairs.append((POLICY, "reference"))
  paired = compare_rankers(metrics, pairs, clusters, seed=0, resamples=resamples, weights=weights)
  return {"n": len(clusters), "priors": priors, "orders": means, "paired": paired}


def _watch(runs: Iterable[RunRecord], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """How much the policy copies over the RL steps and in the evaluation; means over the runs."""
  first, last = [], []
  for lines in (run.metrics.get("rl", []) for run in runs):
    tenth = max(len(lines) // 10, 1)
    first += lines[:tenth]
    last += lines[-tenth:]
  return {
    "training": {name: {"first": _mean_of(first, name), "last": _mean_of(last, name)} for name in (*_COPYING, _TAU)},
    "evaluation": {
      shown: {name: _mean_of([_policy_as_shown(r, shown) for r in results], name) for name in ("valid_rate", *_COPYING, _TAU, *METRICS)}
      for shown in _PRESENTATIONS
    },
    "permutation_consistency": _mean_of([r["diagnostics"][POLICY] for r in results], "permutation_consistency"),
  }


def _policy_as_shown(results: Mapping[str, Any], shown: str) -> dict[str, Any]:
  """The policy's monitors and metrics in one presentation; none where it was not measured in it."""
  monitors = results["diagnostics"][POLICY]
  return {**(monitors if shown == "upstream" else monitors.get(shown, {})), **results["presentations"].get(POLICY, {}).get(shown, {})}


def _mean_of(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
  values = [record[name] for record in records if record.get(name) is not None]
  return float(np.mean(values)) if values else None


def _seconds(runs: Sequence[RunRecord]) -> float:
  """Seconds of all stages; a stage that several runs share counts once."""
  seconds: dict[str, float] = {of["fingerprint"]: of["seconds"] for run in runs for of in run.stages.values()}
  return sum(seconds.values())


def _versions(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
  """All values that the runs recorded under each name."""
  found: dict[str, list[str]] = {}
  for run in runs:
    for name, value in run.versions.items():
      if value is not None and value not in found.setdefault(name, []):
        found[name].append(value)
  return found


def _commands(runs: Sequence[RunRecord]) -> list[str]:
  """The commands that made the runs, each once; command.txt has a time before each, and changed versions after `#`."""
  lines = [line.partition(" ")[2] for run in runs for line in run.commands.splitlines()]
  return list(dict.fromkeys(line for line in lines if not line.startswith("#")))


def load_sweep(directory: str | pathlib.Path) -> dict[str, Any]:
  """The content of `sweep.json` of a finished sweep; raises ResultsError that names the file and what is wrong with it."""
  path = pathlib.Path(directory) / "sweep.json"
  if not path.exists():
    raise ResultsError(f"{path}: there is no such file; finish the sweep with experiments.sweep, without --stages")
  try:
    sweep = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ResultsError(f"{path}: is not JSON ({error}); make it again with experiments.sweep") from None
  check_sweep(sweep, str(path))
  return sweep


def check_sweep(sweep: Any, where: str) -> None:
  """Raises ResultsError unless `sweep` has the parts of sweep.json; `where` names it in the message."""
  missing = [key for key in ("dataset", "variants", "comparisons", "shares") if not isinstance(sweep, dict) or key not in sweep]
  if missing:
    raise ResultsError(f"{where}: has no {', '.join(missing)}, so it is no table of a sweep; make it again with experiments.sweep")
  variants = sweep["variants"]
  if not (isinstance(variants, dict) and all(isinstance(of, dict) and isinstance(of.get("seeds"), list) for of in variants.values())):
    raise ResultsError(f"{where}: its variants do not say which seeds they had; make it again with experiments.sweep")


def write_sweep(directory: str | pathlib.Path, runs: Runs, sweep: Mapping[str, Any]) -> pathlib.Path:
  """Writes `sweep.json`, `sweep.md` and `plots/*.png`; returns the path of sweep.md."""
  directory = pathlib.Path(directory)
  text = json.dumps(sweep, indent=2, ensure_ascii=False, allow_nan=False)
  (directory / "sweep.json").write_text(text + "\n", encoding="utf-8")
  lines = {variant: [run.metrics.get("rl", []) for run in of.values()] for variant, of in runs.items()}
  drawn = {
    "copying.png": (f"Copying over the RL steps, mean of {_count_seeds(sweep)}", plots.plot_sweep(lines)),
    "policies.png": (f"Policies against the upstream order, slates of {_count_seeds(sweep)}", plots.plot_rankers(_as_rankers(sweep))),
    "comparisons.png": ("What the ablation asks, in pairs", plots.plot_differences(comparison_differences(sweep))),
    "fronts.png": ("What is paid for what", plots.plot_fronts(sweep["fronts"])),
  }
  captions = {}
  for name, (caption, figure) in drawn.items():
    if figure is not None:
      plots.save_figure(figure, directory / "plots" / name)
      captions[name] = caption
  sections = {
    **sweep_tables(sweep),
    "Plots": "\n\n".join(f"**{caption}**\n\n![{caption}](plots/{name})" for name, caption in captions.items()),
    "What each variant changes": _changes_section(sweep),
    "How it was run": _provenance_section(sweep),
  }
  page = directory / "sweep.md"
  names = escape_markdown(f"{directory.resolve().name}: {sweep['dataset']}")
  parts = [f"# Sweep {names}", *(f"## {escape_markdown(title)}\n\n{body}" for title, body in sections.items())]
  page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
  return page


def sweep_tables(sweep: Mapping[str, Any]) -> dict[str, str]:
  """Title -> Markdown of what was measured: the policies, what the ablation asks, copying, compression."""
  return {
    "Ranking": _ranking_section(sweep),
    **comparison_sections(sweep),
    "Copying": _copying_section(sweep),
    **_compression_section(sweep),
  }


def _as_rankers(sweep: Mapping[str, Any]) -> dict[str, Any]:
  """The variants' policies as rankers of one results.json, which is what the plot of rankers reads."""
  variants = sweep["variants"]
  paired = {f"{v}_vs_{BASELINE}": of["paired"][f"{POLICY}_vs_{BASELINE}"] for v, of in variants.items() if of["paired"]}
  reference = variants[sweep["reference"]]
  orders = {BASELINE: reference["orders"][BASELINE]} | {v: of["orders"][POLICY] for v, of in variants.items()}
  return {"n": reference["n"], "orders": orders, "paired": paired}


def _title(variant: str) -> str:
  return escape_markdown(variant.replace("_", " "))


def _count_seeds(sweep: Mapping[str, Any]) -> str:
  """`3 seeds`, of the variants that have most of them."""
  most = max(len(of["seeds"]) for of in sweep["variants"].values())
  return "1 seed" if most == 1 else f"{most} seeds"


def _paired(of: Mapping[str, Any], base: str, metric: str) -> Mapping[str, Any] | None:
  if base == "prior":
    base = next((prior for prior in of.get("priors", _PRIORS) if prior in of["orders"]), "")
  paired: Mapping[str, Any] | None = of["paired"].get(f"{POLICY}_vs_{base}", {}).get(metric)
  return paired


def _ranking_section(sweep: Mapping[str, Any]) -> str:
  variants, reference = sweep["variants"], sweep["reference"]
  sizes = sorted({of["n"] for of in variants.values()})
  text = [
    f"Policies after RL on {' or '.join(f'{n:,}' for n in sizes)} test slates of {_count_seeds(sweep)}, shown in the upstream order. "
    f"Relative differences with paired 95 % intervals ({sweep['bootstrap']['resamples']:,} resamples of the users of each seed). The "
    f"reference is {_title(reference)}, whose upstream order and prior stand first; a prior is a policy that RL may have started from."
  ]
  for metric in _SHORT:
    rows = [
      [f"*{escape_markdown(ranker_title(name, sweep.get('titles', {})))}*", format_number(values[metric]), "", "", ""]
      for name, values in variants[reference]["orders"].items()
      if name != POLICY
    ]
    for variant, of in variants.items():
      lifts = [format_lift(_paired(of, base, metric)) for base in _BASES]
      rows.append([_title(variant), format_number(of["orders"][POLICY][metric]), *lifts])
    text.append(markdown_table(["variant", TABLE_METRICS[metric], *(f"over {base}" for base in _BASES.values())], rows))
  return "\n\n".join([*text, _RANKING_NOTE])


def _copying_section(sweep: Mapping[str, Any]) -> str:
  watched = {**_COPYING, _TAU: "τ"}
  header = ["variant", *(f"{label}, training" for label in watched.values())]
  header += [f"{label}, {shown}" for shown in _PRESENTATIONS.values() for label in (*watched.values(), "R@1")]
  rows = []
  for variant, of in sweep["variants"].items():
    row = [_title(variant), *(f"{_share(of['training'][name]['first'])} → {_share(of['training'][name]['last'])}" for name in watched)]
    row += [_share(of["evaluation"][shown][name]) for shown in _PRESENTATIONS for name in (*watched, "recall@1")]
    rows.append([*row, _share(of["permutation_consistency"]), _share(of["evaluation"]["upstream"]["valid_rate"])])
  return markdown_table([*header, "agreement", "valid"], rows) + "\n\n" + _COPYING_NOTE


def _compression_section(sweep: Mapping[str, Any]) -> dict[str, str]:
  tables = [
    f"**{_title(variant)}**\n\n{compression_table(**of['compressed'])}" for variant, of in sweep["variants"].items() if of["compressed"]
  ]
  return {"Compression": "\n\n".join(tables)} if tables else {}


def _share(value: float | None) -> str:
  return format_number(value, ".3f")


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.0f}"


def _changes_section(sweep: Mapping[str, Any]) -> str:
  rows = [
    [_title(variant), "<br>".join(code_span(f"{key} = {value}") for key, value in of["changes"].items()), ", ".join(map(str, of["seeds"]))]
    for variant, of in sweep["variants"].items()
  ]
  return markdown_table(["variant", "changes", "seeds"], rows)


def _provenance_section(sweep: Mapping[str, Any]) -> str:
  versions = escape_markdown(", ".join(f"{name} {' / '.join(values)}" for name, values in sweep["versions"].items()))
  commands = code_block("\n".join(sweep["commands"]))
  return f"{commands}\n\n{sweep['seconds'] / 60:.0f} minutes of stages; shared ones count once.\n\nVersions: {versions}."


def render_sweep_table(sweep: Mapping[str, Any]) -> RenderableType:
  """Ranking with paired intervals, and copying, as Rich tables that fit into 80 columns."""
  head = console_text(f"{sweep['dataset']}: policies after RL, shown in the upstream order", "table.title")
  caption = f"relative differences with paired 95 % intervals, slates of {_count_seeds(sweep)}"
  if any(of["delta_ci95"] is None for v in sweep["variants"].values() for pair in v["paired"].values() for of in pair.values()):
    caption += f"\n{ONE_USER_NOTE}"
  ranking = Table(title=head, caption=Text(caption, "table.caption"), **TABLE_STYLE)
  copying = Table(
    title="copying, % of the valid answers", caption="in training: from the first to the last tenth of the RL steps", **TABLE_STYLE
  )
  columns = {
    ranking: [label for metric in _SHORT for label in (TABLE_METRICS[metric], "over upstream", "over prior")],
    copying: [f"{label}, {where}" for where in ("in training", *_PRESENTATIONS.values()) for label in _COPYING.values()],
  }
  for table, labels in columns.items():
    table.add_column("variant", no_wrap=True)
    for label in labels:
      table.add_column(label, justify="right")
  for variant, of in sweep["variants"].items():
    cells: list[str | Text] = []
    for metric in _SHORT:
      cells.append(f"{of['orders'][POLICY][metric]:.3f}")
      for base in ("upstream", "prior"):
        paired = _paired(of, base, metric)
        cells.append(Text(format_lift(paired, digits=0).replace(" [", "\n["), style=lift_style(paired)))
    name = console_text(variant.replace("_", " "))
    ranking.add_row(name, *cells)
    trained = ("→".join(_percent(of["training"][name][place]) for place in ("first", "last")) for name in _COPYING)
    evaluated = (_percent(of["evaluation"][shown][name]) for shown in _PRESENTATIONS for name in _COPYING)
    copying.add_row(name, *trained, *evaluated)
  return Group(ranking, copying)
