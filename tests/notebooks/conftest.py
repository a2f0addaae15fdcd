"""Notebooks run as a reader runs them, over finished sweeps that are written by hand."""

import json
import pathlib

import numpy as np
import pytest
from nbmake.nb_run import NotebookRun

from experiments.flags import load_module
from experiments.variants import asked_of
from gr2_jax.evaluation.per_slate import write_per_slate
from gr2_jax.evaluation.results import COMPRESSED, Answers, RankerAnswers, build_results, measure_rankers, write_results
from gr2_jax.reports.sweeps import build_sweep, write_sweep
from gr2_jax.runs.run import Run
from gr2_jax.runs.run_file import read_run

ROOT = pathlib.Path(__file__).parents[2]
N, K, STEPS = 40, 6, 6
SEEDS = (0, 1)
TITLES = {"sft": "SFT policy", "opd": "OPD policy", "policy": "RL policy", "rl_control": "its control", "direct": "direct policy"}
# What is measured besides in sweeps that reward whole slates.
MARKET_METRICS = ("true_recall@1", "true_ndcg@3", "slate_reward", "brands@3", "small_brands@1", "price@3")


@pytest.fixture(scope="session")
def run_notebook():
  """`run_notebook(name, timeout=120, **environment)`: the cells' outputs as lists of `{mime type: content}`, by cell id; an exception in a
  cell fails the test with that cell and its trace."""

  def run(name, timeout=120, **environment):
    with pytest.MonkeyPatch.context() as patch:
      for key, value in {"JUPYTER_PREFER_ENV_PATH": 1, **environment}.items():  # the kernel of the interpreter that runs the tests
        patch.setenv(key, str(value))
      result = NotebookRun(ROOT / "notebooks" / f"{name}.ipynb", default_timeout=timeout).execute()
    assert result.error is None, result.error.trace
    return {cell.id: [o.get("data", {}) for o in cell.outputs] for cell in result.nb.cells if cell.cell_type == "code"}

  return run


@pytest.fixture(scope="session")
def finished_sweep(shared_folder):
  """`finished_sweep(study)`: the directory of a sweep of `configs/ablations/STUDY.py` with all that it compares, on toy slates."""

  def make(study):
    return shared_folder(f"finished_{study}", lambda folder: _write_sweep(folder / study, study)) / study

  return make


def _write_sweep(folder, study):
  ablation = load_module(str(ROOT / "configs" / "ablations" / f"{study}.py"))
  asked = asked_of(ablation)
  rankers = {variant: {"sft", "policy"} for variant in ablation.VARIANTS}
  named = [name for pairs in asked["comparisons"].values() for pair in pairs for name in pair]
  named += [name for teacher, students in asked["shares"].items() for name in (teacher, *students)]
  named += [name for front in asked["fronts"].values() for names in front["series"].values() for name in names]
  for variant, ranker in (name.split("/") for name in named):
    rankers[variant].add(ranker)
  if study == "compressor":
    for of in rankers.values():
      of |= {COMPRESSED + name for name in ("sids", "rules", "rewriter", "soft_tokens")}
  runs = {}
  for place, (variant, of) in enumerate(rankers.items()):
    folders = {seed: _write_run(folder / variant / f"seed_{seed}", seed, sorted(of - {"upstream"}), place) for seed in SEEDS}
    runs[variant] = {seed: read_run(Run.open(run)) for seed, run in folders.items()}
  write_sweep(folder, runs, build_sweep(runs, ablation.VARIANTS, 50, **asked))


def _write_run(run, seed, names, place):
  """A finished run's files; its rankers see the labels through noise, the later ones of a sweep more clearly."""
  rng = np.random.default_rng((seed, place))
  labels = np.eye(K, dtype=int)[np.random.default_rng(seed).integers(K, size=N)]
  natural = np.tile(np.arange(K), (N, 1))
  rankers = {"upstream": RankerAnswers.of(natural)}
  for strength, name in enumerate(names):
    guess = np.argsort(-((1 + 0.2 * (strength + place)) * labels + rng.normal(size=(N, K))), axis=1)
    rankers[name] = RankerAnswers({"upstream": Answers(guess, natural, [None] * N)})
  measured = measure_rankers(rankers, labels)
  for of in measured.values():
    of["upstream"] |= {name: of["upstream"]["mrr"] + rng.normal(0, 0.1, N) for name in MARKET_METRICS}
  users = [f"u{i}" for i in range(N)]
  results = build_results(
    dataset="toy", seeds=[seed], labels=labels, rankers=rankers, users=users, titles=TITLES, priors=["opd", "sft"], resamples=50
  )
  results["cost"] = {name: {"prompt_tokens": 100.0 if name == "policy" else 20.0 + place} for name in rankers}
  write_results(run / "evaluation" / "results.json", results)
  write_per_slate(run / "evaluation" / "per_slate.npz", measured, users)
  (run / "rl").mkdir()
  reads = {"config": {}, "inputs": {}, "files": {}}
  for stage in ("rl", "evaluation"):
    (run / stage / "done.json").write_text(json.dumps({"fingerprint": f"{stage} {run}", "reads": reads, "seconds": 60.0}))
  (run / "config.json").write_text(json.dumps({"seed": seed}))
  (run / "versions.json").write_text(json.dumps({"jax": "0.10.2", "git_commit": None}))
  (run / "command.txt").write_text("2026-01-01T00:00:00Z python -m experiments.sweep\n")
  (run / "metrics").mkdir()
  for stage in ("rl", "opd", "direct", "prune"):
    lines = [
      {"step": step, "identity_rate": 0.1, "near_identity_rate": 0.5, "recall@1": 0.3, "reverse_kl": 1 / step, "loss": 1 / step}
      for step in range(1, STEPS + 1)
    ]
    (run / "metrics" / f"{stage}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return run
