"""Numbers, paired differences and tables as the cards print them, in Markdown and on the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box

TABLE_STYLE: dict[str, Any] = {
  "box": box.SIMPLE_HEAD,
  "pad_edge": False,
  "padding": (0, 1, 0, 0),
  "title_justify": "left",
  "caption_justify": "left",
}


def format_number(value: float | None, form: str = ".4f") -> str:
  """The number, or a dash for None."""
  return "–" if value is None else format(value, form)


def format_lift(of: Mapping[str, Any] | None, digits: int = 1) -> str:
  """`+12.3 % [5.1, 20.2]`; the difference itself, with three more digits, where the baseline's mean is 0; empty for None."""
  if of is None:
    return ""
  if of["relative"] is None or of["ci95"] is None:
    value, (low, high), digits, unit = of["delta"], of["delta_ci95"], digits + 3, ""
  else:
    value, low, high, unit = (100 * of["relative"], *(100 * x for x in of["ci95"]), " %")
  return f"{value:+.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def lift_style(of: Mapping[str, Any] | None) -> str:
  """Rich style of a paired difference: blue for better, orange for worse, dim where the interval holds 0."""
  if of is None or of["delta_ci95"][0] <= 0 <= of["delta_ci95"][1]:
    return "dim"
  return "blue" if of["delta"] > 0 else "dark_orange"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table; bars and line ends inside cells cannot break it."""

  def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

  return "\n".join([line(header), "|---" * len(header) + "|", *(line(row) for row in rows)])
