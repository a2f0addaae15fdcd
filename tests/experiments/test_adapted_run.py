"""A run with `model.lora.rank`: mid-training trains everything, the stages after it adapters alone, and a policy is all of them merged."""

import jax
import numpy as np
import pytest
from small_runs import continue_from, tiny_config

from experiments.estimates.data import count_data
from experiments.estimates.disk import count_bytes
from experiments.stage_steps import list_steps
from gr2_jax.models.adapters import Lora, merge
from gr2_jax.runs.load import load_policy, load_trained, make_decoder, make_lora, open_context
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.mesh import make_mesh

BEFORE_SFT = ("data", "tokenize", "midtrain", "slates", "evidence", "traces")


def raw(run, stage):
  """(what a stage's checkpoint says of itself, its parameters as they lie there)."""
  import orbax.checkpoint as ocp

  checkpoints = Checkpointer(run.path(stage, "checkpoints"))
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    state = reader.restore(checkpoints.directory / str(checkpoints.steps()[-1]) / "state")
  return checkpoints.read_about().get("adapters"), state["params"]


@pytest.mark.parametrize("stage", ["sft", "opd", "rl"])
def test_an_estimate_counts_the_state_of_adapters_and_their_base(stage):
  found = {}
  for rank in (0, 2):
    config = tiny_config(model__lora__rank=rank, model__lora__train_embeddings=False)
    found[rank] = next(step for step in list_steps(config, count_data(config).sizes, stage) if step.trains)
  state, base = found[2].arguments[0].arrays, found[2].arguments[2].arrays
  assert jax.tree.structure(base) == jax.tree.structure(found[0].arguments[0].arrays.params)
  assert {*state.params} == {"layers"} and count_bytes(state) < 0.3 * count_bytes(found[0].arguments[0].arrays)
  found[2].lower(make_mesh(devices=jax.devices()[:1]))


@pytest.mark.slow
def test_sft_and_rl_train_adapters_on_what_mid_training_left(tiny_run, run_here, tmp_path):
  config = tiny_config(model__lora__rank=4)
  folder = continue_from(tiny_run, tmp_path / "run", config, BEFORE_SFT)
  assert run_here(config, folder, ["sft", "rl"]) == 0
  run, mesh = Run.open(folder), make_mesh(devices=jax.devices()[:1])
  context = open_context(run)
  decoder, lora = make_decoder(run, context.vocabulary), make_lora(run.config, lambda: context.vocabulary)
  assert lora == Lora(4, 16.0, ("q", "k", "v", "out", "gate", "up", "down"), context.vocabulary.size - context.vocabulary.new_token_start)

  expected = load_trained(run, decoder, mesh, "midtrain")
  for stage, on in (("sft", "midtrain"), ("rl", "sft")):
    about, adapters = raw(run, stage)
    assert about["on"] == f"../../{on}/checkpoints" and about["rank"] == 4
    assert {*adapters} == {"layers", "embedding_rows"} and {*adapters["layers"]["q"]} == {"lora_a", "lora_b"}
    before = expected
    expected = jax.jit(merge, static_argnums=0)(lora, before, adapters)
    found = load_policy(run, find_policy(run, stage), context, mesh).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)
    changed = jax.tree.map(lambda x, y: bool(np.abs(x - y).max() > 0), found, before)
    assert changed["embedding"] and all(changed["layers"][name]["kernel"] for name in lora.targets)
    assert not changed["final_norm"]["scale"]
