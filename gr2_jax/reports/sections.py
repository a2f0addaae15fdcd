"""The card's sections on what was run: data, semantic IDs, traces, evidence, cost, latency, and how the run was made."""

import json
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gr2_jax.reports.latency import latency_table
from gr2_jax.reports.rankers import titles_of, write_ranker
from gr2_jax.reports.tables import code_block, escape_markdown, format_number, markdown_table
from gr2_jax.runs.fingerprints import flat_leaves
from gr2_jax.runs.run import read_mark, read_object

_TOKENIZER_NOTE = (
  "distinct IDs / items: 1 where no two items share an ID. levels: codes in use at each level, and their perplexity, the number of codes "
  "that would be as many if all were used alike. largest prefix bucket: items that share all codes but the last. A last level drawn "
  "without replacement makes IDs unique by construction; the first row is the tokenizer's own doing."
)
_RETRIEVAL_NOTE = (
  "n: test requests, each with one target among all items of the catalogue. Open: any item can be recommended; masked: not those of the "
  "history. Items that share a semantic ID stand before the target."
)
_TRACES_NOTE = "slates: whose traces were asked for; accepted: of these, with a trace that passed the check."
_COST_NOTE = (
  "Mean tokens of a slate's prompt and of its answer; prefill ms: the forward pass over a batch of prompts, by slate, timed in turns. How "
  "long a ranker takes is measured by `experiments.latency`, in turns too: rankers timed one after another would be told apart by what "
  "else the machine did."
)

_MOST_FACTS = 12
_EVIDENCE_NOTE = (
  f"The {_MOST_FACTS} facts whose values, dealt anew among all candidates, cost the order most, with paired 95 % intervals; facts that say "
  "the same lose little one by one. `gr2_jax.evidence.FACTS` says what each is."
)

# Each section takes the results or the run's directory, or both, and returns its text; what is missing is said in a sentence.


def read_artifact(run: pathlib.Path, *names: str) -> Any:
  """A JSON artifact of the run, None where it is missing; raises RunError where it cannot be read."""
  path = run.joinpath(*names)
  return read_object(path, "restore it, or make it again") if path.exists() else None


def _write_number(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return "–" if value is None else escape_markdown(str(value))
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def data_section(results: Mapping[str, Any], run: pathlib.Path) -> str:
  """What the run read, and how many slates came of it."""
  size = results["slate_size"]
  rows = [("dataset", escape_markdown(results["dataset"])), ("test slates", f"{results['n']:,}")]
  rows += [("candidates per slate", f"{size['mean']:.1f} (at most {size['max']})")]
  counts, slates = read_artifact(run, "data", "counts.json") or {}, read_artifact(run, "slates", "report.json") or {}
  counted = {key: value for key, value in flat_leaves(counts).items() if value != {}}
  rows += [(key, _write_number(value)) for key, value in counted.items() if not (key.startswith("slates.") and slates)]
  rows += [(f"re-ranking slates, {split}", f"{count:,}") for split, count in slates.get("slates", {}).items()]
  rows += [
    (f"requests whose target was retrieved, {split}", f"{of['retrieved']:,} of {of['requests']:,} ({of['retrieved'] / of['requests']:.1%})")
    for split, of in slates.get("retrieved", {}).items()
  ]
  bad = run / "data" / "bad_lines.jsonl"
  if bad.exists():
    kinds = Counter(json.loads(line).get("left_out", "line") for line in bad.read_text(encoding="utf-8").splitlines())
    rows += [(f"bad {kind}s left out", f"{count:,} (data/bad_lines.jsonl)") for kind, count in kinds.items()]
  return markdown_table(["", ""], rows) + "".join(f"\n\n{note}" for note in results["notes"])


def tokenizer_section(run: pathlib.Path) -> str:
  """How well semantic IDs tell items apart."""
  report = read_artifact(run, "tokenize", "report.json")
  if report is None:
    return "No tokenizer report in this run."
  rows = []
  for when, title in (("before", "learned alone"), ("after", "as exported")):
    of = report[when]
    levels = "; ".join(f"{level['used']} used, perplexity {level['perplexity']:.1f}" for level in of["levels"])
    sizes = [int(s) for s in of["prefix_buckets"]]
    rows.append([title, f"{of['distinct_share']:.4f}", f"{of['own_share']:.4f}", levels, max(sizes)])
  table = markdown_table(["codes", "distinct IDs / items", "items alone on their ID", "levels", "largest prefix bucket"], rows)
  head = (
    f"{report['items']:,} items{_write_twins(report)}, codebook {report['codebook_size']}, last level {report['last_level']}, "
    f"reconstruction R² {report['r2']:.3f}."
  )
  return f"{head}\n\n{table}\n\n{_TOKENIZER_NOTE}"


def _write_twins(report: Mapping[str, Any]) -> str:
  """How many items share their text (or vector), in runs that have counted it."""
  distinct = report.get("distinct_inputs", report["items"])
  return f" with {distinct:,} texts (or vectors), of which one has {report['largest_input']:,} items" if distinct < report["items"] else ""


def retrieval_section(run: pathlib.Path) -> str:
  """What of the whole catalogue the mid-trained model and the upstream ranker find."""
  midtrain = read_artifact(run, "midtrain", "retrieval.json") or {}
  upstream = (read_artifact(run, "slates", "report.json") or {}).get("retrieval", {})
  tables = {f"mid-trained model, {name}": of for name, of in midtrain.items() if isinstance(of, Mapping)}
  tables |= {f"upstream ranker, {name}": of for name, of in upstream.items()}
  if not tables:
    return "No full-catalogue metrics in this run."
  metrics = [m for m in next(iter(tables.values())) if m != "n"]
  rows = [[escape_markdown(name), f"{int(of['n']):,}", *(format_number(of.get(m)) for m in metrics)] for name, of in tables.items()]
  return markdown_table(["ranker", "n", *metrics], rows) + "\n\n" + _RETRIEVAL_NOTE


def traces_section(run: pathlib.Path) -> str:
  """Which traces were accepted, by the place of their target."""
  report = read_artifact(run, "traces", "acceptance.json")
  if report is None:
    return "No traces in this run."
  pairs = zip(report["asked_by_upstream_rank"], report["accepted_by_upstream_rank"], strict=True)
  rows = [(r, asked, took, f"{took / asked:.3f}" if asked else "–") for r, (asked, took) in enumerate(pairs, 1)]
  reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in report["reasons"].items())
  head = (
    f"{report['sampling'].capitalize()} sampling: {report['accepted']:,} of {report['slates']:,} slates with an accepted trace, "
    f"{report['attempts']:,} attempts ({reasons})."
  )
  return "\n\n".join([head, markdown_table(["target's upstream rank", "slates", "accepted", "share"], rows), _TRACES_NOTE])


def evidence_section(results: Mapping[str, Any]) -> str:
  """Which facts carry the order of a scored policy."""
  importance = results.get("importance", {})
  if not importance:
    return "No scored policy was measured: facts carry those alone."
  titles = titles_of(results)
  rows = [
    [write_ranker(name, titles), f"`{fact}`", f"{of['delta']:+.4f} [{of['ci95'][0]:+.4f}, {of['ci95'][1]:+.4f}]"]
    for name, facts in importance.items()
    for fact, of in list(facts.items())[:_MOST_FACTS]
  ]
  return markdown_table(["ranker", "fact", "N@3 lost without it"], rows) + f"\n\n{_EVIDENCE_NOTE}"


def cost_section(results: Mapping[str, Any], run: pathlib.Path) -> str:
  """Tokens of a slate by ranker, and seconds by stage."""
  text = []
  if results["cost"]:
    columns = [key for key in dict.fromkeys(key for of in results["cost"].values() for key in of) if key != "ms_per_slate"]
    titles = titles_of(results)
    rows = [[write_ranker(name, titles), *(format_number(of.get(c), ",.1f") for c in columns)] for name, of in results["cost"].items()]
    text += [markdown_table(["ranker", *(c.replace("_", " ") for c in columns)], rows), _COST_NOTE]
  seconds = _stage_seconds(run)
  if seconds:
    stages = ", ".join(f"{stage} {s:.0f}" for stage, s in seconds.items())
    text.append(f"Seconds by stage: {stages}; together {sum(seconds.values()):.0f}.")
  return "\n\n".join(text) or "No cost was measured in this run."


def _stage_seconds(run: pathlib.Path) -> dict[str, float]:
  """Seconds of each finished stage, in the order of the pipeline where their records tell it, the others by name."""
  done = {path.parent.name: read_mark(path) or {} for path in run.glob("*/done.json")}
  stages = sorted(done, key=lambda stage: (done[stage].get("place", math.inf), stage))
  return {stage: done[stage]["seconds"] for stage in stages}


def latency_section(run: pathlib.Path) -> str:
  """The points of `experiments.latency` as a table, the fastest first."""
  latency = read_artifact(run, "evaluation", "latency.json")
  return "Not measured in this run; `python -m experiments.latency --run=RUN` does." if latency is None else latency_table(latency)


def provenance_section(results: Mapping[str, Any], run: pathlib.Path) -> str:
  """Seeds, command and versions."""
  command = run / "command.txt"
  lines = command.read_text(encoding="utf-8").strip() if command.exists() else "(command.txt is missing)"
  versions = flat_leaves(read_artifact(run, "versions.json") or {})
  text = f"Seeds: {', '.join(map(str, results['seeds']))}. The resolved config is `config.json`.\n\n{code_block(lines)}"
  if versions:
    text += (
      "\n\nVersions: " + ", ".join(f"{name} {escape_markdown(str(value))}" for name, value in versions.items() if value is not None) + "."
    )
  return text
