"""A reasoning behind a packed slate: what is decoded is what is scored again, and the candidates' scores come after it."""

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

P, G, K, F, L = 3, 4, 5, 4, 6
RANDOM = np.random.default_rng(0)
VOCABULARY = Vocabulary.train(["a rose", "a balm"] * 8, num_levels=2, codebook_size=4, num_candidates=K, text_pieces=512)
MODEL = SlateScorer(preset("test", VOCABULARY.size), (F, 4), prior=1)
EDGES = jnp.asarray(FactCodes.fit(RANDOM.normal(size=(50, K, F)), np.ones((50, K), bool), "abcd", bins=4).edges)
THINK = VOCABULARY.special("think")


@pytest.fixture(scope="module")
def slates():
  real = np.ones((P, K), bool)
  real[1, 3:] = False
  nothing = np.zeros((P, K, 0), np.float32)
  return PackedSlates(RANDOM.normal(size=(P, K, F)).astype(np.float32), real, np.zeros((P, 0), bool), nothing, nothing[:, :0])


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: 4 * x, init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def rollout(slates, params):
  think = jax.jit(make_think(MODEL, VOCABULARY, group=G, max_new_tokens=L))
  return think(params, slates, EDGES, jax.random.key(1), Sampling.create(temperature=1.0))


@pytest.fixture(scope="module")
def score(params):
  return jax.jit(lambda slates, tokens, mask: score_thoughts(MODEL, params, slates, EDGES, Thoughts(tokens, mask), THINK))


@pytest.fixture(scope="module")
def found(slates, rollout, score):
  return score(slates, rollout.completions, rollout.completion_mask)


def test_tokens_have_the_probabilities_that_they_were_drawn_with(rollout, found):
  np.testing.assert_allclose(found.log_probs, rollout.behaviour_logps, atol=2e-4)
  np.testing.assert_allclose(found.entropy, rollout.entropy, atol=2e-4)


def test_each_reasoning_gives_scores_of_its_own(slates, rollout, found, score):
  scores = np.asarray(found.scores)
  assert scores.shape == (P, G, K)
  assert np.abs(scores[0, 0] - scores[0, 1]).max() > 1e-4
  for member in (0, 3):  # alone as in its group
    alone = score(slates, rollout.completions[:, member : member + 1], rollout.completion_mask[:, member : member + 1])
    np.testing.assert_allclose(np.asarray(alone.scores)[:, 0][slates.real], scores[:, member][slates.real], atol=1e-4)


def test_what_stands_behind_the_end_of_a_reasoning_changes_nothing(slates, rollout, score):
  mask = np.array(rollout.completion_mask)
  mask[..., 3:] = False
  changed = np.where(mask, rollout.completions, 7)
  one, other = score(slates, rollout.completions, mask), score(slates, changed, mask)
  np.testing.assert_allclose(np.asarray(one.scores), other.scores, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(one.log_probs)[..., 3:], 0)


def test_the_order_of_candidates_changes_no_score(slates, rollout, found, score):
  order = np.array([3, 0, 4, 1, 2])
  shuffled = slates._replace(facts=slates.facts[:, order], real=slates.real[:, order])
  again = score(shuffled, rollout.completions, rollout.completion_mask)
  np.testing.assert_allclose(np.asarray(again.scores)[[0, 2]], np.asarray(found.scores)[..., order][[0, 2]], atol=1e-4)


def test_a_reasoning_ends_with_its_token_or_at_the_limit(rollout):
  ending = VOCABULARY.special("/think")
  for tokens, mask, finished in zip(
    rollout.completions.reshape(-1, L), rollout.completion_mask.reshape(-1, L), rollout.finished.ravel(), strict=True
  ):
    written = np.asarray(tokens)[np.asarray(mask)].tolist()
    assert ending not in written[:-1] and (written[-1] == ending if finished else len(written) == L)
