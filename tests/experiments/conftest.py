"""Runs of the real program, in this process or in their own."""

import os
import sys
from contextlib import contextmanager

import jax
import pytest
from small_runs import ROOT, UNUSUAL, edit_line, write_dataset

from experiments import check
from experiments.flags import load_config
from experiments.pipeline import execute
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.runs import context as stage_context
from gr2_jax.training import mesh as training_mesh
from gr2_jax.training.mesh import make_mesh


def one_device_mesh(data=-1, fsdp=1, tensor=1, devices=None):
  """Like `make_mesh`, whose place it takes, also for a module that is first imported meanwhile and keeps it."""
  return make_mesh(data, fsdp, tensor, jax.devices()[:1] if devices is None else devices)


@pytest.fixture(scope="session")
def program_environment():
  """The environment of a program run on its own."""
  return dict(os.environ)


@pytest.fixture(scope="session")
def in_process():
  """Context for a program that runs in this process: it sees one device."""

  @contextmanager
  def context():
    with pytest.MonkeyPatch.context() as patch:
      # The tests' eight devices would each want a share of batches of two.
      for module in (stage_context, check, training_mesh):
        patch.setattr(module, "make_mesh", one_device_mesh)
      patch.setattr(jax, "clear_caches", lambda: None)  # other tests would compile all over again
      yield

  return context


@pytest.fixture(scope="session")
def run_here(in_process):
  """`run_here(config, workdir, stages)`: the program in this process on one device; returns its exit code."""

  def run(config, workdir, stages=None):
    with in_process():
      return execute(config, str(workdir), stages, [sys.executable, "-m", "experiments.run"])

  return run


@pytest.fixture(scope="session")
def small_market():
  return make_market(MarketConfig(num_items=120, train_slates=60, validation_slates=20, test_slates=24), seed=0)


@pytest.fixture
def dataset(tmp_path, small_market):
  """A folder as a user brings it."""
  return write_dataset(tmp_path / "dataset", small_market)


@pytest.fixture(scope="session")
def amazon_run(tmp_path_factory, run_here):
  """A finished run of `configs/amazon.py:beauty,written,tiny` on files with broken lines, texts in all scripts and one endless history.

  Its slates are built by the CTR ranker from the leave-one-out split.
  """
  folder = tmp_path_factory.mktemp("amazon")
  market = make_market(MarketConfig(num_items=120, train_slates=130, validation_slates=20, test_slates=20), seed=5)
  write_dataset(folder / "dataset", market)
  items, interactions = folder / "dataset" / "items.jsonl", folder / "dataset" / "interactions.jsonl"
  for number, change in enumerate(UNUSUAL.values(), start=3):
    edit_line(items, number, change)
  edit_line(interactions, 1, {"items": [f"item{i % 110:04d}" for i in range(10_000)], "timestamps": list(range(10_000))})
  edit_line(items, 120, '{"item": "item0119", "title": "cut off in the mid')
  edit_line(interactions, 7, {"items": []})
  edit_line(interactions, 9, {"timestamps": [3, 2, 1]})
  config = load_config(f"{ROOT / 'configs' / 'amazon.py'}:beauty,written,tiny")
  config.data.source, config.data.on_error = str(folder / "dataset"), "skip"
  assert run_here(config, folder / "run") == 0
  return folder / "run"


@pytest.fixture(scope="session")
def verbose_run(tmp_path_factory, run_here):
  """A finished run of `configs/verbose_prompts.py:tiny`: full instructions, semantic IDs as names, answers in JSON."""
  run = tmp_path_factory.mktemp("verbose") / "run"
  assert run_here(load_config(f"{ROOT / 'configs' / 'verbose_prompts.py'}:tiny"), run) == 0
  return run
