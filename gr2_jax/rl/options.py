"""The typed settings of everything that learns from a policy's own answers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.rewards.own import RewardFn, load_reward
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.steps.policy import UpdateConfig

PRESENTATIONS = ("upstream", "shuffled")


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
  """How a policy is asked: `prompts` slates a round over all processes, `group` completions each, of at most `max_new_tokens` tokens.

  `presentation`: candidates are shown in the upstream order, or shuffled anew for every prompt. `decode_prompts`: prompts decoded at
  a time, and `decode_rows`: rows for the completions of each (None: all at once). Below all, rows whose answer has ended take the next
  one: worth it where the metric `occupancy` is low, because answers differ in length. Raises ValueError for values that cannot hold.
  """

  prompts: int = 16
  group: int = 8
  max_new_tokens: int = 48
  temperature: float = 1.0
  presentation: str = "shuffled"
  decode_prompts: int | None = None
  decode_rows: int | None = None

  def __post_init__(self) -> None:
    for name in ("prompts", "group", "max_new_tokens"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
    if not 0 < self.temperature < math.inf:
      raise ValueError(f"temperature: {self.temperature} must be above 0 and finite to learn from samples: greedy answers have no gradient")
    if self.presentation not in PRESENTATIONS:
      raise ValueError(f"presentation: {self.presentation!r} is not known; choose {' or '.join(PRESENTATIONS)}")
    if self.decode_prompts is not None and self.decode_prompts < 1:
      raise ValueError(f"decode_prompts: {self.decode_prompts} must be at least 1, or None (all prompts at once)")
    if self.decode_rows is not None and not 1 <= self.decode_rows <= self.group:
      raise ValueError(f"decode_rows: {self.decode_rows} must lie between 1 and the group of {self.group}, or be None (all at once)")


@dataclasses.dataclass(frozen=True)
class CollectOptions:
  """Which of a policy's groups become a batch.

  `overlong_zone`: tokens before the limit that cost reward (DAPO, Eq 13; 0: only an answer that is cut off does). `dynamic_sampling`:
  groups without a signal are left out and replaced, over at most `max_rounds` rounds, until `min_filled` of the batch are kept; without it
  one round is played and all groups count. Raises ValueError for values that cannot hold.
  """

  rollout: RolloutOptions = dataclasses.field(default_factory=RolloutOptions)
  overlong_zone: int = 8
  dynamic_sampling: bool = True
  max_rounds: int = 3
  min_filled: float = 1.0

  def __post_init__(self) -> None:
    if not 0 <= self.overlong_zone <= self.rollout.max_new_tokens:
      raise ValueError(f"overlong_zone: {self.overlong_zone} tokens do not fit into max_new_tokens {self.rollout.max_new_tokens}")
    if self.max_rounds < 1:
      raise ValueError(f"max_rounds: {self.max_rounds} must be at least 1")
    if not 0 < self.min_filled <= 1:
      raise ValueError(f"min_filled: {self.min_filled} must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class RlOptions:
  """Reinforcement learning: how groups are collected, what they are worth, and what is learnt from them.

  `reward`: one of the built-in rewards, or a function (see `rewards.own`). Raises ValueError for values that cannot hold.
  """

  collect: CollectOptions = dataclasses.field(default_factory=CollectOptions)
  reward: RewardConfig | RewardFn = dataclasses.field(default_factory=RewardConfig)
  update: UpdateConfig = dataclasses.field(default_factory=UpdateConfig)

  def __post_init__(self) -> None:
    prompts, parts = self.collect.rollout.prompts, self.update.minibatches * self.update.microbatches
    if self.collect.rollout.group < 2:
      raise ValueError(f"group: {self.collect.rollout.group} must be at least 2: an answer is judged by the others of its group")
    if prompts % parts:
      raise ValueError(
        f"prompts: {prompts} do not divide into {self.update.minibatches} minibatches of {self.update.microbatches} microbatches; "
        f"use a multiple of {parts}"
      )


def read_rollout_options(section: Mapping[str, Any], max_new_tokens: int, **changes: Any) -> RolloutOptions:
  """The record of a config section that has its keys flat; `max_new_tokens` is the limit of all answers of a run."""
  names = {field.name for field in dataclasses.fields(RolloutOptions)} & set(section)
  return RolloutOptions(**{name: section[name] for name in names} | {"max_new_tokens": max_new_tokens} | changes)


def read_rl_options(section: Mapping[str, Any], max_new_tokens: int) -> RlOptions:
  """The record of a config section such as `rl`; raises ValueError for values that cannot hold and ConfigError for `reward.fn`."""
  rollout = read_rollout_options(section, max_new_tokens)
  return RlOptions(
    collect=CollectOptions(
      rollout=rollout, **{name: section[name] for name in ("overlong_zone", "dynamic_sampling", "max_rounds", "min_filled")}
    ),
    reward=read_reward(section["reward"]),
    update=UpdateConfig(
      loss=PolicyLossConfig(**section["loss"]),
      temperature=rollout.temperature,
      **{name: section[name] for name in ("minibatches", "microbatches", "packed_rows")},
    ),
  )


def read_reward(section: Mapping[str, Any]) -> RewardConfig | RewardFn:
  """The built-in reward of a config section, or the function that its key `fn` names."""
  builtin = {name: value for name, value in section.items() if name != "fn"}
  return RewardConfig(**builtin) if section["fn"] is None else load_reward(section["fn"])
