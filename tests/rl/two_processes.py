"""A small RL run over any number of processes of one machine: python two_processes.py PORT PROCESSES PROCESS DIRECTORY."""

import functools
import io
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.rewards.judge import Judgement
from gr2_jax.rl.collect import Round, collect_groups
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.start import start_fresh
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.loop import StepResult, fit
from gr2_jax.training.mesh import jit_update, make_mesh, to_global, to_local
from gr2_jax.training.progress import Progress
from gr2_jax.training.writers import MetricWriter

DECODER = Decoder(preset("test", 24))
ROWS, GROUP, LENGTH = 4, 4, 5  # prompts of a round over all processes; completions of a prompt; tokens of each


class Position:
  """The number of the round, which is where the prompts come from."""

  round = 0

  def get_state(self):
    return self.round

  def set_state(self, state):
    self.round = state


def run(directory, process, processes):
  mesh = make_mesh(2, 1, 1)
  optimizer = optax.sgd(0.1)
  state, shardings = start_fresh(DECODER, optimizer, jax.random.key(7), mesh)
  generate = make_generate(RolloutConfig(DECODER, group=GROUP, max_new_tokens=LENGTH, eos_id=1, pad_id=0))
  share = ROWS // processes
  position = Position()

  @jax.jit
  def judge(completions, first):
    # The first half of the first round's prompts, which are those of the first process, has answers of equal reward.
    rewards = (completions[..., 0] % 5).astype(jnp.float32)
    rewards = jnp.where(first & (jnp.arange(ROWS)[:, None] < ROWS // 2), 0.0, rewards)
    return Judgement(rewards, jnp.ones_like(rewards, bool), *group_advantages(rewards, rewards), {})

  update = jit_update(make_policy_update(DECODER, optimizer, UpdateConfig()), mesh, shardings)

  def step(state):
    def play_round(_):
      prompts = np.random.default_rng(position.round).integers(2, 24, (ROWS, 6)).astype(np.int32)
      position.round += 1
      tokens, mask = to_global((prompts[process * share : (process + 1) * share], np.ones((share, 6), np.int32)), mesh)
      with jax.set_mesh(mesh):
        rollout = generate(state.params, tokens, mask, jax.random.key(position.round), Sampling.create())
        return Round(rollout, judge(rollout.completions, position.round == 1))

    batch, collected = collect_groups(play_round, num_prompts=share, max_rounds=3, fetch=functools.partial(to_local, mesh=mesh))
    new, metrics = update(state, batch)
    return StepResult(new, batch, collected, metrics)

  with (
    StopSignal() as stop,
    MetricWriter(directory / "metrics.jsonl", active=process == 0) as writer,
    Progress(Console(file=io.StringIO())).task("rl", 2) as task,
  ):
    fit(
      state,
      step,
      position=position,
      steps=2,
      checkpointer=Checkpointer(directory / "checkpoints"),
      writer=writer,
      progress=task,
      save_every=2,
      log_every=1,
      max_skips=1,
      stop=stop,
      section="rl",
    )


if __name__ == "__main__":
  port, processes, process, directory = *map(int, sys.argv[1:4]), pathlib.Path(sys.argv[4])
  jax.config.update("jax_num_cpu_devices", 2 // processes)
  if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)
  run(directory, process, processes)
