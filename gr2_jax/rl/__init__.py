"""Reinforcement learning on group rollouts; `rl_step` is read from top to bottom. A policy learns without any run directory:

>>> import jax, numpy as np
>>> from gr2_jax.data import MarketConfig, make_market
>>> from gr2_jax.language import PromptContext, PromptStyle, Vocabulary, corpus_texts
>>> from gr2_jax.models import Decoder, preset
>>> from gr2_jax.rl import RlOptions, CollectOptions, RolloutOptions, SlateStream, make_learner
>>> from gr2_jax.rollout import SlateConstraint
>>> from gr2_jax.training import OptimizerConfig
>>> market = make_market(MarketConfig(num_items=120, slate_size=4, train_slates=60, validation_slates=20, test_slates=20), seed=0)
>>> texts = corpus_texts(market.catalogue)
>>> vocabulary = Vocabulary.train(texts, text_pieces=400, num_levels=2, codebook_size=16, num_candidates=4)
>>> codes = np.stack(np.divmod(np.arange(120), 16), axis=1)  # any unique codes; a run trains them
>>> context, style = PromptContext(market.catalogue, codes, vocabulary), PromptStyle(item_fields=(), max_prompt_tokens=96)
>>> rollout = RolloutOptions(prompts=4, group=4, max_new_tokens=16)
>>> options = RlOptions(CollectOptions(rollout, max_rounds=1))
>>> stream = SlateStream(market.slates["train"], context, style, prompts=4, presentation="shuffled", seed=0)
>>> decoder, constraint = Decoder(preset("test", vocabulary.size)), SlateConstraint(vocabulary, style)
>>> learner = make_learner(decoder, stream, options, OptimizerConfig(1e-3), steps=2, constraint=constraint, key=jax.random.key(0))
>>> state = learner.state
>>> for _ in range(2):
...   result = learner.step(state)
...   state = result.state
>>> int(state.step), float(result.drawn["valid_rate"].mean())
(2, 1.0)
"""

from gr2_jax.rl.collect import Round, collect_groups
from gr2_jax.rl.draw import Drawn, SlateStream
from gr2_jax.rl.learner import Learner, make_learner
from gr2_jax.rl.options import CollectOptions, RlOptions, RolloutOptions
from gr2_jax.rl.step import make_collector, rl_step
from gr2_jax.rl.stop import NoSignalError

__all__ = [
  "CollectOptions",
  "Drawn",
  "Learner",
  "NoSignalError",
  "RlOptions",
  "RolloutOptions",
  "Round",
  "SlateStream",
  "collect_groups",
  "make_collector",
  "make_learner",
  "rl_step",
]
