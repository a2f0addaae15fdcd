"""What an answer earns: verifiable rewards under conditions that keep copying from paying, rewards of one's own, and hacking monitors.

>>> import jax.numpy as jnp
>>> from gr2_jax.rewards import RewardConfig, compute_rewards
>>> rankings = jnp.array([[[1, 0, 2], [0, 1, 2]]])  # two answers to one slate of three
>>> labels, shown = jnp.array([[0, 1, 0]]), jnp.array([[0, 1, 2]])
>>> rewards = compute_rewards(RewardConfig(rank="auc", condition="eq7"), rankings, labels, shown)
>>> [round(float(x), 3) for x in rewards.total[0]]  # the copy of the upstream order earns the format credit alone
[1.1, 0.1]
>>> rewards.keep.tolist()
[True]
"""

from gr2_jax.kernels.rank_reward.conditions import CONDITIONS, Condition
from gr2_jax.rewards.judge import Judgement, make_judge
from gr2_jax.rewards.overlong import soft_overlong_penalty
from gr2_jax.rewards.own import Answers, Rewards, Slates, load_reward, on_host
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards

__all__ = [
  "CONDITIONS",
  "Answers",
  "Condition",
  "Judgement",
  "RewardConfig",
  "Rewards",
  "Slates",
  "compute_rewards",
  "load_reward",
  "make_judge",
  "on_host",
  "soft_overlong_penalty",
]
