"""A page of Markdown as one HTML file that needs nothing else: no network, no scripts, plots inside; for phones, dark rooms and paper."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

_BREAK = "<br>"
_JOINED = re.compile(r"(?<=\d) (?=%)|(?<=\d,) (?=-?[\d.]+\])")  # within `+5.5 %` and `[0.6, 10.7]`, where no line should end
_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #5c5c5c; --line: #d9d9d9; --back: #ffffff; --band: #f5f6f7; --accent: #0060a0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --soft: #a8a8a8; --line: #3d4043; --back: #17191b; --band: #212426; --accent: #7cc0f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin-top: 2rem; font-size: 1.05rem; }
h1 + p { border-left: 4px solid var(--accent); padding: .5rem .75rem; background: var(--band); font-size: 1.1rem; }
p, li { max-width: 46rem; }
p:has(> img) { max-width: none; }
nav { margin: 1rem 0; color: var(--soft); font-size: .9rem; }
nav a { margin-right: .9rem; white-space: nowrap; }
a { color: var(--accent); }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal; }
tbody tr:nth-child(even) { background: var(--band); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); white-space: normal; min-width: 8rem; }
tbody tr:nth-child(even) td:first-child { background: var(--band); }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .875rem; }
pre { overflow-x: auto; padding: .75rem; background: var(--band); }
@media print {
  :root { color-scheme: light; --text: #000000; --soft: #333333; --line: #999999; --back: #ffffff; --band: #ffffff; --accent: #000000; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  .table { overflow: visible; }
  table { font-size: 8pt; }
  th, td { white-space: normal; padding: .15rem .3rem; }
  th:first-child, td:first-child { position: static; }
  pre { white-space: pre-wrap; }
  h2, h3, p:has(+ p > img) { break-after: avoid; }
  tr, img { break-inside: avoid; }
}
""".strip()
# A page that is sent on loads and runs nothing, whatever its text holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class _Renderer(RendererHTML):
  """HTML of tokens, with tables that scroll by themselves, pictures inside, and no HTML of the text's own but line breaks."""

  def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
    return _JOINED.sub("\u00a0", super().text(tokens, idx, options, env))

  def html_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
    content = tokens[idx].content
    return content if content == _BREAK else html.escape(content)

  def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
    return '<div class="table" role="region" aria-label="table" tabindex="0">\n<table>\n'

  def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
    return "</table>\n</div>\n"

  def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
    caption = html.escape(tokens[idx].content)
    picture = env["pictures"].get(tokens[idx].attrs["src"])
    if picture is None:
      return caption
    return f'<img alt="{caption}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def render_page(title: str, markdown: str, pictures: Mapping[str, bytes]) -> str:
  """The page of `markdown` in HTML; `title` is plain text, `pictures` the PNG files by the name that the Markdown calls them.

  Of HTML in the Markdown only `<br>` is kept, which tables need; all else is shown as the text that it is. In the place of a picture that
  is not given stands its caption.
  """
  parser = MarkdownIt("commonmark", renderer_cls=_Renderer).enable("table").disable("html_block")
  tokens = parser.parse(markdown)
  links = [f'<a href="#{identity}">{html.escape(name)}</a>' for identity, name in _name_sections(tokens)]
  body = parser.renderer.render(tokens, parser.options, {"pictures": pictures})
  top, heading, rest = body.partition("<h2")
  return "\n".join(
    [
      "<!DOCTYPE html>",
      '<html lang="en">',
      "<head>",
      '<meta charset="utf-8">',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{html.escape(title)}</title>",
      f"<style>\n{_STYLE}\n</style>",
      "</head>",
      "<body>",
      f"{top}<nav>{' '.join(links)}</nav>\n{heading}{rest}</body>",
      "</html>\n",
    ]
  )


def _name_sections(tokens: Sequence[Token]) -> list[tuple[str, str]]:
  """Gives each section's heading an id to link to; (id, title) of all."""
  sections = []
  for place, token in enumerate(tokens):
    if token.type == "heading_open" and token.tag == "h2":
      title = tokens[place + 1].content
      identity = re.sub(r"\W+", "-", title.lower())
      token.attrs["id"] = identity
      sections.append((identity, title))
  return sections
