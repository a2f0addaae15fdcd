"""The judge: what the answers of a rollout are worth, by a ranking reward of the kernel or by a reward function of one's own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gr2_jax.data.schema import Catalogue, Slate
from gr2_jax.errors import ConfigError
from gr2_jax.kernels.rank_reward import api
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.rewards.monitors import monitor_answers, monitor_errors
from gr2_jax.rewards.overlong import soft_overlong_penalty
from gr2_jax.rewards.own import Answers, RewardFn, Rewards, Slates, describe_reward, runs_on_host
from gr2_jax.rewards.verifiable import RewardConfig, RewardTerms, compute_rewards
from gr2_jax.training.mesh import to_global, to_local
from gr2_jax.training.metric import Metric


class Parsed(Protocol):
  """Answers as read: `rankings [P, G, K]`, -1 where invalid, and `codes [P, G]`, places in `language.answers.VERDICTS`."""

  @property
  def rankings(self) -> jax.Array: ...

  @property
  def codes(self) -> jax.Array: ...


class HostView(NamedTuple):
  """What a reward on the host sees besides arrays, for the P slates of this process.

  `texts`: P lists of G completions up to EOS. `mesh`: over whose devices the arrays lie; None for arrays of one device.
  """

  texts: Sequence[Sequence[str]]
  records: Sequence[Slate]
  catalogue: Catalogue
  mesh: Mesh | None = None


class Judgement(NamedTuple):
  """What a rollout's answers are worth, `[P, G]`: `rewards` as optimised, `valid` whether the answer is a full permutation,
  `advantages`, all 0 in a group without a signal; `keep [P]`, the groups to learn from; and the monitors of them all.
  """

  rewards: Any
  valid: Any
  advantages: Any
  keep: Any
  monitors: dict[str, Metric]


Judge = Callable[[Parsed, jax.Array, jax.Array, jax.Array, HostView | None], Judgement]


def make_judge(
  reward: RewardConfig | RewardFn,
  *,
  max_new_tokens: int,
  overlong_zone: int,
  divide_by: str,
  keep_all: bool,
) -> Judge:
  """Builds `judge(answers, labels, shown, completion_mask, host) -> Judgement`.

  labels `[P, K]` by candidate, -1 at padding; shown `[P, K]` the candidate at each slot; completion_mask `[P, G, Lc]`; `host` is needed by
  a reward on the host, and no other reads it. All but such a function is one compiled program.
  To what is optimised, not to what filters groups, comes the soft penalty of answers within `overlong_zone` tokens of `max_new_tokens`.
  `divide_by` and `keep_all` as in `rewards.verifiable.compute_rewards`.
  The judge of a function raises ConfigError, which names it, for rewards of another shape than `[P, G]` and for one that is not finite.
  """

  def penalty(lengths: jax.Array) -> jax.Array:
    return soft_overlong_penalty(lengths, max_new_tokens, overlong_zone)

  if isinstance(reward, RewardConfig):
    return _judge_by_config(reward, penalty, divide_by, keep_all)
  return _judge_by_function(reward, penalty, divide_by, keep_all)


def _judge_by_config(config: RewardConfig, penalty: Callable[[jax.Array], jax.Array], divide_by: str, keep_all: bool) -> Judge:
  @jax.jit
  def compute(rankings: jax.Array, codes: jax.Array, labels: jax.Array, shown: jax.Array, completion_mask: jax.Array) -> Judgement:
    lengths = jnp.sum(completion_mask, axis=-1)
    rewards = compute_rewards(
      config,
      rankings,
      labels,
      shown,
      mask=labels >= 0,
      shaping=penalty(lengths),
      divide_by=divide_by,
      keep_all=keep_all,
    )
    return _conclude(rewards, rankings, codes, shown, lengths)

  def judge(answers: Parsed, labels: jax.Array, shown: jax.Array, completion_mask: jax.Array, host: HostView | None = None) -> Judgement:
    return compute(answers.rankings, answers.codes, labels, shown, completion_mask)

  return judge


def _judge_by_function(fn: RewardFn, penalty: Callable[[jax.Array], jax.Array], divide_by: str, keep_all: bool) -> Judge:
  name = describe_reward(fn)

  def finish(
    rewards: Rewards, rankings: jax.Array, codes: jax.Array, labels: jax.Array, shown: jax.Array, completion_mask: jax.Array
  ) -> tuple[Judgement, jax.Array]:
    """The judgement, and the first answer, counted through all groups, whose reward is not finite; -1 where there is none."""
    lengths = jnp.sum(completion_mask, axis=-1)
    total, raw = (jnp.asarray(x, jnp.float32) for x in rewards)
    wrong = ~(jnp.isfinite(total) & jnp.isfinite(raw)).reshape(-1)
    judged = complete_rewards(Rewards(total + penalty(lengths), raw), rankings, labels, shown, divide_by=divide_by, keep_all=keep_all)
    return _conclude(judged, rankings, codes, shown, lengths), jnp.where(jnp.any(wrong), jnp.argmax(wrong), -1)

  finish_compiled = jax.jit(finish)

  @jax.jit
  def compute(
    rankings: jax.Array, codes: jax.Array, labels: jax.Array, shown: jax.Array, completion_mask: jax.Array
  ) -> tuple[Judgement, jax.Array]:
    answers, slates = _to_views(rankings, codes, labels, shown, completion_mask)
    rewards = check_shapes(fn(answers, slates), name, codes.shape)
    return finish(rewards, rankings, codes, labels, shown, completion_mask)

  def compute_on_host(arrays: tuple[jax.Array, ...], host: HostView | None) -> tuple[Judgement, jax.Array]:
    if host is None:
      raise ValueError(f"host: {name} runs on the host and needs the answers' texts and the slates' records")
    answers, slates = _to_views(*(np.asarray(x) for x in (arrays if host.mesh is None else to_local(arrays, host.mesh))))
    answers, slates = answers._replace(texts=host.texts), slates._replace(records=host.records, catalogue=host.catalogue)
    rewards = check_shapes(fn(answers, slates), name, answers.valid.shape)
    as_arrays: list[Any] = [np.asarray(x, np.float32) for x in rewards]  # they may be lists
    on_host = Rewards(*as_arrays)
    return finish_compiled(on_host if host.mesh is None else to_global(on_host, host.mesh), *arrays)

  def judge(answers: Parsed, labels: jax.Array, shown: jax.Array, completion_mask: jax.Array, host: HostView | None = None) -> Judgement:
    arrays = (answers.rankings, answers.codes, labels, shown, completion_mask)
    judgement, wrong = compute_on_host(arrays, host) if runs_on_host(fn) else compute(*arrays)
    # Waits for the device, as whoever asks next whether the batch is full does anyway.
    if wrong >= 0:
      prompt, member = divmod(int(wrong), answers.codes.shape[1])
      raise ConfigError(f"reward.fn: {name} gave answer {member} of slate {prompt} a reward that is not finite; every answer needs one")
    return judgement

  return judge


def _to_views(rankings: Any, codes: Any, labels: Any, shown: Any, completion_mask: Any) -> tuple[Answers, Slates]:
  """The arguments of a reward function, of numpy arrays or of the device's."""
  return Answers(rankings, codes == 0, completion_mask.sum(axis=-1)), Slates(labels, shown, labels >= 0)


def complete_rewards(
  rewards: Rewards, rankings: jax.Array, labels: jax.Array, shown: jax.Array, *, divide_by: str, keep_all: bool = False
) -> RewardTerms:
  """The advantages of rewards `[P, G]` of one's own for rankings `[P, G, K]`, and the terms that are monitored under any reward."""
  min_raw_std = 0.0 if keep_all else api.MIN_RAW_STD
  advantages, keep = group_advantages(rewards.total, rewards.raw, divide_by=divide_by, min_raw_std=min_raw_std)
  terms = api.rank_terms(rankings, labels, shown, mask=labels >= 0, options=RewardConfig().to_options())
  return RewardTerms(rewards.total, rewards.raw, terms.valid, advantages, keep, terms)


def check_shapes(rewards: Any, name: str, shape: tuple[int, ...]) -> Rewards:
  """Raises ConfigError for anything but a total and a raw reward of every answer."""
  if not (isinstance(rewards, tuple) and len(rewards) == 2):
    raise ConfigError(f"reward.fn: {name} returned {type(rewards).__name__}; return Rewards(total, raw)")
  for field, values in zip(Rewards._fields, rewards, strict=True):
    try:
      found: tuple[int, ...] | str = np.shape(values)
    except ValueError:
      found = "with rows of several lengths"
    if found != shape:
      raise ConfigError(f"reward.fn: {name} returned {field} {found}; its shape must be {shape}, one reward for each answer")
  return Rewards(*rewards)


def _conclude(rewards: RewardTerms, rankings: jax.Array, codes: jax.Array, shown: jax.Array, lengths: jax.Array) -> Judgement:
  monitors = monitor_answers(rewards, rankings, shown, lengths) | monitor_errors(codes)
  return Judgement(rewards.total, rewards.format > 0, rewards.advantages, rewards.keep, monitors)
