"""Under the automaton of true reasons nothing false can be said, and drawn log-probabilities are those of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.evidence.codes import FactCodes
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import init_params
from gr2_jax.rollout.reasoned import Thoughts, make_think, score_thoughts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.true_facts import TrueFacts

P, G, K, F, L, BINS = 3, 16, 4, 4, 12, 4
RANDOM = np.random.default_rng(0)
NAMES, TOLD = ("popularity", "age", "gap", "brand_share"), ("brand_share", "age")
SHAPE = {"num_levels": 2, "codebook_size": 4, "num_candidates": 6, "facts": TOLD, "fact_buckets": BINS}
VOCABULARY = Vocabulary.train(["a rose", "a balm"] * 8, text_pieces=512, **SHAPE)
CODES = FactCodes.fit(RANDOM.normal(size=(50, K, F)), np.ones((50, K), bool), NAMES, bins=BINS)
EDGES = jnp.asarray(CODES.edges)
MODEL = SlateScorer(preset("test", VOCABULARY.size), (F, BINS))
TRUE = TrueFacts(VOCABULARY, NAMES)
THINK = VOCABULARY.special("think")


@pytest.fixture(scope="module")
def slates():
  real = np.ones((P, K), bool)
  real[1, 2:] = False
  nothing = np.zeros((P, K, 0), np.float32)
  return PackedSlates(RANDOM.normal(size=(P, K, F)).astype(np.float32), real, np.zeros((P, 0), bool), nothing, nothing[:, :0])


@pytest.fixture(scope="module")
def params():
  found = jax.tree.map(lambda x: 4 * x, init_params(MODEL, jax.random.key(0)))
  # Names and words for facts are drawn often.
  table = found["decoder"]["embedding"]
  start, end = VOCABULARY.fact_start, VOCABULARY.candidate_start + 6
  return found | {"decoder": found["decoder"] | {"embedding": table.at[start:end].multiply(6)}}


@pytest.fixture(scope="module")
def rollout(slates, params):
  think = jax.jit(make_think(MODEL, VOCABULARY, group=G, max_new_tokens=L, constraint=TRUE))
  return jax.device_get(think(params, slates, EDGES, jax.random.key(1), Sampling.create(temperature=1.0)))


def test_every_word_is_true_of_the_candidate_named_before_it(slates, rollout):
  buckets = CODES.buckets(TOLD, slates.facts[..., [NAMES.index(name) for name in TOLD]])
  stated = 0
  for row in range(P):
    for tokens, mask in zip(rollout.completions[row], rollout.completion_mask[row], strict=True):
      about = None
      for token in tokens[mask].tolist():
        if VOCABULARY.candidate_start <= token < VOCABULARY.sid_start:
          about = token - VOCABULARY.candidate_start
          assert slates.real[row, about]
        elif VOCABULARY.fact_start <= token < VOCABULARY.candidate_start:
          fact, bucket = divmod(token - VOCABULARY.fact_start, BINS)
          assert about is not None and bucket == buckets[row, about, fact]
          stated += 1
        else:
          assert token == VOCABULARY.special("/think") or token not in VOCABULARY.forbidden_ids
  assert stated > 20


def test_losses_see_the_probabilities_that_tokens_were_drawn_with(slates, params, rollout):
  thoughts = Thoughts(rollout.completions, rollout.completion_mask)

  @jax.jit
  def score(params, slates, thoughts):
    return [score_thoughts(MODEL, params, slates, EDGES, thoughts, THINK, constraint=of) for of in (TRUE, None)]

  found, free = score(params, slates, thoughts)
  np.testing.assert_allclose(found.log_probs, rollout.behaviour_logps, atol=2e-4)
  np.testing.assert_allclose(found.entropy, rollout.entropy, atol=2e-4)
  np.testing.assert_array_equal(found.scores, free.scores)  # what may be said changes no score behind it
  assert (np.asarray(found.log_probs) - np.asarray(free.log_probs)).max() > 0.01
