"""Re-ranks the slates of a JSONL file with a run's policy; killed and started again, it goes on where it stopped.

    python -m experiments.rerank --run=RUN --input=slates.jsonl --output=ranked.jsonl

A line holds `history` and `candidates` (ids of the catalogue, or objects with `item`, `title`, `brand`, `categories`), and `id`,
`timestamp`, `mode`, `presentations` if wanted; a slates file will do. The output has one line for each input line, in its order:
`{"line", "id", "order", "scores", "reasoning", "fallback", "reason", "dropped_history", "assigned"}`, or
`{"line", "id", "error": {"kind", "message"}}` for a line that cannot be ranked. `id` is the line's `id`, or else its `user`.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from absl import app, flags

from experiments.run import exit_code_of
from experiments.rundir import RunError, hash_path, list_differences, write_json
from gr2_jax.data.jsonl import numbered_lines, parse_object
from gr2_jax.data.schema import DataError
from gr2_jax.serving.request import MODES, Ranking, RequestError, parse_request
from gr2_jax.serving.reranker import Options, Prepared, Reranker
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

_RUN = flags.DEFINE_string("run", None, "run directory of a trained policy")
_INPUT = flags.DEFINE_string("input", None, "slates to rank, .jsonl or .jsonl.gz")
_OUTPUT = flags.DEFINE_string("output", None, "where the ranked slates go, .jsonl")
_STAGE = flags.DEFINE_string("stage", "rl", "whose policy: rl or sft")
_MODE = flags.DEFINE_enum("mode", "reason", MODES, "how lines are ranked that name no mode")
_PRESENTATIONS = flags.DEFINE_integer("presentations", 1, "in how many orders a slate is shown", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "rows that the device works on at once", lower_bound=1)


def rerank_file(
  reranker: Reranker, source: pathlib.Path, target: pathlib.Path, settings: dict[str, Any], progress: Progress, stop: StopSignal
) -> None:
  """Writes a line of `target` for each line of `source`.

  Until it is whole the result lies in `TARGET.part`, with the `settings` that made it beside it. Raises RunError where `target` exists
  or the part was made with others.
  """
  if target.exists():
    raise RunError(f"--output: {target} exists; remove it, or give another name")
  part, made_with = (target.with_name(f"{target.name}{suffix}") for suffix in (".part", ".part.json"))
  done = _resume(part, made_with, settings)
  total = sum(1 for _ in numbered_lines(source))
  with progress.task("rerank", total, "slates") as task, part.open("ab") as file:
    task.start_from(done)
    lines = itertools.islice(numbered_lines(source), done, None)
    while chunk := list(itertools.islice(lines, reranker.options.batch_size)):
      written = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in rank_lines(reranker, chunk)]
      file.write("".join(written).encode("utf-8"))
      file.flush()
      done += len(chunk)
      task.update(done)
      stop.check()
  os.replace(part, target)
  made_with.unlink()


def rank_lines(reranker: Reranker, lines: Iterable[tuple[int, bytes]]) -> Iterator[dict[str, Any]]:
  """An output record for each (number, line), in their order; those that can be ranked are ranked together."""
  prepared = [_prepare(reranker, *line) for line in lines]
  rankings = iter(reranker.rank_prepared([request for _, request in prepared if isinstance(request, Prepared)]))
  for head, request in prepared:
    if isinstance(request, RequestError):
      yield head | {"error": {"kind": request.kind, "message": str(request)}}
    else:
      yield head | _record(next(rankings))


def _prepare(reranker: Reranker, number: int, line: bytes) -> tuple[dict[str, Any], Prepared | RequestError]:
  head = {"line": number, "id": None}
  try:
    try:
      record = parse_object(line)
    except DataError as error:
      raise RequestError("bad_request", str(error)) from None
    head["id"] = next((record[name] for name in ("id", "user") if isinstance(record.get(name), str | int)), None)
    return head, reranker.prepare(parse_request(record))
  except RequestError as error:
    return head, error


def _record(ranking: Ranking) -> dict[str, Any]:
  """Without timings, and scores rounded, so that a run that was stopped writes the bytes of one that was not."""
  record = dataclasses.asdict(ranking)
  del record["timings"]
  return record | {"scores": [round(score, 4) for score in ranking.scores]}


def _resume(part: pathlib.Path, made_with: pathlib.Path, settings: dict[str, Any]) -> int:
  """Lines that are done; a line that was cut off in the middle is taken away."""
  if not made_with.exists():
    part.unlink(missing_ok=True)
    write_json(made_with, settings)
    return 0
  differences = list_differences(json.loads(made_with.read_text(encoding="utf-8")), settings)
  if differences:
    changed = "\n  ".join(differences)
    raise RunError(f"{part} was begun differently (old -> new):\n  {changed}\nUndo the change, or remove {part} and {made_with}")
  lines = whole = 0
  if part.exists():
    with part.open("rb+") as file:
      for line in file:
        if not line.endswith(b"\n"):
          break
        lines, whole = lines + 1, whole + len(line)
      file.truncate(whole)
  return lines


def main(argv):
  """Ranks the file that the flags name."""

  def program():
    if len(argv) > 1:
      raise RunError(f"{argv[1]!r} is no flag; write --input=FILE")
    for name, value in (("run", _RUN.value), ("input", _INPUT.value), ("output", _OUTPUT.value)):
      if not value:
        raise RunError(f"--{name} is missing; for example --run=runs/quickstart --input=slates.jsonl --output=ranked.jsonl")
    if _OUTPUT.value.endswith(".gz"):
      raise RunError("--output: written line by line, so not compressed; give a .jsonl name")
    source, done_mark = pathlib.Path(_INPUT.value), pathlib.Path(_RUN.value) / _STAGE.value / "done.json"
    if not source.is_file():
      raise RunError(f"--input: no file {str(source)!r}; give a .jsonl or .jsonl.gz file of slates")
    options = Options(mode=_MODE.value, presentations=_PRESENTATIONS.value, batch_size=_BATCH_SIZE.value, max_presentations=64)
    reranker = Reranker.load(_RUN.value, stage=_STAGE.value, options=options)
    settings = {
      "policy": json.loads(done_mark.read_text(encoding="utf-8"))["fingerprint"],
      "input": hash_path(source),
      "mode": options.mode,
      "presentations": options.presentations,
    }
    progress = Progress()
    with StopSignal() as stop:
      rerank_file(reranker, source, pathlib.Path(_OUTPUT.value), settings, progress, stop)
    progress.note(_OUTPUT.value)

  return exit_code_of(program)


if __name__ == "__main__":
  app.run(main)
