"""docs/config.md is what the records say, for every key, and says who reads it."""

import re

import pytest
from ml_collections import ConfigDict

from configs.base import base
from experiments.config_page import PAGE, render_page
from gr2_jax.runs.fingerprints import value_at


@pytest.fixture(scope="module")
def page():
  return render_page(base())


def rows(page):
  """Dotted key -> [meaning, unit, default, values, readers]."""
  cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
  return {key.strip("`"): rest for key, *rest in cells}


def leaves(section, prefix=""):
  for key, value in section.items():
    yield from leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]


def test_the_page_in_the_repository_is_the_one_that_is_made(page):
  assert PAGE.read_text(encoding="utf-8") == page, "write it anew: python -m experiments.config_page"


def test_the_page_has_every_key_with_its_default_and_all_cells(page):
  config, of = base(), rows(page)
  assert list(of) and set(of) == set(leaves(config))
  for key, (meaning, _, default, values, readers) in of.items():
    assert default == ("empty" if value_at(config, key) == "" else f"`{value_at(config, key)}`"), key
    assert len(meaning.split()) > 1 and values and readers, key
  assert re.findall(r"(?<!`)<\w+>", page) == [], "a browser takes it for HTML"


def test_the_page_says_who_reads_a_key_and_on_what_that_depends(page):
  readers = {key: cells[-1] for key, cells in rows(page).items()}
  assert readers["name"] == "-"
  assert readers["prompt.order"] == "`traces`, `sft`, `opd`, `rl`, `compress`, `direct`, `prune`, `evaluation`"
  assert readers["prompt.facts"].startswith("`tokenize` (if `prompt.facts` is not empty), `traces`, `sft`")
  assert readers["evidence.facts"] == "`evidence`"
  assert readers["evidence.bins"] == "`tokenize` (if `prompt.facts` is not empty), `evidence`"
  assert readers["data.market.num_items"] == "`data` (if `data.source` is `synthetic`)"
  assert readers["midtrain.packed.folds"] == "`midtrain` (if `midtrain.form` is `packed`)"
  assert readers["midtrain.mixture.persona"] == "`midtrain` (if `midtrain.form` is `tokens`)"
  assert readers["slates.size"] == "`slates` (if `slates.source` is not `log`)"
  assert readers["compress.rewriter.group"] == "`compress` (if `compress.variants` has `rewriter`)"
  assert readers["rl.slate.small_share"] == "`rl` (if `rl.slate.small_brands` is not `0.0`)"
