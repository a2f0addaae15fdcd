"""Text of users on a terminal: what would act on it is told instead."""

import io

import pytest
from rich.console import Console

from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError
from gr2_jax.printable import escape_controls, escape_lines
from gr2_jax.training.progress import Progress

HOSTILE = "Rose\x1b[31m\x07 \u202egel\u2066\nx\u2028y\x9b"
ESCAPED = r"Rose\x1b[31m\x07 \u202egel\u2066\nx\u2028y\x9b"


def test_controls_are_told_and_text_stays():
  assert escape_controls(HOSTILE) == ESCAPED
  assert escape_lines("a\tb\nc\r") == "a\\tb\nc\\r"
  for text in ("Rosé ★ 30 ml", "שלום", "👩‍🔬", "化粧水", r"C:\new"):
    assert escape_controls(text) == text
  assert escape_controls("\ud800").encode("utf-8") == rb"\ud800"


@pytest.mark.parametrize("terminal", [False, True])
def test_notes_and_tasks_of_hostile_names(terminal):
  console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
  progress = Progress(console, every=0)
  progress.note(f"data: {HOSTILE} [/bold]")
  with progress.task(f"{HOSTILE} [/bold]", 1) as task:
    task.advance()
  told = console.file.getvalue()
  assert r"\x1b[31m\x07 \u202egel\u2066" in told and told.count("[/bold]") >= 2
  assert "\x1b[31m" not in told and "\u202e" not in told and "\x07" not in told


def test_errors_of_hostile_text(capsys):
  def program():
    raise UserError(f"item {HOSTILE}\nsecond line")

  assert exit_code_of(program) == 1
  told = capsys.readouterr().err
  assert "\x1b" not in told and "\u202e" not in told and told.endswith("\nsecond line\n")
