"""What a stage works with."""

import jax
from toy_runs import make_config

from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import Run


def draw(name, **changes):
  run = Run("nowhere", make_config(**changes))
  return float(jax.random.uniform(StageContext(run, name, progress=None, stop=None).key))


def test_each_stage_of_each_seed_draws_its_own_numbers_always_the_same():
  draws = {draw("sft"), draw("tfs"), draw("stf"), draw("sft", seed=4), draw("rl")}
  assert len(draws) == 5
  assert draw("sft") in draws
