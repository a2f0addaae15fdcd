"""Numbers and text in tables: intervals, no interval from one user, and text that Markdown must not read."""

import pytest

from gr2_jax.reports.tables import (
  ONE_USER_NOTE,
  code_block,
  code_span,
  console_text,
  escape_markdown,
  format_lift,
  lift_style,
  markdown_table,
)

LIFT = {"delta": 0.05, "delta_ci95": [0.01, 0.09], "relative": 0.25, "ci95": [0.05, 0.45], "p": 0.01}
ALONE = {"delta": 0.05, "delta_ci95": None, "relative": 0.25, "ci95": None, "p": None}


def test_differences_are_relative_where_they_can_be():
  assert format_lift(LIFT) == "+25.0 % [5.0, 45.0]" and format_lift(LIFT, digits=0) == "+25 % [5, 45]"
  assert format_lift(LIFT | {"relative": None, "ci95": None}) == "+0.0500 [0.0100, 0.0900]"
  assert format_lift(LIFT | {"ci95": None}) == "+0.0500 [0.0100, 0.0900]"  # a baseline that is 0 in too many resamples
  assert format_lift(None) == ""


def test_one_user_has_a_difference_and_no_interval_and_the_table_says_so():
  assert format_lift(ALONE) == "+25.0 % [one user]" and lift_style(ALONE) == "dim"
  assert format_lift(ALONE | {"relative": None}) == "+0.0500 [one user]"
  assert markdown_table(["ranker", "R@1"], [["SFT", format_lift(ALONE)]]).endswith(ONE_USER_NOTE)
  assert ONE_USER_NOTE not in markdown_table(["ranker", "R@1"], [["SFT", format_lift(LIFT)]])


def test_text_of_users_stays_in_its_cell_and_in_its_code():
  cell = escape_markdown("a|b\\|c`d`\n<img src=x> *e* [f](g) \u202eh\x1b[0m")
  # A control character is told with a backslash, which is escaped in its turn.
  assert cell == r"a\|b\\\|c\`d\`\\n\<img src=x> \*e\* \[f\](g) \\u202eh\\x1b\[0m"
  # Within words underscores and ampersands are what they are.
  assert escape_markdown("my_data AT&T _x_ &lt; ~~y~~") == r"my_data AT&T \_x\_ \&lt; \~\~y\~\~"
  row = markdown_table(["title"], [[cell], ["mine|yours"]]).splitlines()
  assert row[2] == f"| {cell} |" and row[3] == r"| mine\|yours |"


@pytest.mark.parametrize(("text", "span"), [("a = 1", "`a = 1`"), ("a`b``c", "``` a`b``c ```"), ("a\nb", r"`a\nb`")])
def test_code_holds_backticks(text, span):
  assert code_span(text) == span


def test_a_block_of_code_cannot_be_closed_from_within():
  assert code_block("one\n```\n# two\x1b") == "````\none\n```\n# two\\x1b\n````"


def test_console_text_reads_no_markup():
  text = console_text("my[/bold]data\x1b[2J", "bold")
  assert text.plain == r"my[/bold]data\x1b[2J" and text.style == "bold"
