"""A JSONL file re-ranked line by line; what was written before a kill is kept."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from gr2_jax.data.jsonl import numbered_lines
from gr2_jax.files import write_json
from gr2_jax.runs.fingerprints import list_differences
from gr2_jax.runs.run import RunError
from gr2_jax.serving.request import Ranking, RequestError, parse_request, read_object
from gr2_jax.serving.reranker import Prepared, Reranker
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress


def rerank_file(
  reranker: Reranker, source: pathlib.Path, target: pathlib.Path, settings: dict[str, Any], progress: Progress, stop: StopSignal
) -> None:
  """Writes a line of `target` for each line of `source`.

  Until it is whole the result lies in `TARGET.part`, with the `settings` that made it beside it. Raises RunError where `target` exists
  or the part was made with others.
  """
  if target.exists():
    raise RunError(f"{target} exists; remove it, or give another name")
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
  head: dict[str, Any] = {"line": number, "id": None}
  try:
    record = read_object(line)
    given = (record.get(name) for name in ("id", "user"))
    head["id"] = next((str(id) for id in given if isinstance(id, str | int) and not isinstance(id, bool)), None)
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
