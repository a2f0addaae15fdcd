"""The typed settings of everything that learns from a policy's own answers."""

import dataclasses
import math
from typing import Any

from gr2_jax.objectives.policy import DAPO, PolicyLossConfig
from gr2_jax.rewards.own import RewardFn, load_reward
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.settings import check_settings, setting, spread
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


@dataclasses.dataclass(frozen=True)
class RewardOptions:
  """A reward as it stands in a config: built in, or a function of one's own."""

  builtin: RewardConfig = spread(RewardConfig())
  fn: str | None = setting(None, 'a reward of one\'s own, "module:function", in place of the built-in one; None: the built-in one')

  def __post_init__(self) -> None:
    check_settings(self)

  def load(self) -> RewardConfig | RewardFn:
    """The reward; raises ConfigError for a function that is not there."""
    return self.builtin if self.fn is None else load_reward(self.fn)


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
  """How a policy's own answers are decoded and cut off, as it stands in a config."""

  decode_prompts: int | None = setting(None, "prompts decoded at a time, to save memory; None: all", unit="slates", low=1)
  decode_rows: int | None = setting(
    None,
    "rows in which a prompt's answers are decoded; with fewer than `group`, answers that have ended make room for others; None: a row each",
    unit="rows",
    low=1,
  )
  overlong_zone: int = setting(8, "last tokens before the limit, in which an answer loses reward the longer it is", unit="tokens", low=0)

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class GroupOptions:
  """Learning from groups as it stands in a config; `to_rl` gives the records that the library reads, and raises what they raise."""

  prompts: int = setting(16, "slates of a batch, over all processes", unit="slates", low=1)
  group: int = setting(8, "answers to a prompt, each judged by the others", unit="answers", low=2)
  temperature: float = setting(1.0, "temperature at which answers are drawn", above=0)
  presentation: str = setting("shuffled", "the order in which candidates are shown", choices=PRESENTATIONS)
  decode: DecodeOptions = spread(DecodeOptions())
  dynamic_sampling: bool = setting(
    True, "whether groups without a signal (all rewards equal) are left out and replaced; without it one round is played, and all count"
  )
  max_rounds: int = setting(3, "rounds of answers in which a batch is filled, at most", low=1)
  min_filled: float = setting(1.0, "share of a batch that is enough for no further round to begin", above=0, high=1)
  minibatches: int = setting(1, "gradient steps on a batch, each on its share of the prompts", low=1)
  microbatches: int = setting(1, "parts of a gradient step, to save memory", low=1)
  packed_rows: int | None = setting(
    None,
    "rows, each of decoding.max_new_tokens, into which an update packs a group's answers; best a little above group x mean length; None: "
    "a row an answer",
    unit="rows",
    low=1,
  )
  loss: PolicyLossConfig = setting(DAPO, "the policy loss; configs/rl_losses.py has the published ones by name")
  reward: RewardOptions = setting(RewardOptions(), "what an answer earns")

  def __post_init__(self) -> None:
    check_settings(self)

  def to_rl(self, max_new_tokens: int) -> RlOptions:
    """The records, with the run's limit of an answer; raises ValueError for values that do not go together, ConfigError for `reward.fn`."""
    rollout = read_rollout_options(self, max_new_tokens)
    return RlOptions(
      collect=CollectOptions(rollout, self.decode.overlong_zone, self.dynamic_sampling, self.max_rounds, self.min_filled),
      reward=self.reward.load(),
      update=UpdateConfig(self.loss, rollout.temperature, self.minibatches, self.microbatches, self.packed_rows),
    )


def read_rollout_options(options: Any, max_new_tokens: int, **changes: Any) -> RolloutOptions:
  """How a policy is asked, of a record that has its settings among others; `max_new_tokens` is the limit of all answers of a run."""
  given = {**vars(options), **vars(getattr(options, "decode", DecodeOptions()))}
  names = {field.name for field in dataclasses.fields(RolloutOptions)} & given.keys()
  return RolloutOptions(**{name: given[name] for name in names} | {"max_new_tokens": max_new_tokens} | changes)
