"""Text of users made safe to print: nothing in it moves the cursor, colours the terminal or turns the reading direction."""

import re

# Control characters (ESC among them), separators of lines and paragraphs, marks that embed, override or isolate a direction, and lone
# surrogates, which no terminal can encode.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
  r"""The text with `\x1b` and the like in place of control characters, line ends included, and of marks that turn the direction."""
  return _HARMFUL.sub(lambda found: repr(found[0])[1:-1], text)


def escape_lines(text: str) -> str:
  """The same, but lines stay lines: for a message whose line ends are its own."""
  return "\n".join(map(escape_controls, text.split("\n")))
