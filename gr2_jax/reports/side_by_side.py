"""Runs of any origin side by side: where their configs differ, their rankers in pairs, their curves; `compare.json`, `compare.md`, plots.

A side is a run, or a variant of a sweep with all its seeds. Each is compared with its namesake among the variants that were named first, or
with the first side. Rankers are compared in pairs where both were tested on the same slates, several seeds pooled as in a sweep; elsewhere
the reason stands in place of an interval.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gr2_jax.errors import UserError
from gr2_jax.evaluation.paired import RESAMPLES
from gr2_jax.evaluation.per_slate import PerSlate, have_same_slates, pool_seeds, read_per_slate
from gr2_jax.evaluation.results import POLICY, check_results, mean_metrics
from gr2_jax.files import replacing, write_json
from gr2_jax.reports import plots
from gr2_jax.reports.comparisons import Tested, compare_variants, comparison_differences, comparison_sections
from gr2_jax.reports.names import TABLE_METRICS, ranker_title, sort_rankers
from gr2_jax.reports.tables import (
  TABLE_STYLE,
  code_span,
  console_text,
  escape_markdown,
  format_lift,
  format_number,
  lift_style,
  markdown_table,
)
from gr2_jax.runs.fingerprints import flat_leaves
from gr2_jax.runs.run import RunError
from gr2_jax.runs.run_file import RunRecord, find_finished, read_run, read_run_file, split_name, split_path

_SHORT = ("recall@1", "ndcg@3")  # the metrics with intervals in the tables
# Title, unit of the y axis, logged metric, training.
_CURVES = (
  ("reward in RL", "reward", "reward", "rl"),
  ("R@1 of the sampled answers in RL", "R@1", "recall@1", "rl"),
  ("copies of the shown or upstream order in RL", "share of valid answers", "identity_rate", "rl"),
  ("loss in mid-training", "loss", "loss", "midtrain"),
  ("loss in SFT", "loss", "loss", "sft"),
  ("loss of the direct policy", "loss", "loss", "direct"),
)


@dataclasses.dataclass(frozen=True)
class Side:
  """A run, or a variant of a sweep: `runs` by seed, `tested` their metrics of each test slate. `source`: the path that named it."""

  label: str
  source: str
  variant: str
  runs: Mapping[int, RunRecord]
  tested: Mapping[int, PerSlate]


def read_sides(paths: Sequence[str]) -> tuple[list[Side], list[str]]:
  """(the sides at run directories, sweeps and `FILE.gr2[:VARIANT[/seed_N]]`, sentences on runs that are left out).

  Raises UserError for what is none of these, for a sweep without a finished run, and for results that cannot be read.
  """
  found: list[tuple[str, str, str, dict[int, RunRecord]]] = []
  notes: list[str] = []
  for path in paths:
    records, left_out = _read_records(path)
    notes += [f"{path}: {name} is left out: {why}" for name, why in left_out.items()]
    stem = _stem(path)
    for variant in dict.fromkeys(split_name(name)[0] for name in records):
      runs = {_seed(name, record): record for name, record in records.items() if split_name(name)[0] == variant}
      found.append((stem, path, variant, runs))
  several = len({path for _, path, _, _ in found}) > 1
  labels = _tell_apart([f"{stem} {variant}".strip() if several or not variant else variant for stem, _, variant, _ in found])
  return [
    Side(label, path, variant, runs, {seed: _tested(record, f"{path}: {label}, seed {seed}") for seed, record in runs.items()})
    for label, (_, path, variant, runs) in zip(labels, found, strict=True)
  ], notes


def _read_records(path: str) -> tuple[dict[str, RunRecord], dict[str, str]]:
  """(records by name, why other runs are left out)."""
  if (parts := split_path(path)) is not None:
    file, chosen = read_run_file(parts[0]), parts[1]
    of_variant = {name: record for name, record in file.runs.items() if not chosen or split_name(name)[0] == chosen}
    return of_variant or {file.choose(chosen): file.runs[file.choose(chosen)]}, {}
  runs, unfinished = find_finished(path)
  if not runs:
    raise RunError(
      f"{path} has no finished run ({'; '.join(f'{name}: {why}' for name, why in unfinished.items())}); give its command again"
    )
  return {name: read_run(run) for name, run in runs.items()}, unfinished


def _stem(path: str) -> str:
  """What a reader calls it: a file without its suffix, a folder, and of a sweep's run the folder above too."""
  parts = split_path(path)
  place = pathlib.Path(parts[0] if parts else path).resolve()
  if parts:
    return place.stem
  return f"{place.parent.name} {place.name}" if place.name.startswith("seed_") else place.name


def _tell_apart(labels: Sequence[str]) -> list[str]:
  """The labels, those that come again with a number."""
  seen: dict[str, int] = {}
  told = []
  for label in labels:
    seen[label] = seen.get(label, 0) + 1
    told.append(label.replace("/", " ") + (f" ({seen[label]})" if seen[label] > 1 else ""))
  return told


def _seed(name: str, record: RunRecord) -> int:
  number = split_name(name)[1].removeprefix("seed_")
  return int(number) if number.isdecimal() else record.seed


def _tested(record: RunRecord, where: str) -> PerSlate:
  check_results(record.results, where)
  return read_per_slate(record.per_slate, where)


def compare_sides(sides: Sequence[Side], left_out: Sequence[str] = (), resamples: int = RESAMPLES) -> dict[str, Any]:
  """The content of compare.json: `sides`, `config` (key -> label -> values, where they differ), `versions` likewise, `pairs` (label, base,
  why there is no interval), and `comparisons`, as in sweep.json. `left_out`: see `read_sides`. Raises UserError for fewer than two sides.
  """
  if len(sides) < 2:
    raise UserError("there is one run to compare; name two or more runs, sweeps or files")
  pairs: list[dict[str, Any]] = []
  comparisons: dict[str, Any] = {}
  for side in sides[1:]:
    base = _base_of(side, sides)
    reason = _why_not_paired(side, base)
    pairs.append({"label": side.label, "base": base.label, "reason": reason})
    if reason is None:
      comparisons |= _compare(side, base, resamples)
  return {
    "sides": {side.label: _describe(side) for side in sides},
    "left_out": list(left_out),
    "titles": {name: title for side in sides for run in side.runs.values() for name, title in run.results.get("titles", {}).items()},
    "config": _list_differing({side.label: [flat_leaves(run.config) for run in side.runs.values()] for side in sides}),
    "versions": _list_differing({side.label: [run.versions for run in side.runs.values()] for side in sides}),
    "pairs": pairs,
    "comparisons": comparisons,
    "bootstrap": {"resamples": resamples, "seed": 0},
  }


def _base_of(side: Side, sides: Sequence[Side]) -> Side:
  """What a side is compared with: the variant of its name in what was given first, else the first side."""
  namesakes = [other for other in sides if other.source == sides[0].source and other.variant == side.variant]
  return namesakes[0] if side.variant and namesakes and namesakes[0] is not side else sides[0]


def _paired_seeds(side: Side, base: Side) -> list[tuple[int, int]]:
  """Seeds of both whose runs stand against each other: the same ones, and of two single runs these, whatever their seeds."""
  if len(side.runs) == len(base.runs) == 1:
    return [(next(iter(side.runs)), next(iter(base.runs)))]
  return [(seed, seed) for seed in side.runs if seed in base.runs]


def _why_not_paired(side: Side, base: Side) -> str | None:
  seeds = _paired_seeds(side, base)
  if not seeds:
    return f"no seed is common to both ({_join(side.runs)}; {_join(base.runs)})"
  differing = [one for one, other in seeds if not have_same_slates(side.tested[one], base.tested[other])]
  if differing:
    sizes = [len(of.tested[seed].users) for of, seed in ((side, differing[0]), (base, dict(seeds)[differing[0]]))]
    which = "" if len(seeds) == 1 else f" with seed {_join(differing)}"
    return f"they were tested on different slates{which} ({sizes[0]:,} and {sizes[1]:,} of them)"
  return None


def _compare(side: Side, base: Side, resamples: int) -> dict[str, Any]:
  """All rankers that both have, in pairs, on the slates of their common seeds."""
  seeds = _paired_seeds(side, base)
  tested: Tested = {side.label: {one: side.tested[one] for one, _ in seeds}, base.label: {one: base.tested[other] for one, other in seeds}}
  every = [of.rankers for by_seed in tested.values() for of in by_seed.values()]
  titles = next(iter(side.runs.values())).results.get("titles", {})
  shared = sort_rankers((name for name in every[0] if all(name in rankers for rankers in every)), titles)
  asked = [(f"{side.label}/{name}", f"{base.label}/{name}") for name in shared]
  return compare_variants(tested, {f"{side.label} against {base.label}": asked}, resamples)


def _describe(side: Side) -> dict[str, Any]:
  first = next(iter(side.tested.values()))
  names = [name for name in first.rankers if all(name in of.rankers for of in side.tested.values())]
  metrics, clusters, weights = pool_seeds(side.tested, names)
  return {
    "source": side.source,
    "dataset": next(iter(side.runs.values())).results["dataset"],
    "seeds": list(side.runs),
    "n": len(clusters),
    "orders": {name: mean_metrics(of, weights) for name, of in metrics.items()},
  }


def _list_differing(values: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, list[Any]]]:
  """Key -> label -> its distinct values over the seeds, for keys of which not all labels have the same ones."""
  keys = dict.fromkeys(key for of in values.values() for one in of for key in one)
  found: dict[str, dict[str, list[Any]]] = {}
  for key in keys:
    by_label = {label: _distinct(one.get(key) for one in of) for label, of in values.items()}
    if any(of != next(iter(by_label.values())) for of in by_label.values()):
      found[key] = by_label
  return found


def _distinct(values: Iterable[Any]) -> list[Any]:
  found: list[Any] = []
  for value in values:
    if value not in found:
      found.append(value)
  return found


def check_folder(directory: str | pathlib.Path) -> None:
  """Raises UserError for a file, and for a folder that holds something and no comparison."""
  directory = pathlib.Path(directory)
  if directory.exists() and not (directory / "compare.json").exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise UserError(f"--to: {directory} is not empty and holds no comparison; name another folder")


def write_comparison(directory: str | pathlib.Path, sides: Sequence[Side], compared: Mapping[str, Any]) -> pathlib.Path:
  """Writes `compare.json`, `compare.md` and `plots/*.png`; returns the path of the page. Raises what `check_folder` raises."""
  check_folder(directory)
  directory = pathlib.Path(directory)
  drawn = {
    "curves.png": ("Curves of all, means over the seeds", plots.plot_curves(_curves(sides))),
    "differences.png": ("Rankers in pairs", plots.plot_differences(comparison_differences(compared))),
  }
  pictures = {name: caption for name, (caption, figure) in drawn.items() if figure is not None}
  for name, (_, figure) in drawn.items():
    if figure is not None:
      plots.save_figure(figure, directory / "plots" / name)
  write_json(directory / "compare.json", compared)
  sections = {
    "What is compared": _sides_table(compared),
    "Where the configurations differ": _differing_table(compared["config"], compared["sides"]),
    "Rankers side by side": _means_table(compared),
    **_pair_sections(compared),
    "Plots": "\n\n".join(f"**{caption}**\n\n![{caption}](plots/{name})" for name, caption in pictures.items()) or "No curves were logged.",
    "Where versions and machines differ": _differing_table(compared["versions"], compared["sides"]),
  }
  page = directory / "compare.md"
  parts = [
    f"# {escape_markdown(', '.join(compared['sides']))}",
    *(f"## {escape_markdown(title)}\n\n{of}" for title, of in sections.items()),
  ]
  with replacing(page) as partial:
    partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
  return page


def _curves(sides: Sequence[Side]) -> list[plots.Panel]:
  panels = []
  for title, unit, metric, training in _CURVES:
    runs = {side.label: [run.metrics.get(training, []) for run in side.runs.values()] for side in sides}
    if any(line.get(metric) is not None for of in runs.values() for lines in of for line in lines):
      panels.append(plots.Panel(title, unit, metric, "step", runs))
  return panels


def _sides_table(compared: Mapping[str, Any]) -> str:
  rows = [
    [escape_markdown(label), code_span(of["source"]), escape_markdown(of["dataset"]), _join(of["seeds"]), f"{of['n']:,}"]
    for label, of in compared["sides"].items()
  ]
  table = markdown_table(["", "from", "data", "seeds", "test slates"], rows)
  return "\n\n".join([table, *map(escape_markdown, compared["left_out"])])


def _differing_table(differing: Mapping[str, Mapping[str, Sequence[Any]]], labels: Iterable[str]) -> str:
  if not differing:
    return "Nowhere."
  rows = [[code_span(key), *(_write_values(of[label]) for label in labels)] for key, of in differing.items()]
  return markdown_table(["", *map(escape_markdown, labels)], rows)


def _write_values(values: Sequence[Any]) -> str:
  return " / ".join("–" if value is None else code_span(json.dumps(value, ensure_ascii=False)) for value in values)


def _means_table(compared: Mapping[str, Any]) -> str:
  sides, titles = compared["sides"], compared["titles"]
  names = sort_rankers(dict.fromkeys(name for of in sides.values() for name in of["orders"]), titles)
  header = ["ranker", *(f"{escape_markdown(label)}, {TABLE_METRICS[metric]}" for metric in _SHORT for label in sides)]
  rows = [
    [escape_markdown(ranker_title(name, titles)), *(_mean(of, name, metric) for metric in _SHORT for of in sides.values())]
    for name in names
  ]
  return markdown_table(header, rows) + "\n\nMeans, each on its own test slates; what may be told from them the pairs below say."


def _mean(side: Mapping[str, Any], name: str, metric: str) -> str:
  return format_number(side["orders"].get(name, {}).get(metric))


def _pair_sections(compared: Mapping[str, Any]) -> dict[str, str]:
  refused = {f"{of['label']} against {of['base']}": _refusal(of) for of in compared["pairs"] if of["reason"]}
  return refused | comparison_sections({"shares": [], "acceptance": {}, **compared})


def _refusal(pair: Mapping[str, Any]) -> str:
  return f"Not compared in pairs: {pair['reason']}. The means above stand beside each other without an interval."


def _join(values: Iterable[Any]) -> str:
  return ", ".join(map(str, values))


def render_comparison(compared: Mapping[str, Any]) -> RenderableType:
  """Differences of the configs and rankers in pairs, as Rich tables."""
  titles, sides = compared["titles"], compared["sides"]
  config = Table(title="where the configurations differ", **TABLE_STYLE)
  for name in ("config", *sides):
    config.add_column(console_text(name), overflow="fold")
  for key, of in compared["config"].items():
    config.add_row(console_text(key), *(console_text(" / ".join(json.dumps(value) for value in of[label])) for label in sides))
  told: list[RenderableType] = [config if compared["config"] else "The configurations are the same.\n"]
  for pair in compared["pairs"]:
    heading = f"{pair['label']} against {pair['base']}"
    lines = compared["comparisons"].get(heading, [])
    base = sides[pair["base"]]["orders"]
    table = Table(title=console_text(heading, "table.title"), **TABLE_STYLE)
    if pair["reason"]:
      table.caption = console_text(_refusal(pair), "bold")
    table.add_column("ranker")
    for metric in _SHORT:
      for label in (f"{TABLE_METRICS[metric]} {pair['base']}", pair["label"], "difference"):
        table.add_column(console_text(label), justify="right")
    names = [of["order"].split("/")[1] for of in lines] or sort_rankers(base.keys() & sides[pair["label"]]["orders"].keys(), titles)
    paired = {of["order"].split("/")[1]: of["paired"] for of in lines}
    for name in names:
      cells: list[Text] = []
      for metric in _SHORT:
        difference = paired.get(name, {}).get(metric)
        cells += [Text(format_number(orders[name][metric], ".3f")) for orders in (base, sides[pair["label"]]["orders"])]
        cells.append(Text(format_lift(difference).replace(" [", "\n["), lift_style(difference)))
      table.add_row(console_text(ranker_title(name, titles), "bold" if name == POLICY else ""), *cells)
    told.append(table)
  return Group(*told)
