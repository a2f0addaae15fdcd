import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.beam import make_beam_search
from gr2_jax.semantic_ids.trie import DenseTrie, SidTrie

VOCAB, LEVELS, CODES = 20, 3, 4
SID_TOKENS = jnp.arange(LEVELS * CODES).reshape(LEVELS, CODES) + 8
ITEMS = [(0, 0, 0), (0, 0, 3), (0, 2, 1), (1, 1, 1), (3, 0, 0), (3, 3, 0), (3, 3, 1)]
DECODER = Decoder(preset("test", VOCAB))


def _trie(items):
  """A dense trie by walking each item's codes; returns the leaf of each item too."""
  states, table = {(): 0}, [[-1] * CODES]
  for item in items:
    for level in range(LEVELS):
      prefix = item[: level + 1]
      if prefix not in states:
        states[prefix] = len(table)
        table.append([-1] * CODES)
        table[states[prefix[:-1]]][prefix[-1]] = states[prefix]
  return DenseTrie(jnp.array(table, jnp.int32)), [states[item] for item in items]


@pytest.fixture(scope="module")
def setting():
  params = jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))
  mask = jnp.arange(5) < jnp.array([[5], [2]])
  prompts = jnp.where(mask, jax.random.randint(jax.random.key(1), (2, 5), 1, 8), 0)
  return params, prompts, mask


@jax.jit
def _all_logits(params, tokens):
  positions = jnp.arange(tokens.shape[0])[None]
  hidden, _ = DECODER.apply({"params": params}, tokens[None], positions, jnp.ones_like(positions))
  return DECODER.apply({"params": params}, hidden, method="logits")[0]


def _scores(params, prompt, items):
  """Each item's log-probability by one plain forward pass over prompt and codes."""
  children = {}
  for item in items:
    for level in range(LEVELS):
      children.setdefault(item[:level], set()).add(item[level])
  scores = {}
  for item in items:
    tokens = np.zeros(5 + LEVELS, np.int32)
    tokens[: len(prompt) + LEVELS] = [*prompt, *np.asarray(SID_TOKENS)[np.arange(LEVELS), item]]
    logits = np.asarray(_all_logits(params, tokens))
    total = 0.0
    for level in range(LEVELS):
      codes = sorted(children[item[:level]])
      legal = logits[len(prompt) - 1 + level][np.asarray(SID_TOKENS)[level, codes]]
      total += legal[codes.index(item[level])] - np.log(np.exp(legal).sum())
    scores[item] = total
  return sorted(scores.items(), key=lambda pair: -pair[1])


def test_wide_beam_equals_scoring_every_item(setting):
  params, prompts, mask = setting
  trie, leaves = _trie(ITEMS)
  codes, log_probs, states = make_beam_search(DECODER, beams=9, levels=LEVELS)(params, prompts, mask, trie, SID_TOKENS)
  for p in range(2):
    expected = _scores(params, prompts[p][mask[p]], ITEMS)
    assert [tuple(item) for item in codes[p, :7].tolist()] == [item for item, _ in expected]
    np.testing.assert_allclose(log_probs[p, :7], [score for _, score in expected], atol=1e-4)
    assert states[p, :7].tolist() == [leaves[ITEMS.index(item)] for item, _ in expected]
  np.testing.assert_allclose(jnp.exp(log_probs).sum(axis=1), 1.0, rtol=1e-4)
  # Two beams more than items: they are marked, not repeated.
  assert (codes[:, 7:] == -1).all() and (states[:, 7:] == -1).all() and (log_probs[:, 7:] == -jnp.inf).all()


def test_narrow_beam_equals_a_naive_beam_search(setting):
  params, prompts, mask = setting
  trie, _ = _trie(ITEMS)
  codes, log_probs, _ = make_beam_search(DECODER, beams=2, levels=LEVELS)(params, prompts, mask, trie, SID_TOKENS)
  for p in range(2):
    full = dict(_scores(params, prompts[p][mask[p]], ITEMS))
    alive = [()]
    for level in range(1, LEVELS + 1):
      # A prefix's probability is the sum over the items below it, since each step is normalised over what the trie allows.
      mass = {}
      for item, score in full.items():
        if item[: level - 1] in alive:
          mass[item[:level]] = mass.get(item[:level], 0.0) + np.exp(score)
      alive = sorted(mass, key=lambda prefix: -mass[prefix])[:2]
    assert [tuple(item) for item in codes[p].tolist()] == alive
    np.testing.assert_allclose(log_probs[p], [full[item] for item in alive], atol=1e-4)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_both_forms_of_the_trie_find_the_same_items(setting, levels):
  params, prompts, mask = setting
  codes = np.random.default_rng(levels).integers(CODES - 1, size=(15, levels))  # some IDs collide, one code is not used
  trie = SidTrie.build(codes, CODES)
  search = make_beam_search(DECODER, beams=6, levels=levels)
  dense, compressed = (search(params, prompts, mask, form, SID_TOKENS) for form in (trie.dense(), trie.compressed()))
  np.testing.assert_array_equal(compressed[0], dense[0])
  np.testing.assert_allclose(compressed[1], dense[1], atol=1e-5)
  np.testing.assert_array_equal(compressed[2], dense[2])
  found = codes[[trie.items_at(state)[0] for state in np.asarray(compressed[2][0]) if state >= 0]]
  np.testing.assert_array_equal(found, compressed[0][0, : len(found)])


def test_fewer_levels_spell_prefixes(setting):
  params, prompts, mask = setting
  trie, _ = _trie(ITEMS)
  codes, log_probs, states = make_beam_search(DECODER, beams=3, levels=1)(params, prompts, mask, trie, SID_TOKENS)
  assert {int(code) for code in codes[0, :, 0]} == {0, 1, 3}
  np.testing.assert_allclose(jnp.exp(log_probs).sum(axis=1), 1.0, rtol=1e-5)
  assert (states > 0).all()


def test_sizes_below_one_are_refused():
  with pytest.raises(ValueError, match="beams must be at least 1"):
    make_beam_search(DECODER, beams=0, levels=LEVELS)
