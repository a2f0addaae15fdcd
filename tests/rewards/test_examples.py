"""The examples of rewards of one's own, by hand and through the judge."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.rewards.judge import HostView, make_judge
from gr2_jax.rewards.own import load_reward, runs_on_host

# Slate 0 of four candidates, label 2 at candidate 2 and 1 at 0; slate 1 of three, its target candidate 1.
RANKINGS = [[[2, 0, 1, 3], [0, 2, 1, 3], [3, 1, 0, 2]], [[0, 1, 2, -1], [1, 2, 0, -1], [-1] * 4]]
ANSWERS = SimpleNamespace(rankings=jnp.asarray(RANKINGS), codes=jnp.asarray([[0, 0, 0], [0, 0, 1]]))
LABELS = jnp.asarray([[1, 0, 2, 0], [0, 1, 0, -1]])
SHOWN = jnp.asarray([[0, 1, 2, 3], [2, 1, 0, 3]])
MASK = jnp.ones((2, 3, 5), bool)
SETTINGS = {"max_new_tokens": 10, "overlong_zone": 0, "divide_by": "none", "keep_all": False}


def test_reciprocal_rank():
  judgement = make_judge(load_reward("docs.examples.reciprocal_rank:reward"), **SETTINGS)(ANSWERS, LABELS, SHOWN, MASK, None)
  # Candidate 2 at ranks 1, 2, 4; candidate 1 at ranks 2, 1; an invalid answer.
  rewards = np.array([[1, 1 / 2, 1 / 4], [1 / 2, 1, -1]])
  np.testing.assert_allclose(judgement.rewards, rewards, atol=1e-6)
  # Less the groups' means, 7/12 and 1/6.
  np.testing.assert_allclose(judgement.advantages, [[5 / 12, -1 / 12, -1 / 3], [1 / 3, 5 / 6, -7 / 6]], atol=1e-6)
  assert judgement.keep.all()


def test_reciprocal_rank_without_a_positive_label():
  reward = load_reward("docs.examples.reciprocal_rank:reward")
  judgement = make_judge(reward, **SETTINGS)(ANSWERS, jnp.minimum(LABELS, 0), SHOWN, MASK, None)
  np.testing.assert_array_equal(judgement.rewards, [[0, 0, 0], [0, 0, -1]])
  assert judgement.keep.tolist() == [False, True]


def test_varied_brands():
  reward = load_reward("docs.examples.varied_brands:reward")
  assert runs_on_host(reward)
  brands = {"a": "Alba", "b": "Birk", "c": "Alba", "d": None, "e": None}
  catalogue = Catalogue(tuple(Item(name, name, brand) for name, brand in brands.items()))
  records = [Slate("u", ("a",), ("a", "b", "c", "d"), (1, 0, 2, 0)), Slate("v", ("a",), ("d", "e", "b"), (0, 1, 0))]
  reasoned, silent = "<think> then a </think> <answer> <A> </answer>", "<think>  </think> <answer> <A> </answer>"
  texts = [[reasoned, silent, reasoned], [silent, "<answer> <A> </answer>", reasoned]]
  host = HostView(texts, records, catalogue)
  judgement = make_judge(reward, **SETTINGS)(ANSWERS, LABELS, SHOWN, MASK, host)
  # Slate 0: c, a are both Alba: 1 / 2, with a reason 0.6; a, c the same: 1 / 4, without one; d, b differ: 1 / 4, with one 0.35.
  # Slate 1: d, e have no known brand: 1 / 2; the target first: 1; invalid.
  np.testing.assert_allclose(judgement.rewards, [[0.6, 0.25, 0.35], [0.5, 1.0, -1.0]], atol=1e-6)
  np.testing.assert_allclose(judgement.monitors["rank_reward"].sum, 0.5 + 0.25 + 0.25 + 0.5 + 1 - 1, atol=1e-6)
  # Less the groups' means, 0.4 and 1/6.
  np.testing.assert_allclose(judgement.advantages, [[0.2, -0.15, -0.05], [1 / 3, 5 / 6, -7 / 6]], atol=1e-6)
