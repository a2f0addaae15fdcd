"""A config file opens with what a reader asks first, in one form: claim, paper, result to expect, hardware, command, measured page."""

import ast
import re

import pytest
from small_runs import ROOT

LABELS = ("Claim|Purpose", "Paper", "Expected", "Hardware", "Command", "Measured")
FILES = sorted(
  str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py") if "def get_config(" in path.read_text(encoding="utf-8")
)


def opening_of(file):
  """Label -> text, line ends as spaces, of the docstring's first paragraph; and its lines."""
  text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))
  block = text.partition("\n\n")[0]
  parts = re.split(r"^(\w+): ", block, flags=re.MULTILINE)
  return {label: " ".join(part.split()) for label, part in zip(parts[1::2], parts[2::2], strict=True)}, block.split("\n")


@pytest.mark.parametrize("file", FILES)
def test_a_config_file_opens_with_its_labelled_parts_in_ten_lines(file):
  parts, lines = opening_of(file)
  assert re.fullmatch(" ".join(f"({label})" for label in LABELS), " ".join(parts)), list(parts)
  assert all(parts.values())
  assert len(lines) <= 10
  assert all(re.match(r"\w+: |  \S", line) for line in lines), "a part that goes on is indented by two"


@pytest.mark.parametrize("file", FILES)
def test_the_command_of_a_config_file_is_of_that_file(file):
  program = "sweep" if "\nVARIANTS" in (ROOT / file).read_text(encoding="utf-8") else "run"
  command = rf"python -m experiments\.{program} --config={re.escape(file)}(:\S+)? --workdir=runs/\w+"
  assert re.fullmatch(command, opening_of(file)[0]["Command"])


@pytest.mark.parametrize("file", FILES)
def test_what_is_expected_stands_on_the_pages_where_it_was_measured(file):
  parts, _ = opening_of(file)
  pages = re.findall(r"docs/results/\w+\.md", parts["Measured"])
  assert pages, "a page, or nothing yet and the list of pages"
  measured = " ".join("".join((ROOT / page).read_text(encoding="utf-8") for page in pages).split())
  intervals = re.findall(r"\[[^\]]+\]", parts["Expected"])
  numbers = re.findall(r"[+-]?\.\d{3}\b|[+-]\d[\d.]* %", parts["Expected"])
  assert bool(intervals) == parts["Measured"].startswith("docs/") == (not parts["Expected"].startswith("not measured"))
  assert [number for number in (*intervals, *numbers) if number not in measured] == []
