"""What a model answered, slate by slate: reading `answers_RANKER.jsonl` of a run, and one slate before and after as a table."""

import dataclasses
import json
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gr2_jax.data.schema import Catalogue, Item
from gr2_jax.evaluation.results import ResultsError
from gr2_jax.reports.tables import console_text

_LATEST = 5  # items of the history that are shown
_WIDTH = 60  # of an item's text


@dataclasses.dataclass(frozen=True)
class StatedFact:
  """What a reasoning `said` of a candidate (item id; None: of none of the slate), of which `fact`, and whether it is true."""

  candidate: str | None
  fact: str
  said: str
  true: bool


@dataclasses.dataclass(frozen=True)
class AnsweredSlate:
  """A request in the upstream order, the ranking answered (item ids; None with the error's kind where invalid), and the answer's text.

  `named`: the item that its reasoning calls the best; `statements`: what it states.
  """

  user: str
  history: tuple[str, ...]
  candidates: tuple[str, ...]
  labels: tuple[int, ...]
  ranking: tuple[str, ...] | None
  error: str | None
  completion: str
  named: str | None = None
  statements: tuple[StatedFact, ...] = ()


def read_answers(path: str | os.PathLike[str]) -> list[AnsweredSlate]:
  """The answers of a file, in the order of the test slates; raises ResultsError naming the file and the line."""
  path = pathlib.Path(path)
  if not path.exists():
    raise ResultsError(f"{path}: there is no such file; run the evaluation stage first")
  answers = []
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, start=1):
      try:
        answers.append(_to_answer(json.loads(line)))
      except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}:{number}: is no answer ({error!r}); make it again with the evaluation stage") from None
  return answers


def _to_answer(record: Mapping[str, Any]) -> AnsweredSlate:
  ranking = record["order"]
  answer = AnsweredSlate(
    user=record["user"],
    history=tuple(record["history"]),
    candidates=tuple(record["candidates"]),
    labels=tuple(record["labels"]),
    ranking=None if ranking is None else tuple(ranking),
    error=record["error"],
    completion=record["completion"],
    named=record.get("named"),  # files of the versions before reasons were checked have none
    statements=tuple(StatedFact(**of) for of in record.get("statements", ())),
  )
  if len(answer.labels) != len(answer.candidates):
    raise ValueError(f"{len(answer.labels)} labels for {len(answer.candidates)} candidates")
  if ranking is not None and sorted(ranking) != sorted(answer.candidates):
    raise ValueError("the ranking is no permutation of the candidates")
  return answer


def show_answer(answer: AnsweredSlate, catalogue: Catalogue) -> RenderableType:
  """One slate as a Rich table: each rank's item before (upstream order) and after, labelled items starred; around it history and text.

  A star stands for a label of 1, two for 2. An invalid answer has its error's kind in place of the ranking. Below the text stands what the
  reasoning states, each marked as true or false, and whether the candidate that it calls the best is the answer's first. Control
  characters in titles and texts are escaped.
  Raises DataError for an item that the catalogue lacks.
  """
  stars = {item: "★" * label for item, label in zip(answer.candidates, answer.labels, strict=True)}

  def cells(ids: Sequence[str]) -> list[Text]:
    items = [catalogue.items[row] for row in catalogue.to_rows(ids)]
    return [console_text(f"{stars[item.id]} {_item_text(item)}".strip(), "bold" if stars[item.id] else "") for item in items]

  before = cells(answer.candidates)
  after = [Text("")] * len(before) if answer.ranking is None else cells(answer.ranking)
  table = Table(box=box.SIMPLE_HEAD, title=_history_text(answer, catalogue), title_justify="left", title_style="")
  table.add_column("rank", justify="right")
  table.add_column("before: upstream order")
  table.add_column("after" if answer.ranking is not None else console_text(f"after: invalid answer ({answer.error})"))
  for rank, row in enumerate(zip(before, after, strict=True), start=1):
    table.add_row(str(rank), *row)
  return Group(table, console_text(f"Answer: {answer.completion}"), *_reason_lines(answer, catalogue))


def _reason_lines(answer: AnsweredSlate, catalogue: Catalogue) -> list[Text]:
  def name(item: str | None) -> str:
    return "no candidate" if item is None else _item_text(catalogue.items[catalogue.to_rows([item])[0]])

  lines = [
    console_text(f"  {'true' if of.true else 'FALSE'}: {of.said}, said of {name(of.candidate)}", "" if of.true else "dark_orange")
    for of in answer.statements
  ]
  if answer.named is not None and answer.ranking is not None and answer.named != answer.ranking[0]:
    lines.append(console_text(f"  It calls another the best than the answer's first: {name(answer.named)}", "dark_orange"))
  return lines


def _history_text(answer: AnsweredSlate, catalogue: Catalogue) -> Text:
  latest = [catalogue.items[row] for row in catalogue.to_rows(answer.history[-_LATEST:])]
  head = f"User {answer.user}, the latest {len(latest)} of {len(answer.history)} items, newest last:"
  return Text("\n").join(map(console_text, [head, *(f"  {_item_text(item)}" for item in latest)]))


def _item_text(item: Item) -> str:
  """`title (leaf category, brand)`, as far as known."""
  facts = ", ".join(fact for fact in (item.leaf, item.brand) if fact)
  title = textwrap.shorten(item.title, _WIDTH, placeholder="…") or item.id
  return f"{title} ({facts})" if facts else title
