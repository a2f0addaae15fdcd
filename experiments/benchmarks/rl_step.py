"""A whole RL step (rollout, reward, update) against TRL's GRPOTrainer: the same weights, prompts, numbers of tokens, loss and optimizer.

Log-probabilities, loss and gradient norm on the same tokens must be equal before anything is timed. TRL's steps are those of
`GRPOTrainer.train()`, and ours run between them. Our peak memory is that of a process of its own.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks import peers
from experiments.benchmarks.rollout import CONTRACTS, DECODER, Contract, make_params, make_prompts, make_sampler
from experiments.benchmarks.timing import Timing, compare_lines, peak_gb, time_call
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.rewards.judge import Judgement
from gr2_jax.rl.collect import Round, collect_groups
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.rollout.generate import Rollout
from gr2_jax.runs.versions import describe_machine
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.update import Update
from gr2_jax.training.mesh import jit_update, make_mesh, replicated
from gr2_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer

LEARNING_RATE = 1e-6
_ROUNDS = 5
_LIMIT_S = 600.0


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, then for every contract our peak memory and a line for each trainer with its median and how many times as long
  as ours it takes.
  """
  yield {"machine": describe_machine(("jax", "torch", "transformers", "trl"))}
  if importlib.util.find_spec("trl") is None:
    yield {"note": "trl is not installed: gr2_jax is measured alone"}
  for name, contract in CONTRACTS.items():
    yield _measure_apart(name)
    yield from compare(name, contract)


def compare(name: str, contract: Contract, rounds: int = _ROUNDS, limit_s: float = _LIMIT_S) -> Iterator[dict[str, Any]]:
  """The lines of one contract, with as many rounds as fit into `limit_s` seconds; AssertionError where results differ from TRL's."""
  step, prompts = make_step(contract), make_prompts(contract)
  times: dict[str, list[Timing]] = {}
  if importlib.util.find_spec("trl"):
    trainer = peers.make_grpo_trainer(
      peers.to_hf_qwen3(DECODER.config, make_params()),
      prompts,
      reward,
      group=contract.group,
      max_new_tokens=contract.completion_length,
      learning_rate=LEARNING_RATE,
    )
    check_parity(trainer, contract)
    times["trl"], times["gr2_jax"] = peers.time_grpo(trainer, step, rounds=rounds, limit_s=limit_s)
  else:
    times["gr2_jax"] = [time_call(step)[0] for _ in range(rounds + 1)]
  first = {peer: of_peer[0] for peer, of_peer in times.items()}
  medians = {peer: Timing(*map(statistics.median, zip(*of_peer[1:], strict=True))) for peer, of_peer in times.items()}
  yield from compare_lines(name, first, medians, len(times["gr2_jax"]) - 1)


def make_step(contract: Contract) -> Callable[[], TrainState]:
  """Our step of a contract, which draws new completions and trains on from its last state at every call."""
  prompts, sample, mesh = make_prompts(contract), make_sampler(contract), _mesh()
  state, update = _start(mesh, UpdateConfig(microbatches=contract.microbatches))

  def step() -> TrainState:
    nonlocal state
    key = jax.random.fold_in(jax.random.key(0), int(state.step))

    def play_round(number: int) -> Round:
      rollout = sample(state.params, prompts, key)
      return Round(rollout, _judge(rollout))

    batch, _ = collect_groups(play_round, num_prompts=contract.prompts, max_rounds=1)
    state, _ = update(state, batch)
    return state

  return step


def reward(completions: np.ndarray) -> np.ndarray:
  """A trivial reward of completions `[..., Lc]`: the share of even tokens."""
  return np.mean(np.asarray(completions) % 2 == 0, axis=-1)


def check_parity(trainer: Any, contract: Contract) -> None:
  """AssertionError where our log-probabilities, loss or gradient norm differ from TRL's on the group of one prompt.

  The old policy's log-probabilities are random and far enough from the policy's that the clipping counts, since a ratio of 1 makes
  every policy's loss the same.
  """
  random = np.random.default_rng(1)
  shape = (1, contract.group, contract.completion_length)
  completions = random.integers(1, DECODER.config.vocab_size, shape, dtype=np.int32)
  prompts, params = make_prompts(contract)[:1], make_params()
  expected = peers.hf_log_probs(trainer.model, prompts, completions)
  batch = GroupBatch(
    prompts=prompts,
    prompt_mask=np.ones_like(prompts, bool),
    completions=completions,
    completion_mask=np.ones(shape, bool),
    behaviour_logps=(expected + 0.3 * random.normal(size=shape)).astype(np.float32),
    advantages=random.normal(size=shape[:2]).astype(np.float32),
    weights=np.ones(1, np.float32),
    keep=np.ones(1, bool),
  )
  found, _ = jax.jit(lambda params: completion_log_probs(DECODER, params, *batch.texts))(params)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  mesh = _mesh()
  state, update = _start(mesh, UpdateConfig())
  _, metrics = update(state, batch)
  loss, norm = peers.grpo_loss(trainer, batch)
  np.testing.assert_allclose([metrics[name].mean() for name in ("loss", "grad_norm")], [loss, norm], rtol=1e-3)


def _mesh() -> Mesh:
  return make_mesh(devices=jax.devices()[:1])


def _start(mesh: Mesh, config: UpdateConfig) -> tuple[TrainState, Update]:
  optimizer = make_optimizer(OptimizerConfig(LEARNING_RATE), total_steps=1_000)
  state = jax.device_put(init_state(make_params(), optimizer), replicated(mesh))
  return state, jit_update(make_policy_update(DECODER, optimizer, config), mesh, replicated(mesh))


def _judge(rollout: Rollout) -> Judgement:
  rewards = jax.numpy.asarray(reward(np.asarray(rollout.completions)))
  return Judgement(rewards, np.ones(rewards.shape, bool), *group_advantages(rewards, rewards), {})


def _measure_apart(name: str) -> dict[str, Any]:
  done = subprocess.run([sys.executable, "-m", __spec__.name, name], env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def _measure(name: str) -> dict[str, Any]:
  step = make_step(CONTRACTS[name])
  for _ in range(3):
    jax.block_until_ready(step())
  return {"case": name, "peer": "gr2_jax", "peak_gb": round(peak_gb(), 3)}


if __name__ == "__main__":
  print(json.dumps(_measure(*sys.argv[1:])))
