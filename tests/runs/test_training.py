"""A training that keeps its best step ends with it, and an interruption changes neither that nor what was measured."""

import io
import json
import os
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from gr2_jax.runs.training import Begun, train
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.interrupts import Interrupted, StopSignal
from gr2_jax.training.loop import StepResult
from gr2_jax.training.metric import Metric
from gr2_jax.training.progress import Progress
from gr2_jax.training.state import TrainState
from gr2_jax.training.writers import MetricWriter

STEPS, BEST = 8, 4


class Nowhere:
  """A place in no data."""

  def get_state(self):
    return 0

  def set_state(self, state):
    pass


def run(folder, *, stop_at=None, best=BEST):
  """Counts up to STEPS from 0; the score is the higher the nearer it is to `best`. Returns the final state and what was said."""
  said, scored = [], []

  def step(state):
    if state.step + 1 == stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    new = TrainState(state.step + 1, {"x": state.params["x"] + 1}, state.opt_state)
    return StepResult(new, None, {}, {"loss": Metric(1.0, 1.0), "skipped": Metric(0.0, 1.0)})

  def score(params):
    scored.append(int(params["x"]))
    return -abs(float(params["x"]) - best)

  with StopSignal() as stop:
    stage = SimpleNamespace(
      name="sft",
      config=ConfigDict({"sft": {"steps": STEPS, "save_every": 3, "log_every": 1, "max_skips": 2}}),
      checkpoints=lambda stage, name: Checkpointer(folder / stage / name),
      metric_writer=lambda name: MetricWriter(folder / "metrics" / f"{name}.jsonl"),
      progress=Progress(Console(file=io.StringIO())),
      stop=stop,
      say=said.append,
    )
    start = TrainState(jnp.int32(0), {"x": jnp.float32(0)}, jnp.float32(0))
    return train(stage, "sft", Begun(None, start, None), step, Nowhere(), best=(score, 2)), said, scored


def validation(folder):
  lines = (folder / "metrics" / "sft_validation.jsonl").read_text().splitlines()
  return [(line["step"], line["score"]) for line in map(json.loads, lines)]


@pytest.mark.parametrize("best", [pytest.param(0, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)])
def test_the_end_is_the_step_with_the_best_score(tmp_path, best):
  state, said, _ = run(tmp_path, best=best)
  assert state.params["x"] == best and state.step == STEPS
  assert len(said) == 1 and f"is that of step {best} of {STEPS}" in said[0]
  assert validation(tmp_path) == [(step, -abs(step - best)) for step in (0, 2, 4, 6, 8)]
  assert Checkpointer(tmp_path / "sft" / "checkpoints").steps()[-1] == best
  assert Checkpointer(tmp_path / "sft" / "checkpoints_training").steps()[-1] == STEPS


@pytest.mark.parametrize("stop_at", [2, pytest.param(5, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)])
def test_an_interrupted_one_ends_alike_and_keeps_what_it_has_measured(tmp_path, stop_at):
  with pytest.raises(Interrupted):
    run(tmp_path, stop_at=stop_at)
  state, said, scored = run(tmp_path)
  assert state.params["x"] == BEST and f"step {BEST}" in said[0]
  assert validation(tmp_path) == [(step, -abs(step - BEST)) for step in (0, 2, 4, 6, 8)]
  assert scored == [step for step in (2, 4, 6, 8) if step > stop_at], "what has been scored is not scored again"
