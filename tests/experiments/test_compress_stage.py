"""The compressor's stage: every variant on a tiny run with verbose histories, from its cache to the card, stopped and continued."""

import json

import numpy as np
import pytest
from small_runs import continue_from, tiny_config

from gr2_jax.data.jsonl import read_slates

VERBOSE = {"prompt__history_fields": ("title", "categories", "brand"), "prompt__max_prompt_tokens": 400, "sft__row_length": 512}
VARIANTS = ("sids", "rules")


def compress_config(**changes):
  return tiny_config(**VERBOSE, compressor__variants=VARIANTS, compressor__budget=24, **changes)


@pytest.fixture(scope="module")
def ranked(tiny_run, run_here, tmp_path_factory):
  """A run with verbose histories up to its policy, and what else its compressors start from."""
  config = compress_config()
  run = continue_from(tiny_run, tmp_path_factory.mktemp("verbose") / "run", config, ("data", "tokenize", "midtrain", "slates"))
  assert run_here(config, run, ["traces", "sft", "rl"]) == 0
  return run


@pytest.fixture(scope="module")
def compressed(ranked, run_here):
  """The same run to the end."""
  assert run_here(compress_config(), ranked) == 0
  return ranked


def read_json(path):
  return json.loads(path.read_text(encoding="utf-8"))


def entries(run, variant):
  return [json.loads(line)["value"] for line in (run / "compress" / f"{variant}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_test_history_is_compressed_once(compressed, variant):
  slates = read_slates(compressed / "slates" / "test.jsonl.gz", None)
  of = entries(compressed, variant)
  assert len(of) == len({slate.history for slate in slates})
  assert all(0 < len(entry["tokens"]) <= 24 < entry["original"] for entry in of)
  report = read_json(compressed / "compress" / "report.json")[variant]
  assert report["histories"] == len(of) == sum(report["outcomes"].values())
  np.testing.assert_allclose(report["history_kept"], sum(len(e["tokens"]) for e in of) / sum(e["original"] for e in of))


def test_the_policy_is_measured_on_each_of_them(compressed):
  results = read_json(compressed / "evaluation" / "results.json")
  full = results["cost"]["policy"]
  for variant in VARIANTS:
    name = f"policy_compressed_{variant}"
    assert results["cost"][name]["prompt_tokens"] < full["prompt_tokens"]
    assert results["cost"][name]["prefill_ms"] > 0 < full["prefill_ms"]
    of = results["paired"][f"{name}_vs_policy"]["ndcg@3"]
    np.testing.assert_allclose(of["delta"], results["orders"][name]["ndcg@3"] - results["orders"]["policy"]["ndcg@3"])
  card = (compressed / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert "| full | " in card and "| rules | " in card
