"""The compressor's stage: every variant on a tiny run with verbose histories, from its cache to the card, stopped and continued."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_runs import continue_from, hash_files, tiny_config

from experiments.estimates.data import count_data
from experiments.stage_steps import list_steps
from gr2_jax.compression.cache import history_key, open_histories
from gr2_jax.compression.rules import OUTCOMES
from gr2_jax.data.jsonl import read_slates
from gr2_jax.runs.run import Run, RunError
from gr2_jax.serving.measure import measure
from gr2_jax.serving.request import Request
from gr2_jax.serving.reranker import Reranker
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.progress import Progress

pytestmark = pytest.mark.slow  # a run of all compressors takes minutes

VARIANTS = ("sids", "rules", "rewriter", "soft_tokens")
BUDGET = 24
VERBOSE = {"prompt__history_fields": ("title", "categories", "brand"), "prompt__max_prompt_tokens": 400, "sft__row_length": 512}
BEFORE = ("data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft", "rl")


def compress_config(**changes):
  return tiny_config(**VERBOSE, **{"compress__variants": VARIANTS, "compress__budget": BUDGET} | changes)


@pytest.fixture(scope="module")
def compressed(tiny_run, run_here, tmp_path_factory):
  """A finished run with verbose histories and all compressors."""
  config = compress_config()
  run = continue_from(tiny_run, tmp_path_factory.mktemp("verbose") / "run", config, BEFORE[:5])
  assert run_here(config, run) == 0
  return run


def read_json(path):
  return json.loads(path.read_text(encoding="utf-8"))


def entries(run, variant):
  return [json.loads(line)["value"] for line in (run / "compress" / f"{variant}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_test_history_is_compressed_once(compressed, variant):
  slates = read_slates(compressed / "slates" / "test.jsonl.gz", None)
  of = entries(compressed, variant)
  assert len(of) == len({slate.history for slate in slates})
  assert all(0 < len(entry["tokens"]) <= BUDGET < entry["original"] for entry in of)
  report = read_json(compressed / "compress" / "report.json")[variant]
  assert report["histories"] == len(of) == sum(report["outcomes"].values())
  assert set(report["outcomes"]) <= set(OUTCOMES)
  np.testing.assert_allclose(report["history_kept"], sum(len(e["tokens"]) for e in of) / sum(e["original"] for e in of))
  if variant == "rewriter":  # so small a model writes little that can be used: the rules stand in, and it is counted
    rules = entries(compressed, "rules")
    assert all(mine["tokens"] == other["tokens"] for mine, other in zip(of, rules, strict=True) if mine["outcome"] != "ok")


def test_what_was_trained_is_logged_and_soft_tokens_are_those_of_all_items(compressed):
  lines = {name: (compressed / "metrics" / f"compress_{name}.jsonl").read_text() for name in ("rewriter_warmup", "rewriter", "soft_tokens")}
  steps = {name: [json.loads(line)["step"] for line in text.splitlines()] for name, text in lines.items()}
  assert steps == {"rewriter_warmup": [1, 2, 3], "rewriter": [1, 2], "soft_tokens": [1, 2, 3]}
  step = json.loads(lines["rewriter"].splitlines()[-1])
  assert step["alpha"] == 0.5 and 0 <= step["valid_rate"] <= 1
  rates = sum(step[f"{outcome}_rate"] for outcome in ("overlong", "empty", "wrong_format", "unknown_item"))
  np.testing.assert_allclose(rates + step["valid_rate"], 1)
  memory = np.load(compressed / "compress" / "memory.npy")
  assert memory.shape == (120, 32) and np.isfinite(memory).all()


def test_an_estimate_has_the_states_that_were_saved(compressed):
  run = Run.open(compressed)
  steps = {step.name: step for step in list_steps(run.config, count_data(run.config).sizes, "compress")}
  folders = {"rewriter: warm-up": "rewriter_warmup", "rewriter: update": "rewriter", "soft tokens: update": "soft_tokens"}
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  for name, folder in folders.items():
    state = steps[name].arguments[0].arrays
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)
    chosen = run.path("compress", f"{folder}_training")  # where held-out data choose a step
    checkpoints = Checkpointer(chosen if chosen.exists() else run.path("compress", folder))
    assert checkpoints.restore_latest(shapes) is not None, name


def test_the_policy_is_measured_on_each_of_them(compressed):
  results = read_json(compressed / "evaluation" / "results.json")
  full = results["cost"]["policy"]
  for variant in VARIANTS:
    name = f"policy_compressed_{variant}"
    assert results["cost"][name]["prompt_tokens"] < full["prompt_tokens"]
    assert results["cost"][name]["prefill_ms"] > 0 < full["prefill_ms"]
    of = results["paired"][f"{name}_vs_policy"]["ndcg@3"]
    np.testing.assert_allclose(of["delta"], results["orders"][name]["ndcg@3"] - results["orders"]["policy"]["ndcg@3"], atol=1e-12)
  card = (compressed / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert "| full | " in card and "| rewriter | " in card


@pytest.mark.parametrize("variant", VARIANTS)
def test_requests_get_the_histories_that_were_measured(compressed, variant):
  reranker = Reranker.load(compressed, compressor=variant)
  slates = read_slates(compressed / "slates" / "test.jsonl.gz", reranker.policy.context.catalogue)
  cached = open_histories(Run.open(compressed), variant)
  history, assistant = (reranker.policy.context.vocabulary.special(name) for name in ("history", "assistant"))
  for slate in slates:
    entry = cached[history_key(slate.history)]
    prepared = reranker.prepare(Request(slate.history, slate.candidates, timestamp=slate.timestamp))
    tokens = prepared.rows[0].tokens
    assert tokens[tokens.index(history) + 1 : tokens.index(assistant)] == entry["tokens"]
    written = variant != "rewriter" or entry["outcome"] == "ok"
    assert prepared.fields["compressor"] == (variant if written else "rules")
    assert prepared.fields["history_tokens"] == len(entry["tokens"])
  with pytest.raises(RunError, match=r"compressor: .*'prose'"):
    Reranker.load(compressed, compressor="prose")


def test_compressors_are_points_of_the_latency(compressed, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(compressed, run)
  path = measure(
    str(run),
    [],
    stages=None,
    compressors=["full", "soft_tokens", "sids"],
    modes=["score"],  # quick, if nothing that the policy was trained for
    force=True,
    presentations=[1],
    requests=3,
    batch_size=8,
    progress=Progress(),
  )
  points = {point["compressor"]: point for point in read_json(path)["points"]}
  assert list(points) == ["full", "soft_tokens", "sids"] and {point["stage"] for point in points.values()} == {"rl"}
  assert points["soft_tokens"]["history_tokens"] <= BUDGET < points["full"]["history_tokens"]
  results = read_json(run / "evaluation" / "results.json")
  assert all(point["n"] == results["n"] and point["p50_ms"] > 0 for point in points.values())


def test_a_stage_that_was_stopped_asks_only_for_what_is_missing(compressed, run_here, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(compressed, run)
  done = read_json(run / "compress" / "done.json")
  (run / "compress" / "done.json").unlink()
  (run / "compress" / "started.json").write_text(json.dumps({"reads": done["reads"], "seconds": 1.0}))
  cache = run / "compress" / "rewriter.jsonl"
  whole = cache.read_bytes()
  lines = whole.splitlines(keepends=True)
  cache.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed in the middle of a line
  before = hash_files(run / "compress")
  assert run_here(compress_config(), run, ["compress"]) == 0
  assert cache.read_bytes() == whole
  after = hash_files(run / "compress")
  kept = [path for path in before if (path.suffix == ".jsonl" and path != cache) or "checkpoints" in str(path)]
  assert kept and all(after[path][0] == before[path][0] for path in kept)
  assert read_json(run / "compress" / "report.json") == read_json(compressed / "compress" / "report.json")


def test_a_chat_judge_whose_key_is_not_set(compressed, run_here, tmp_path, capsys):
  config = compress_config(
    compress__variants=("rewriter",),
    compress__rewriter__judge="chat",
    compress__rewriter__chat__url="http://localhost:8000/v1",
    compress__rewriter__chat__model="m",
    compress__rewriter__chat__api_key_variable="NO_SUCH_KEY",
  )
  run = continue_from(compressed, tmp_path / "run", config, BEFORE)
  assert run_here(config, run, ["compress"]) == 1
  error = capsys.readouterr().err
  assert error.startswith("ERROR: config.compress.rewriter.chat.api_key_variable: NO_SUCH_KEY is not set")


def test_a_warmup_row_that_holds_no_example(compressed, run_here, tmp_path, capsys):
  config = compress_config(compress__variants=("rewriter",), compress__rewriter__warmup__row_length=64)
  run = continue_from(compressed, tmp_path / "run", config, BEFORE)
  assert run_here(config, run, ["compress"]) == 1
  assert "config.compress.rewriter.warmup.row_length: 64 is too short for a history" in capsys.readouterr().err


def test_codes_for_a_history_of_codes_begin_without_a_loss(tiny_run, run_here, tmp_path):
  # As many soft tokens as codes start as the codes themselves, and the tiny run's histories are codes alone: both prompts read the same.
  config = tiny_config(
    compress__variants=("soft_tokens",), compress__budget=36, compress__soft_tokens__per_item=3, compress__soft_tokens__steps=1
  )
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE)
  assert run_here(config, run, ["compress"]) == 0
  step = json.loads((run / "metrics" / "compress_soft_tokens.jsonl").read_text())
  assert step["loss"] == pytest.approx(0.0, abs=1e-5) and step["nll"] > 0
  slates = read_slates(run / "slates" / "test.jsonl.gz", None)
  assert [len(entry["tokens"]) for entry in entries(run, "soft_tokens")] == [3 * len(slate.history) for slate in slates]
