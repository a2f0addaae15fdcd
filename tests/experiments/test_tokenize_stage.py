"""The tokenizer's training, stopped between two compiled calls, ends with the codes of an uninterrupted one."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.stages.tokenize import _train
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import Run
from gr2_jax.semantic_ids.rqvae import RqVaeConfig
from gr2_jax.steps.tokenizer import TokenizerConfig
from gr2_jax.training.interrupts import Interrupted, StopSignal
from gr2_jax.training.progress import Progress

CONFIG = TokenizerConfig(
  rqvae=RqVaeConfig(levels=2, codebook_size=4, latent=4, hidden=(8,)), epochs=30, warmup_epochs=5, batch_size=16, report_every=10
)


class StopAtOnce(StopSignal):
  """A signal that has come before the first report."""

  def __enter__(self):
    self.signum = 15
    return self


def train(folder, stop):
  run = Run(folder, ConfigDict({"seed": 0, "wandb_project": ""}))
  vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
  with stop as signal:
    return _train(StageContext(run, "tokenize", Progress(), signal), vectors, CONFIG)


def test_stopped_training_goes_on(tmp_path):
  whole = train(tmp_path / "whole", StopSignal())
  with pytest.raises(Interrupted):
    train(tmp_path / "cut", StopAtOnce())
  assert (tmp_path / "cut" / "tokenize" / "checkpoints" / "10").is_dir()
  resumed = train(tmp_path / "cut", StopSignal())
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
