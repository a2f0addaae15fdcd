"""Runs of the real program, in this process or in their own; compiled code is shared by all of them, since most have the same shapes."""

import os
import sys

import jax
import pytest

from experiments import artifacts
from experiments.run import execute
from gr2_jax.data.jsonl import write_interactions, write_items, write_slates
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.training.mesh import make_mesh


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
  """A folder of compiled programs; while a test uses it, this process reads and fills it too."""
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def program_environment(compiled):
  """The environment of a program run on its own."""
  cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  return os.environ | cache


@pytest.fixture(scope="session")
def run_here(compiled):
  """`run_here(config, workdir, stages)`: the program in this process on one device; returns its exit code."""

  def run(config, workdir, stages=None):
    with pytest.MonkeyPatch.context() as patch:
      # The tests' eight devices would each want a share of batches of two.
      patch.setattr(artifacts, "make_mesh", lambda **sizes: make_mesh(**sizes, devices=jax.devices()[:1]))
      saved = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}
      jax.config.update("jax_compilation_cache_dir", str(compiled))
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
      try:
        return execute(config, str(workdir), stages, [sys.executable, "-m", "experiments.run"])
      finally:
        for name, value in saved.items():
          jax.config.update(name, value)

  return run


@pytest.fixture(scope="session")
def small_market():
  return make_market(MarketConfig(num_items=120, train_slates=60, validation_slates=20, test_slates=24), seed=0)


@pytest.fixture
def dataset(tmp_path, small_market):
  """A folder as a user brings it: items, interactions and slates."""
  folder = tmp_path / "dataset"
  write_items(folder / "items.jsonl", small_market.catalogue.items)
  write_interactions(folder / "interactions.jsonl", small_market.histories)
  for split, slates in small_market.slates.items():
    write_slates(folder / f"slates_{split}.jsonl", slates)
  return folder
