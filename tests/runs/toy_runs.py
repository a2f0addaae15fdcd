"""Toy stages and a config for them, for the tests of run directories."""

import contextlib
import dataclasses

from ml_collections import ConfigDict

from gr2_jax.runs.life import open_stage
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.run import begin_run
from gr2_jax.runs.stages import NeededStage, Stage

CONFIG = {"seed": 3, "data": {"source": "synthetic", "users": 5}, "rl": {"steps": 4, "sizes": (1, 2)}}
COMMAND = ["python", "-m", "experiments.run", "--x=a b"]

POLICY = PolicyRecord("rl", (RankerRecord("policy", "RL policy", "reason"),))


def make_config(**changes):
  """`CONFIG` with changes by dotted key, written with __ for the dot."""
  config = ConfigDict(CONFIG)
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


def write(context):
  """What both stages do: leave a file with their name."""
  context.path("out.txt").write_text(context.name)


def leave_policy(config):
  """The policies of a stage that leaves one."""
  return (POLICY,)


DATA = Stage("data", write, reads=("seed", "data"), files=("data.source",))
RL = Stage("rl", write, reads=("seed", "rl"), inputs=("data",))


def need(stage, place=0, **changes):
  """The stage, with changes, as a config needs it."""
  stage = dataclasses.replace(stage, **changes)
  return NeededStage(stage, stage.inputs, place)


def finish(run, needed):
  """Runs a toy stage to its end."""
  with open_stage(run, needed):
    run.path(needed.name, "out.txt").write_text(needed.name)


def finished_run(directory, **changes):
  """A run at `directory` of which both stages are finished."""
  run = begin_run(directory, make_config(**changes), COMMAND)
  finish(run, need(DATA))
  finish(run, need(RL, 1))
  return run


@contextlib.contextmanager
def unchanged(directory):
  """Nothing in the folder differs at the end."""

  def files():
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}

  before = files()
  yield
  assert files() == before
