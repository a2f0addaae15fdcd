"""Where trainings and policies begin: parameters come back, and those that are not finite are refused by name."""

import jax
import numpy as np
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer, CheckpointError
from gr2_jax.training.mesh import make_mesh


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused_by_name(tmp_path, wrong):
  decoder, mesh = Decoder(preset("test", 64)), make_mesh(devices=jax.devices()[:1])
  params = init_params(decoder, jax.random.key(0))
  folder = tmp_path / "rl" / "checkpoints"
  with Checkpointer(folder) as checkpoints:
    checkpoints.save(1, {"params": params}, {})
    jax.tree.map(np.testing.assert_array_equal, load_params(decoder, checkpoints, mesh), params)
    checkpoints.save(2, {"params": params | {"embedding": params["embedding"].at[3, 1].set(wrong)}}, {})
    with pytest.raises(CheckpointError, match=r"rl/checkpoints: .*parameter embedding .*not finite"):
      load_params(decoder, checkpoints, mesh)
