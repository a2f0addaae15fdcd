"""The least that can be brought: two items, no interactions, and histories too short to hold a target of their own."""

import json
from types import SimpleNamespace

import pytest
from small_runs import tiny_config

from experiments.stages.midtrain import _evaluate
from gr2_jax.data.jsonl import read_interactions, write_items, write_slates
from gr2_jax.data.schema import SPLITS, Item, Slate


def test_retrieval_that_nobody_asks_for_is_not_measured(tmp_path):
  said = []
  _evaluate(SimpleNamespace(options=None, path=lambda name: tmp_path / name, say=said.append), None, {"beams": 5}, ())
  assert json.loads((tmp_path / "retrieval.json").read_text()) == {"beams": 5, "requests": 0}
  assert "not measured" in said[0]


@pytest.mark.slow
def test_two_items_and_slates_alone_go_through_every_stage(run_here, tmp_path):
  folder, run = tmp_path / "dataset", tmp_path / "run"
  write_items(folder / "items.jsonl", [Item("a", "Rose Toner"), Item("b", "Mint Cleanser")])
  for split in SPLITS:
    slates = [
      Slate(f"{split}{i}", ("a", "b")[: 1 + i % 2], ("b", "a"), (int(i % 3 == 0), int(i % 3 != 0)), timestamp=100 + i) for i in range(12)
    ]
    write_slates(folder / f"slates_{split}.jsonl", slates)
  assert run_here(tiny_config(data__source=str(folder)), run) == 0
  assert len(read_interactions(run / "data" / "interactions.jsonl.gz", None)) == 36
  assert json.loads((run / "midtrain" / "retrieval.json").read_text())["requests"] == 0
  assert json.loads((run / "evaluation" / "results.json").read_text())["n"] == 12
