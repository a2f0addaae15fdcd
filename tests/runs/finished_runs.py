"""Finished runs made by hand: a config of all settings, what stages left, results of a policy that sees labels through noise, curves."""

import json

import numpy as np

from configs.base import base
from gr2_jax.evaluation.per_slate import write_per_slate
from gr2_jax.evaluation.results import RankerAnswers, build_results, measure_rankers, write_results
from gr2_jax.runs.artifacts import describe_artifacts
from gr2_jax.runs.fingerprints import config_to_json

N, K = 40, 5


def make_finished_run(folder, seed=0, skill=1.0, *, slates=None, users=None, changes=None, versions=None):
  """Writes a run of `seed` at `folder`: its policy reads labels with `skill`; `slates`: the seed of its test slates (its own)."""
  config = base()
  config.update_from_flattened_dict({"seed": seed, "name": "by hand", **(changes or {})})
  labels = np.eye(K, dtype=int)[np.random.default_rng(seed if slates is None else slates).integers(K, size=N)]
  noise = np.random.default_rng(100 + seed).normal(size=(2, N, K))
  rankers = {"upstream": RankerAnswers.of(np.tile(np.arange(K), (N, 1)))}
  rankers |= {
    name: RankerAnswers.of(np.argsort(-(strength * labels + of), axis=1))
    for name, strength, of in zip(("sft", "policy"), (0.5, skill), noise, strict=True)
  }
  users = [f"u{i}" for i in range(N)] if users is None else users
  titles = {"sft": "SFT policy", "policy": "RL policy"}
  results = build_results(dataset="toy", seeds=[seed], labels=labels, rankers=rankers, users=users, titles=titles, resamples=50)
  write_results(folder / "evaluation" / "results.json", results)
  write_per_slate(folder / "evaluation" / "per_slate.npz", measure_rankers(rankers, labels), users)
  (folder / "evaluation" / "card.md").write_text("# by hand\n")
  (folder / "config.json").write_text(json.dumps(config_to_json(config)))
  (folder / "versions.json").write_text(json.dumps({"gr2_jax": "0.1.0", "jax": "0.10.2", "git_commit": None} | (versions or {})))
  (folder / "command.txt").write_text("2026-01-01T00:00:00Z python -m experiments.run --workdir=runs/hand\n")
  (folder / "data").mkdir()
  (folder / "data" / "items.jsonl.gz").write_bytes(f"items of seed {seed if slates is None else slates}".encode())
  for place, stage in enumerate(("data", "evaluation")):
    done = {"fingerprint": f"{stage} {seed}", "reads": {"config": {}, "inputs": {}, "files": {}}, "place": place, "seconds": 2.0}
    (folder / stage / "done.json").write_text(json.dumps(done | {"outputs": describe_artifacts(folder / stage)}))
  (folder / "metrics").mkdir()
  lines = [{"step": s, "time": 1.0 * s, "reward": 0.1 * s * skill, "recall@1": None} for s in range(1, 5)]
  (folder / "metrics" / "rl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder
