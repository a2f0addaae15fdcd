"""Numbers, paired differences, tables and the text of users as the cards print them, in Markdown and on the console."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.text import Text

from gr2_jax.printable import escape_controls, escape_lines

TABLE_STYLE: dict[str, Any] = {
  "box": box.SIMPLE_HEAD,
  "pad_edge": False,
  "padding": (0, 1, 0, 0),
  "title_justify": "left",
  "caption_justify": "left",
}
# Signs of Markdown; underscores begin or end emphasis outside words only, and an ampersand is read only where it begins an entity.
_SIGNS = re.compile(r"[\\`|<*~\[\]]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
ONE_USER = "[one user]"  # in place of an interval
ONE_USER_NOTE = f"{ONE_USER}: there is no interval from one user."


def format_number(value: float | None, form: str = ".4f") -> str:
  """The number, or a dash for None."""
  return "–" if value is None else format(value, form)


def format_lift(of: Mapping[str, Any] | None, digits: int = 1) -> str:
  """`+12.3 % [5.1, 20.2]`; the difference itself, with three more digits, where it has no interval relative to the baseline's mean.

  `+12.3 % [one user]` for a difference without any interval; empty for None.
  """
  if of is None:
    return ""
  if of["relative"] is None or (of["ci95"] is None and of["delta_ci95"] is not None):
    value, interval, digits, unit = of["delta"], of["delta_ci95"], digits + 3, ""
  else:
    value, interval, unit = 100 * of["relative"], of["ci95"] and [100 * x for x in of["ci95"]], " %"
  between = ONE_USER if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
  return f"{value:+.{digits}f}{unit} {between}"


def format_share(of: Mapping[str, Any]) -> str:
  """A share with its interval, `82 % [75, 90]`; a dash where there is none."""
  if of["share"] is None:
    return format_number(None)
  low, high = of["ci95"]
  return f"{100 * of['share']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def count_slates(count: int, kind: str = "") -> str:
  """`1 slate`, `1,000 test slates`."""
  return f"{count:,} {kind}{'slate' if count == 1 else 'slates'}"


def is_decided(of: Mapping[str, Any]) -> bool:
  """Whether a paired difference has an interval, and one that does not hold 0."""
  return of["delta_ci95"] is not None and not of["delta_ci95"][0] <= 0 <= of["delta_ci95"][1]


def lift_style(of: Mapping[str, Any] | None) -> str:
  """Rich style of a paired difference: blue for better, orange for worse, dim where the interval holds 0 or there is none."""
  if of is None or not is_decided(of):
    return "dim"
  return "blue" if of["delta"] > 0 else "dark_orange"


def console_text(text: str, style: str = "") -> Text:
  """Text for a Rich table or console: markup and control characters in it stay visible."""
  return Text(escape_controls(text), style=style)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table of cells in Markdown; bars and line ends inside cells cannot break it, and `[one user]` is told below."""

  def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", str(c)).replace("\n", " ") for c in cells) + " |"

  table = "\n".join([line(header), "|---" * len(header) + "|", *(line(row) for row in rows)])
  return f"{table}\n\n{ONE_USER_NOTE}" if ONE_USER in table else table


def escape_markdown(text: str) -> str:
  """Text that Markdown shows as it is: its own signs, HTML's and control characters lose their effect, inside tables too."""
  return _SIGNS.sub(r"\\\g<0>", escape_controls(text))


def code_span(text: str) -> str:
  """Text as code within a line, whatever backticks it holds."""
  text = escape_controls(text)
  fence = "`" * (_longest_run(text) + 1)
  return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def code_block(text: str) -> str:
  """Lines as a block of code, whatever backticks they hold."""
  text = escape_lines(text)
  fence = "`" * max(_longest_run(text) + 1, 3)
  return f"{fence}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
  """How many backticks stand together at most."""
  return max(map(len, re.findall("`+", text)), default=0)
