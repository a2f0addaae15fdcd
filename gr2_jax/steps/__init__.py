"""The jitted, sharded update functions: one gradient step for every loss, the policy update, the tokenizer."""

from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.update import make_update

__all__ = ["GroupBatch", "UpdateConfig", "make_policy_update", "make_update"]
