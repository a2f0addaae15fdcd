"""A trained policy in a form that needs no JAX: arrays by parameter path, and the files that say what its inputs mean."""

import pathlib
from typing import Any

import jax
import numpy as np

from gr2_jax.runs.archive import dump_arrays
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.load import load_trained, load_vocabulary, make_decoder
from gr2_jax.runs.policies import PolicyRecord, read_policies
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.scored import open_scorer
from gr2_jax.training.mesh import make_mesh

_FOLDER = "policy"


def pack_policy(run: Run, name: str) -> tuple[dict[str, Any], dict[str, bytes | pathlib.Path]]:
  """(what the policy of the ranker `name` is, its files): `policy/params.npz`, its vocabulary, the items' codes, a scored one's facts.

  Parameters that NumPy has no type for, bfloat16, are widened to float32. Raises RunError where no such policy was trained, or where its
  checkpoint is damaged.
  """
  record = next((policy for policy in read_policies(run) if policy.rankers[0].name == name), None)
  if record is None:
    raise RunError(f"{run.directory} has no finished policy {name!r}; share it without --with-policy")
  check_intact(run, record.stage)
  arrays = _params_of(run, record)
  files: dict[str, bytes | pathlib.Path] = {f"{_FOLDER}/params.npz": dump_arrays(arrays)}
  sources = [run.path("tokenize", "sids.npz"), *sorted(run.path("tokenize", "vocabulary").iterdir())]
  if record.form == "scored":
    sources.append(run.path("evidence", "codes.npz"))
  if record.form == "scored" and run.config.answer.texts:
    sources.append(run.path("tokenize", "vectors.npy"))
  files |= {f"{_FOLDER}/{path.name}": path for path in sources}
  about = {
    "ranker": name,
    "title": record.rankers[0].title,
    "stage": record.stage,
    "form": record.form,
    "mode": record.mode,
    "model": run.config.model.preset if run.config.model.init == "random" else run.config.model.init,
    "layers": record.layers,
    "parameters": {path: {"shape": list(array.shape), "dtype": str(array.dtype)} for path, array in arrays.items()},
  }
  return about, files


def _params_of(run: Run, record: PolicyRecord) -> dict[str, np.ndarray]:
  """Parameter path, `a/b/c` -> array."""
  scored = record.form == "scored"
  model: Any = open_scorer(run, layers=record.kept) if scored else make_decoder(run, load_vocabulary(run), record.kept)
  params = load_trained(run, model, make_mesh(**run.config.mesh), record.stage, record.checkpoints)
  found = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): _widen(np.asarray(array)) for path, array in found}


def _widen(array: np.ndarray) -> np.ndarray:
  return array if array.dtype.kind in "biuf" else array.astype(np.float32)
