"""Every variant can be made; those without training are the rules, with and without categories, and say where there is no history."""

import dataclasses
import types

import pytest
from ml_collections import ConfigDict

from gr2_jax.compression import variants
from gr2_jax.compression.rules import VARIANTS, compress_by_rules
from gr2_jax.language.prompts import PromptStyle

STYLE = PromptStyle(history_fields=("title",), max_history=2)


def test_there_is_a_maker_for_each():
  assert tuple(variants._MAKERS) == VARIANTS


@pytest.mark.parametrize("variant", ["sids", "rules"])
def test_rules_of_the_latest_items_within_the_budget(context, slate, variant):
  stage = types.SimpleNamespace(prompts=context, style=STYLE, options=ConfigDict({"budget": 20}))
  slates = [dataclasses.replace(slate, history=history) for history in (("i5", "i3", "i0"), ("i2",), ())]
  rows = [[3, 0], [2], []]
  expected = [compress_by_rules(of, context, STYLE, budget=20, categories=variant == "rules") for of in rows]
  found = variants.make_compress(stage, variant)(slates)
  assert found == list(zip(expected, ["ok", "ok", "no_history"], strict=True))
