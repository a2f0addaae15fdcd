"""An RL step of a scored policy against one of a written policy: the same decoder, each with the batch and group of its quickstart.

A written step draws and updates on as many answers as rankings, each of a reasoning and a permutation; a scored step draws all rankings of
a slate from one pass. What compares them is the time for a ranking judged.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.rl_step import LEARNING_RATE, make_step
from experiments.benchmarks.rollout import DECODER, Contract
from experiments.benchmarks.timing import time_call, time_interleaved
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import init_params
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.runs.versions import describe_machine
from gr2_jax.steps.scored import make_reward_loss
from gr2_jax.steps.update import make_update
from gr2_jax.training.mesh import jit_update, make_mesh, replicated
from gr2_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer

WRITTEN = Contract(prompts=32, group=8, prompt_length=94, completion_length=48)  # configs/written.py
SLATES, GROUP = 64, 64  # configs/quickstart.py
SIZE, FACTS, BINS = 8, 38, 16


def run(written: Contract = WRITTEN, slates: int = SLATES, group: int = GROUP, rounds: int = 7) -> Iterator[dict[str, Any]]:
  """Yields the machine, then a line for each form of answer, `times_scored` being its time for a ranking over that of `scored`."""
  yield {"machine": describe_machine(("jax", "numpy"))}
  steps: dict[str, Callable[[], Any]] = {"written": make_step(written), "scored": make_scored_step(slates, group)}
  rankings = {"written": written.prompts * written.group, "scored": slates * group}
  first = {form: time_call(step)[0] for form, step in steps.items()}
  medians = time_interleaved(steps, rounds)
  wall, processor = ({form: 1e6 * median[field] / rankings[form] for form, median in medians.items()} for field in (0, 1))
  for form, median in medians.items():
    yield {
      "case": "rl_step",
      "form": form,
      "rankings": rankings[form],
      "rounds": rounds,
      "first_call_s": round(first[form].wall, 3),
      "median_s": round(median.wall, 4),
      "us_per_ranking": round(wall[form], 1),
      "times_scored": round(wall[form] / wall["scored"], 1),
      "times_scored_processor": round(processor[form] / processor["scored"], 1),
    }


def make_scored_step(slates: int, group: int) -> Callable[[], TrainState]:
  """A step on `slates` random slates, `group` rankings of each, which trains on from its last state at every call."""
  model, mesh = SlateScorer(DECODER.config, (FACTS, BINS)), make_mesh(devices=jax.devices()[:1])
  optimizer = make_optimizer(OptimizerConfig(LEARNING_RATE), total_steps=1_000)
  loss = make_reward_loss(model, RewardConfig(rank="ndcg", condition="naive"), group=group, temperature=1.0, divide_by="none")
  update = make_update(optimizer, loss, whole_batch=lambda step, batch: {"key": jax.random.fold_in(jax.random.key(0), step)})
  edges = jnp.broadcast_to(jnp.linspace(-2.0, 2.0, BINS + 1), (FACTS, BINS + 1))
  compiled = jit_update(update, mesh, replicated(mesh), frozen=(edges,))
  state = jax.device_put(init_state(init_params(model, jax.random.key(0)), optimizer), replicated(mesh))
  random = np.random.default_rng(0)
  facts = random.normal(size=(slates, SIZE, FACTS)).astype(np.float32)
  labels = np.eye(SIZE, dtype=np.float32)[random.integers(SIZE, size=slates)]
  nothing, no_texts = np.zeros((slates, 0), bool), np.zeros((slates, SIZE, 0), np.float32)
  packed = PackedSlates(facts, labels >= 0, nothing, no_texts, no_texts[:, :0])
  batch = {"slates": packed, "labels": labels, "weights": np.ones(slates, np.float32)}

  def step() -> TrainState:
    nonlocal state
    state, _ = compiled(state, batch)
    return state

  return step
