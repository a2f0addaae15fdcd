"""A candidate's score depends on its facts and content, on its rivals and on the history, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gr2_jax.evidence.codes import FactCodes
from gr2_jax.models.config import preset
from gr2_jax.models.scorer import PackedSlates, SlateScorer, piecewise_linear
from gr2_jax.models.transformer import init_params

P, K, H, F, C = 3, 5, 4, 6, 7
RANDOM = np.random.default_rng(0)
CODES = FactCodes.fit(RANDOM.normal(size=(50, K, F)), np.ones((50, K), bool), "abcdef", bins=4)
MODEL = SlateScorer(preset("test", 1), (F, 4), content_dim=C, dropout=0.5)


@pytest.fixture(scope="module")
def slates():
  draw = lambda *shape: RANDOM.normal(size=shape).astype(np.float32)
  real, past = np.ones((P, K), bool), np.ones((P, H), bool)
  real[1, 3:], past[2, :2] = False, False
  return PackedSlates(draw(P, K, F), real, past, draw(P, K, C), draw(P, H, C))


@pytest.fixture(scope="module")
def params(slates):
  return jax.jit(MODEL.init)(jax.random.key(0), slates, CODES.edges)["params"]


@pytest.fixture(scope="module")
def score(params):
  wide = jax.tree.map(lambda x: 5 * x, nn.unbox(params))
  return jax.jit(lambda slates: MODEL.apply({"params": wide}, slates, CODES.edges))


def test_codes_by_hand(tmp_path):
  table = np.repeat(np.arange(5.0), 2).reshape(1, 10, 1) * [[1.0, 0.0]]
  table[..., 1] = [[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
  real = np.ones((1, 10), bool)
  codes = FactCodes.fit(table, real, ("wide", "rare"), bins=2)
  codes.save(tmp_path / "codes.npz")
  codes = FactCodes.load(tmp_path / "codes.npz")
  assert codes.names == ("wide", "rare") and codes.edges.tolist() == [[0, 2, 4], [0, 0, 1]]
  found = piecewise_linear(jnp.array([[1.0, 0.0], [3.0, 1.0], [9.0, 0.5], [-1.0, -1.0]]), codes.edges)
  np.testing.assert_allclose(found, [[[0.5, 0], [0, 0]], [[1, 0.5], [1, 1]], [[1, 1], [1, 0.5]], [[0, 0], [0, 0]]], atol=1e-6)


def test_the_order_of_candidates_changes_no_score(slates, score):
  order = np.array([3, 0, 4, 1, 2])
  shuffled = slates._replace(**{name: getattr(slates, name)[:, order] for name in ("facts", "real", "content")})
  np.testing.assert_allclose(score(shuffled), score(slates)[:, order], atol=1e-4)


def test_padding_changes_nothing_and_the_rest_does(slates, score):
  base = np.asarray(score(slates))
  changed = {name: np.array(getattr(slates, name)) for name in ("facts", "content", "past_content")}
  changed["facts"][1, 3:], changed["content"][1, 3:], changed["past_content"][2, :2] = 9, 9, 9
  np.testing.assert_allclose(np.asarray(score(slates._replace(**changed)))[slates.real], base[slates.real], atol=1e-4)
  for name, place in (("facts", (0, 2)), ("content", (0, 2)), ("past_content", (0, 3))):
    value = np.array(getattr(slates, name))
    value[place] += 2
    found = np.asarray(score(slates._replace(**{name: value})))
    assert (np.abs(found[0] - base[0]) > 1e-4).sum() > 1, name  # of its rivals too
    np.testing.assert_allclose(found[2], base[2], atol=1e-4)


def test_without_content_the_history_is_not_read(slates):
  bare = slates._replace(content=slates.content[..., :0], past_content=slates.past_content[..., :0])
  model = SlateScorer(MODEL.config, MODEL.shape)
  params = init_params(model, jax.random.key(0))
  assert "content" not in params
  score = jax.jit(lambda slates: model.apply({"params": params}, slates, CODES.edges))
  np.testing.assert_array_equal(score(bare), score(bare._replace(past=~bare.past)))


def test_dropout_is_for_training_alone(slates, params, score):
  drop = lambda seed: MODEL.apply({"params": params}, slates, CODES.edges, deterministic=False, rngs={"dropout": jax.random.key(seed)})
  assert np.abs(drop(0) - drop(1)).max() > 0
  np.testing.assert_array_equal(score(slates), score(slates))


def test_texts_of_all_candidates_of_a_slate_are_left_out_together(slates, params):
  wide = jax.tree.map(lambda x: 5 * x, nn.unbox(params))
  model = MODEL.clone(dropout=0.0, content_dropout=0.5)
  learn = jax.jit(lambda key: model.apply({"params": wide}, slates, CODES.edges, deterministic=False, rngs={"dropout": key}))
  plain = jax.jit(lambda content: model.apply({"params": wide}, slates._replace(content=content), CODES.edges))
  without, doubled = plain(np.zeros_like(slates.content)), plain(2 * slates.content)
  assert np.abs(without - doubled)[slates.real].min() > 1e-4
  left_out = set()
  for seed in range(4):
    for row, scores in enumerate(learn(jax.random.key(seed))):
      found = [np.allclose(scores[slates.real[row]], other[row][slates.real[row]], atol=1e-4) for other in (without, doubled)]
      assert found.count(True) == 1
      left_out.add(found[0])
  assert left_out == {True, False}
