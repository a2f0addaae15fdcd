"""The table of docs/pods.md: steps of configs/pods.py compiled for slices of TPUs, a JSON file a cell in docs/pods; what is there stays.

    python -m experiments.benchmarks.pods [--models=qwen3_0_6b,...] [--slices=v5e-256,...] [--steps=SFT,...]

Prints the table in the end. A cell takes minutes to compile; stopped and started again, the script goes on where it was.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.estimates.table import format_amount
from experiments.pods.report import BOUNDS, format_gib, format_time
from gr2_jax.files import write_json

MODELS = ("qwen3_0_6b", "qwen3_1_7b", "qwen3_8b", "qwen3_32b")
# Google's names: of v5p and tpu7x they count cores, two a chip.
SLICES = {
  "v5p-128": "v5p:4x4x4",
  "v5e-256": "v5e:16x16",
  "v5p-256": "v5p:4x4x8",
  "v6e-256": "v6e:16x16",
  "tpu7x-128": "tpu7x:4x4x4",
}
STEPS = {
  "mid-training": ("midtrain: update",),
  "SFT": ("sft: update",),
  "OPD": ("opd: update", "--teacher=qwen3_32b"),
  "rollout": ("rl: rollout",),
  "RL update": ("rl: update",),
}
FOLDER = pathlib.Path("docs/pods")


class Cell(NamedTuple):
  """A row of the table."""

  model: str
  step: str
  slice_name: str

  @property
  def path(self) -> pathlib.Path:
    """Where its figures lie."""
    return FOLDER / f"{self.model}-{self.step.lower().replace(' ', '_')}-{self.slice_name}.json"


def fill(cell: Cell) -> None:
  """Compiles it in a process of its own; what went wrong is kept too."""
  step, *more = STEPS[cell.step]
  program = [sys.executable, "-m", "experiments.compile_pod", f"--config=configs/pods.py:{cell.model}"]
  done = subprocess.run(
    [*program, f"--topology={SLICES[cell.slice_name]}", f"--step={step}", f"--to={cell.path}", *more], capture_output=True, text=True
  )
  if done.returncode:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    write_json(cell.path, {"error": lines[-1] if lines else f"exit code {done.returncode}"})


def list_rows(cells: Sequence[Cell]) -> Iterator[str]:
  """The table in Markdown, of cells that are there."""
  yield "| model | step | slice | mesh | HBM, GiB | fits | FLOPs | of them the model's | sent | at least | bound | compiled in |"
  yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
  for cell in cells:
    if cell.path.exists():
      yield _row(cell, json.loads(cell.path.read_text(encoding="utf-8")))


def _row(cell: Cell, found: dict[str, Any]) -> str:
  begin = f"| {cell.model} | {cell.step} | {cell.slice_name} |"
  if "error" in found:
    return f"{begin} | | no program: {found['error']} | | | | | | |"
  step = found["steps"][0]
  mesh, held = "x".join(str(size) for size in step["mesh"].values()), format_gib(step["held"])
  compiled = f"{step['seconds']:,.0f} s"
  if not step["fits"]:
    return f"{begin} {mesh} | {format_gib(step['needed'])} of {held} | no | | | | | | {compiled} |"
  work, floor = step["work"], step["floor"]
  share = step["model_flops"] / work["flops"] if work["flops"] else 1.0
  cells = (f"{format_gib(step['needed'])} of {held}", "yes", format_amount(work["flops"]), f"{share:.0%}", format_amount(work["sent"], "B"))
  return f"{begin} {mesh} | {' | '.join(cells)} | {format_time(floor['seconds'])} | {BOUNDS[floor['bound']]} | {compiled} |"


def main() -> None:
  """Fills what is missing of the cells that are asked for, and prints all that are there."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  for name, choices in (("models", MODELS), ("steps", tuple(STEPS)), ("slices", tuple(SLICES))):
    parser.add_argument(f"--{name}", default=",".join(choices), help=f"of {', '.join(choices)}; none: the table of what is there")
  given = parser.parse_args()
  asked = [[part for part in text.split(",") if part] for text in (given.models, given.steps, given.slices)]
  for parts, known in zip(asked, (MODELS, tuple(STEPS), tuple(SLICES)), strict=True):
    if unknown := [part for part in parts if part not in known]:
      parser.error(f"{unknown[0]!r} is none of {', '.join(known)}")
  for cell in itertools.starmap(Cell, itertools.product(*asked)):
    if not cell.path.exists():
      print(f"{cell.model}, {cell.step}, {cell.slice_name} ...", file=sys.stderr, flush=True)
      fill(cell)
  print("\n".join(list_rows([*itertools.starmap(Cell, itertools.product(MODELS, STEPS, SLICES))])))


if __name__ == "__main__":
  main()
