from typing import Any, NamedTuple
import jax, jax.numpy as jnp
from gr2_jax.rewards.monitors import monitor_answers, monitor_errors
from gr2_jax.rewards.overlong import soft_overlong_penalty
from gr2_jax.rewards.verifiable import compute_rewards
class Judgement(NamedTuple):
  rewards: Any
  valid: Any
  advantages: Any
  keep: Any
  monitors: Any
def make_judge(reward, *, max_new_tokens, overlong_zone, divide_by_std, keep_all):
  @jax.jit
  def compiled(rankings, codes, labels, shown, completion_mask):
    lengths = jnp.sum(completion_mask, axis=-1)
    rewards = compute_rewards(reward, rankings, labels, shown, mask=labels >= 0,
      shaping=soft_overlong_penalty(lengths, max_new_tokens, overlong_zone), divide_by_std=divide_by_std, keep_all=keep_all)
    monitors = monitor_answers(rewards, rankings, shown, lengths) | monitor_errors(codes)
    return Judgement(rewards.total, rewards.format > 0, rewards.advantages, rewards.keep, monitors)
  return lambda rankings, codes, labels, shown, mask, host: compiled(rankings, codes, labels, shown, mask)
