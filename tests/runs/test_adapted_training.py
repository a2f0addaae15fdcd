"""Trainings of adapters through the stages of a run: each leaves its adapters alone, and the next one stands on all before it."""

import dataclasses
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from gr2_jax.models.adapters import Lora, LoraOptions, merge
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import FAMILIES
from gr2_jax.models.hf_folders import write_folder
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.runs.training import begin, train
from gr2_jax.settings import to_section
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.start import PublishedStart, load_params, start_adapted
from gr2_jax.steps.update import make_update
from gr2_jax.training.checkpoints import Checkpointer, CheckpointError
from gr2_jax.training.loop import batch_step
from gr2_jax.training.mesh import jit_update, make_mesh
from gr2_jax.training.progress import Progress
from gr2_jax.training.state import OptimizerConfig
from gr2_jax.training.writers import MetricWriter

DECODER = Decoder(ModelConfig(16, num_layers=2, width=128, num_heads=2, num_kv_heads=1, head_dim=64, mlp_width=256))
LORA = LoraOptions(rank=2, alpha=3.0, targets=("q", "out", "down"), train_embeddings=False)
MESH = make_mesh(devices=jax.devices()[:1])
STEPS = 3


class Nowhere:
  """A place in no data."""

  def get_state(self):
    return 0

  def set_state(self, state):
    pass


def make_stage(folder, name):
  section = {"steps": STEPS, "save_every": 2, "log_every": 1, "max_skips": 2, "optimizer": to_section(OptimizerConfig(1e-2))}
  config = ConfigDict({name: section, "model": {"lora": to_section(LORA)}})
  return SimpleNamespace(
    name=name,
    config=config,
    run=SimpleNamespace(config=config),
    mesh=MESH,
    key=jax.random.key(len(name)),
    path=lambda *names: folder.joinpath(name, *names),
    checkpoints=lambda stage, of, about=None: Checkpointer(folder / stage / of, about=about),
    metric_writer=lambda of: MetricWriter(folder / "metrics" / f"{of}.jsonl"),
    progress=Progress(Console(file=io.StringIO())),
    stop=SimpleNamespace(requested=False),
    say=lambda text: None,
  )


def learn(folder, name, init, *, best=None):
  """(where a stage began, how it ended, its folder of checkpoints)."""
  stage = make_stage(folder, name)
  begun = begin(stage, DECODER, name, init)
  places = np.broadcast_to(np.arange(8, dtype=np.int32), (4, 8))
  tokens = np.random.default_rng(len(name)).integers(0, 16, (4, 8)).astype(np.int32)
  batch = {"tokens": tokens, "positions": places, "segment_ids": places * 0 + 1, "parts": places * 0 + 1}
  update = make_update(begun.optimizer, make_lm_loss(DECODER, {"token": 1.0}), join=begun.join)
  compiled = jit_update(update, MESH, begun.shardings, frozen=begun.frozen)
  end = train(stage, name, begun, batch_step(compiled, lambda _: batch), Nowhere(), best=best)
  return begun, end, Checkpointer(folder / name / "checkpoints")


def size_of(folder):
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  """A run whose `sft` is trained whole, `rl` and `direct` by adapters, each from the one before."""
  folder = tmp_path_factory.mktemp("run")
  found, init = {}, None
  for name in ("sft", "rl", "direct"):
    best = (lambda params: -float(jnp.abs(params["layers"]["q"]["lora_b"]).sum()), 1) if name == "direct" else None
    found[name] = learn(folder, name, init, best=best)
    init = found[name][2]
  return folder, found


def test_random_parameters_are_trained_whole(stages):
  _, found = stages
  assert found["sft"][0].adapted is None and found["sft"][2].read_about() == {"format": "gr2_jax.train_state.2"}


def test_a_checkpoint_holds_adapters_alone_and_says_what_they_stand_on(stages):
  folder, found = stages
  _, end, checkpoints = found["rl"]
  assert {*end.params} == {"layers"} and {*end.params["layers"]} == {"q", "out", "down"}
  about = checkpoints.read_about()["adapters"]
  assert about == {"rank": 2, "alpha": 3.0, "targets": ["q", "out", "down"], "rows": 0, "on": "../../sft/checkpoints"}
  whole, adapters = (size_of(folder / name / "checkpoints" / str(STEPS)) for name in ("sft", "rl"))
  assert adapters < 0.15 * whole
  moments = sum(leaf.nbytes for leaf in jax.tree.leaves(end.opt_state))
  assert moments <= 2.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(end.params))


def test_a_stage_starts_from_all_before_it_merged(stages):
  _, found = stages
  lora = Lora(2, 3.0, ("q", "out", "down"))
  sft, rl = load_params(DECODER, found["sft"][2], MESH), load_params(DECODER, found["rl"][2], MESH)
  jax.tree.map(np.testing.assert_array_equal, sft, found["sft"][1].params)
  jax.tree.map(np.testing.assert_array_equal, found["rl"][0].adapted.base, sft)
  expected = jax.jit(merge, static_argnums=0)(lora, sft, found["rl"][1].params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), rl, expected)
  assert np.abs(rl["layers"]["q"]["kernel"] - sft["layers"]["q"]["kernel"]).max() > 1e-4
  jax.tree.map(np.testing.assert_array_equal, found["direct"][0].adapted.base, rl)
  # The best of the last stage, where no factor B is better than any, is its start: a policy that is what RL left.
  direct = load_params(DECODER, found["direct"][2], MESH)
  jax.tree.map(np.testing.assert_array_equal, direct, rl)
  assert found["direct"][2].read_about()["adapters"]["on"] == "../../rl/checkpoints"


def test_the_first_stage_may_stand_on_a_published_model(tmp_path):
  model = tmp_path / "model"
  write_folder(model, FAMILIES["qwen3"], DECODER.config, init_params(DECODER, jax.random.key(7)), {})
  published = PublishedStart(model, first_new=12, seed=3)
  begun, end, checkpoints = learn(tmp_path, "sft", published)
  found = load_params(DECODER, checkpoints, MESH)
  expected = jax.jit(merge, static_argnums=0)(begun.adapted.lora, begun.adapted.base, end.params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)
  assert checkpoints.read_about()["adapters"]["on"]["folder"] == str(model)
  write_folder(model, FAMILIES["qwen3"], DECODER.config, init_params(DECODER, jax.random.key(8)), {})
  with pytest.raises(CheckpointError, match="model, where another is now"):
    load_params(DECODER, checkpoints, MESH)
  model.rename(tmp_path / "elsewhere")
  with pytest.raises(CheckpointError, match="model, which is gone; put it back there"):
    load_params(DECODER, checkpoints, MESH)


def test_adapters_that_are_not_finite_are_refused_by_name(tmp_path):
  state, _ = start_adapted(DECODER, optax.sgd(1.0), Lora(2, 3.0, ("q",)), init_params(DECODER, jax.random.key(0)), jax.random.key(1), MESH)
  about = {"adapters": {**dataclasses.asdict(Lora(2, 3.0, ("q",))), "on": None}}
  with Checkpointer(tmp_path / "rl" / "checkpoints", about=about) as checkpoints:
    checkpoints.save(1, {"params": jax.tree.map(lambda x: x + jnp.nan, state.params)}, {})
    with pytest.raises(CheckpointError, match=r"parameter layers/q/lora_a .*not finite"):
      load_params(DECODER, checkpoints, MESH)
