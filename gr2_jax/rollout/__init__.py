"""What a policy answers: groups of completions over a prompt that is computed once, parsed on the device; one-pass scores; beams.

>>> import jax
>>> from gr2_jax.models import Decoder, init_params, preset
>>> from gr2_jax.rollout import RolloutConfig, Sampling, make_generate
>>> decoder = Decoder(preset("test", vocab_size=64))
>>> generate = make_generate(RolloutConfig(decoder, group=4, max_new_tokens=6, eos_id=1, pad_id=0))
>>> prompts = jax.numpy.array([[5, 6, 7, 0], [8, 9, 10, 11]])
>>> rollout = generate(init_params(decoder, jax.random.key(0)), prompts, prompts > 0, jax.random.key(1), Sampling.create(1.0))
>>> rollout.completions.shape, rollout.behaviour_logps.dtype.name
((2, 4, 6), 'float32')
"""

from gr2_jax.rollout.beam import make_beam_search
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.rollout.generate import Rollout, RolloutConfig, make_generate
from gr2_jax.rollout.refill import make_generate_queue
from gr2_jax.rollout.rerank import rank_slates, render_prompts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.scoring import make_score
from gr2_jax.rollout.slate_constraint import SlateConstraint

__all__ = [
  "Rollout",
  "RolloutConfig",
  "Sampling",
  "SlateConstraint",
  "completion_log_probs",
  "make_beam_search",
  "make_generate",
  "make_generate_queue",
  "make_score",
  "rank_slates",
  "render_prompts",
]
