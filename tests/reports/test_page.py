"""Pages that are sent on: whole in one file, what their text holds shown as text, tables and plots in place."""

import base64
import html.parser
import re

from gr2_jax.reports.page import render_page
from gr2_jax.reports.tables import escape_markdown, markdown_table

PNG = b"\x89PNG\r\n"
HOSTILE = '<script>alert(1)</script> <br> <img src=x onerror=f()> [a](javascript:f()) "q" &lt; _x_'


class Reader(html.parser.HTMLParser):
  """Which elements a page has, with their attributes, whether each is closed, and its text."""

  def __init__(self, page):
    super().__init__()
    self.elements, self.open, self.text = [], [], []
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ("meta", "br", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


def read(markdown, pictures=()):
  page = render_page("toy", markdown, dict(pictures))
  found = Reader(page)
  assert found.open == []
  return page, found


def test_a_page_needs_nothing_else():
  page, found = read("# Title\n\nverdict\n\n## First part\n\n![a plot](plots/a.png)\n\n## Last", {"plots/a.png": PNG})
  assert found.all("img") == [{"alt": "a plot", "src": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}]
  assert not {"script", "link", "iframe"} & {tag for tag, _ in found.elements} and "http:" not in page and "https:" not in page
  assert "url(" not in page and "@import" not in page and "default-src 'none'" in page
  assert found.all("a") == [{"href": "#first-part"}, {"href": "#last"}] and found.all("h2") == [{"id": "first-part"}, {"id": "last"}]
  assert found.all("html") == [{"lang": "en"}] and "toy" in found.text
  # The sections are named between the verdict and the first of them.
  assert page.index("<p>verdict</p>") < page.index("<nav>") < page.index("<h2")


def test_it_has_rules_for_phones_dark_rooms_and_paper():
  page, found = read("text")
  assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")
  assert all(rule in page for rule in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto"))


def test_tables_keep_their_lines_and_scroll_by_themselves():
  _, found = read(markdown_table(["ranker", "R@1"], [["a|b", "0.5<br>+3 % [1, 5]"]]))
  assert len(found.all("table")) == 1 and len(found.all("br")) == 1 and len(found.all("td")) == 2
  assert "a|b" in found.text and found.all("div")[0]["class"] == "table"


def test_no_line_ends_within_a_difference():
  page, _ = read("R@1 +5.5 % [-0.6, 10.7], N@3 -8 % [5.0, .1], [a, b] and 95 of it")
  assert "R@1 +5.5\u00a0% [-0.6,\u00a010.7], N@3 -8\u00a0% [5.0,\u00a0.1], [a, b] and 95 of it" in page


def test_what_the_text_holds_is_shown_as_text():
  escaped = escape_markdown(HOSTILE)
  for markdown in (f"# {escaped}\n\n- {escaped}\n", markdown_table(["title"], [[escaped]])):
    _, found = read(markdown)
    assert not {"script", "img", "br", "a", "em"} & {tag for tag, _ in found.elements}
    assert HOSTILE in "".join(found.text)


def test_html_that_nobody_escaped_stays_text_too():
  page, found = read(f"<script>\nalert(1)\n</script>\n\n{HOSTILE}\n\n<!-- note -->\n\n[b](javascript:f()) ![c](http://elsewhere/x.png)")
  assert not {"script", "img"} & {tag for tag, _ in found.elements} and found.all("a") == []
  assert len(found.all("br")) == 1  # the only tag that the text may use
  assert "&lt;script&gt;" in page and "&lt;!-- note --&gt;" in page and not re.search("<img|onerror=[^f]", page)
