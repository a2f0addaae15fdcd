"""Answers read back from a file, and one slate before and after as a table."""

import io
import json

import pytest
from rich.console import Console

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.evaluation.results import ResultsError
from gr2_jax.reports.answers import read_answers, show_answer

CATALOGUE = Catalogue(
  (
    Item("a", "Rose Gel", brand="Velora", categories=("Hair Care", "Styling Gel")),
    Item("b", "Mint [bold]Toner"),
    Item("c", "", brand="Aquine"),
    Item("d", "Citrus " * 20),
  )
)
LINE = {"user": "u1", "history": ["a", "d"], "candidates": ["b", "a", "c"], "labels": [0, 1, 2]}
VALID = LINE | {"order": ["c", "a", "b"], "error": None, "completion": "<think> Gel \u2028 best <C> </think>"}
INVALID = LINE | {"order": None, "error": "repeated", "completion": "<answer> <A> <A>"}


def write(path, *records):
  path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
  return path


def render(answer, catalogue=CATALOGUE):
  console = Console(width=120, record=True, file=io.StringIO())
  console.print(show_answer(answer, catalogue))
  return console.export_text()


def test_answers_are_read_in_order(tmp_path):
  first, second = read_answers(write(tmp_path / "answers_policy.jsonl", VALID, INVALID))
  assert first.ranking == ("c", "a", "b") and first.labels == (0, 1, 2) and first.completion == VALID["completion"]
  assert second.ranking is None and second.error == "repeated"


def test_each_rank_shows_the_item_before_and_after(tmp_path):
  text = render(read_answers(write(tmp_path / "x.jsonl", VALID))[0])
  rows = [line.split(None, 1) for line in text.splitlines() if line.strip()[:1].isdigit()]
  # Upstream b, a, c; answered c, a, b. Label 1 of a is one star, label 2 of c two; c has no title, so its id stands in.
  assert [(rank, *map(str.strip, cells.split("  ", 1))) for rank, cells in rows] == [
    ("1", "Mint [bold]Toner", "★★ c (Aquine)"),
    ("2", "★ Rose Gel (Styling Gel, Velora)", "★ Rose Gel (Styling Gel, Velora)"),
    ("3", "★★ c (Aquine)", "Mint [bold]Toner"),
  ]
  assert "the latest 2 of 2 items" in text and "Citrus…" in text and "best <C>" in text


def test_an_invalid_answer_shows_its_error_and_no_ranking(tmp_path):
  text = render(read_answers(write(tmp_path / "x.jsonl", INVALID))[0])
  assert "after: invalid answer (repeated)" in text and "<answer> <A> <A>" in text
  assert text.count("Mint [bold]Toner") == 1


def test_titles_and_texts_cannot_act_on_the_terminal(tmp_path):
  hostile = Catalogue((Item("a", "Rose\x1b[31m\u202eleG", brand="B\x07"), *CATALOGUE.items[1:]))
  text = render(read_answers(write(tmp_path / "x.jsonl", VALID | {"user": "u\x1b]0;x", "completion": "x\x9b2J"}))[0], hostile)
  assert r"Rose\x1b[31m\u202eleG (B\x07)" in text and r"u\x1b]0;x" in text and r"x\x9b2J" in text
  assert not set("\x1b\x07\x9b\u202e") & set(text)


def test_what_a_reasoning_states_is_marked(tmp_path):
  said = [
    {"candidate": "a", "fact": "brand_share", "said": "<brand:50%>", "true": True},
    {"candidate": None, "fact": "age", "said": "<age:0%>", "true": False},
  ]
  text = render(read_answers(write(tmp_path / "x.jsonl", VALID | {"named": "a", "statements": said}))[0])
  assert "true: <brand:50%>, said of Rose Gel" in text and "FALSE: <age:0%>, said of no candidate" in text
  assert "calls another the best than the answer's first: Rose Gel" in text
  assert "calls another" not in render(read_answers(write(tmp_path / "y.jsonl", VALID | {"named": "c", "statements": []}))[0])


@pytest.mark.parametrize(
  ("change", "reason"),
  [({"order": ["a", "b"]}, "no permutation"), ({"labels": [1]}, "1 labels for 3"), ({"history": None}, "TypeError")],
)
def test_a_broken_line_is_named(tmp_path, change, reason):
  with pytest.raises(ResultsError, match=rf"x\.jsonl:2: .*{reason}"):
    read_answers(write(tmp_path / "x.jsonl", VALID, VALID | change))


def test_a_half_written_line_and_a_missing_file_are_named(tmp_path):
  path = write(tmp_path / "x.jsonl", VALID)
  path.write_text(path.read_text(encoding="utf-8") + '{"user": "u', encoding="utf-8")
  with pytest.raises(ResultsError, match=r"x\.jsonl:2: "):
    read_answers(path)
  with pytest.raises(ResultsError, match=r"y\.jsonl: there is no such file"):
    read_answers(tmp_path / "y.jsonl")


def test_an_item_outside_the_catalogue_is_an_error(tmp_path):
  with pytest.raises(DataError, match="unknown item 'b'"):
    render(read_answers(write(tmp_path / "x.jsonl", VALID))[0], Catalogue((CATALOGUE.items[0], CATALOGUE.items[2], CATALOGUE.items[3])))
