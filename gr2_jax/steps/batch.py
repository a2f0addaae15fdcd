"""What updates on rollouts read."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class GroupBatch:
  """P groups of G completions: `prompts, prompt_mask [P, Lp]`; `completions, completion_mask, behaviour_logps [P, G, Lc]`;
  `advantages [P, G]`; `weights [P]` of their slates; `keep [P]`, False for groups that count neither in the loss nor in its denominator.
  A completion that is not to be learnt from has a `completion_mask` of False throughout.
  """

  prompts: Any
  prompt_mask: Any
  completions: Any
  completion_mask: Any
  behaviour_logps: Any
  advantages: Any
  weights: Any
  keep: Any

  @property
  def texts(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Prompts and completions, each with its mask: the arguments of `rollout.completions`."""
    return self.prompts, self.prompt_mask, self.completions, self.completion_mask

  @property
  def loss_mask(self) -> jax.Array:
    """The tokens `[P, G, Lc]` that are learnt from."""
    return self.completion_mask * self.keep[:, None, None]

  @property
  def completion_weights(self) -> jax.Array:
    """The weight of each completion's slate, `[P, G]`."""
    return self.weights[:, None] * jnp.ones_like(self.advantages)
