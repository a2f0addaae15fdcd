"""One-pass scores: probabilities of whole references against a plain full forward, and orders that follow them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.answers import reference_tokens
from gr2_jax.language.prompts import PromptContext, PromptStyle, render_prompt
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.scoring import answer_opening, make_score, rank_by_scores, sort_by_scores
from gr2_jax.rollout.slate_constraint import SlateConstraint

SIZES = (5, 3, 4)
# Candidates 0 and 2 share their first code, 1 and 3 all of them.
CODES = np.array([[0, 1], [2, 2], [0, 3], [2, 2], [1, 0]])
STYLES = {
  "slot": PromptStyle(),
  "sid": PromptStyle(reference="sid"),
  "markers": PromptStyle(reference="sid", sid_markers=True),
}
PROMPTS = ([3, 4, 5, 6], [7, 5], [6, 3, 3])


@pytest.fixture(scope="module")
def model():
  vocabulary = Vocabulary.train(["shampoo then conditioner best"] * 30, text_pieces=400, num_levels=2, codebook_size=4, num_candidates=5)
  decoder = Decoder(preset("test", vocabulary.size))
  return vocabulary, decoder, jax.tree.map(lambda x: 3 * x, init_params(decoder, jax.random.key(0)))


def inputs(vocabulary, style):
  tokens, mask = np.full((3, 4), vocabulary.pad_id, np.int32), np.zeros((3, 4), np.int32)
  named = [reference_tokens(range(size), vocabulary, style, CODES) for size in SIZES]
  references = np.full((3, 5, len(named[0][0])), -1, np.int32)
  for row, prompt in enumerate(PROMPTS):
    tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    references[row, : len(named[row])] = named[row]
  return tokens, mask, references


def full_logits(model, sequences):
  """Logits `[n, T, V]` of plain rows: what stands behind a row's end can't matter."""
  _, decoder, params = model
  tokens = np.zeros((18, 16), np.int32)
  for row, sequence in enumerate(sequences):
    tokens[row, : len(sequence)] = sequence
  return np.asarray(forward(decoder, params, tokens), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def forward(decoder, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = decoder.apply({"params": params}, tokens, positions, jnp.ones_like(tokens))
  return decoder.apply({"params": params}, hidden, method="logits")


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_scores_are_log_probabilities_of_the_whole_reference(model, style, constrained):
  vocabulary, decoder, params = model
  tokens, mask, references = inputs(vocabulary, style)
  constraint = SlateConstraint(vocabulary, style) if constrained else None
  scores = np.asarray(make_score(decoder, vocabulary, style, constraint)(params, tokens, mask, references))
  opening, named = (
    answer_opening(vocabulary, style),
    [[tuple(r) for r in row[:size].tolist()] for row, size in zip(references, SIZES, strict=True)],
  )
  places = [(row, slot) for row, size in enumerate(SIZES) for slot in range(size)]
  logits = full_logits(model, [[*PROMPTS[row], *opening, *named[row][slot]] for row, slot in places])
  for (row, slot), of in zip(places, logits, strict=False):
    reference, start = named[row][slot], len(PROMPTS[row]) + len(opening) - 1
    expected = 0.0
    for place, token in enumerate(reference):
      legal = list({other[place] for other in named[row] if other[:place] == reference[:place]})
      here = of[start + place]
      expected += here[token] - np.log(np.exp(here[legal] if constrained else here).sum())
    np.testing.assert_allclose(scores[row, slot], expected, atol=1e-4)
  for row, size in enumerate(SIZES):
    assert np.isneginf(scores[row, size:]).all()
    if constrained:
      total = sum(np.exp(scores[row, named[row].index(reference)]) for reference in set(named[row]))
      np.testing.assert_allclose(total, 1.0, atol=1e-5)


@pytest.mark.parametrize("style", [STYLES["slot"], STYLES["sid"]], ids=["slot", "sid"])
def test_decoding_names_its_first_candidate_with_the_scored_probability(model, style):
  # The rollout is of the same automaton: the drawn reference's log-probabilities add up to its score.
  vocabulary, decoder, params = model
  tokens, mask, references = inputs(vocabulary, style)
  constraint = SlateConstraint(vocabulary, style)
  scores = np.asarray(make_score(decoder, vocabulary, style, constraint)(params, tokens, mask, references))
  opened = np.full((3, 6), vocabulary.pad_id, np.int32)
  for row, prompt in enumerate(PROMPTS):
    opened[row, : len(prompt) + 2] = [*prompt, vocabulary.special("think"), vocabulary.special("/think")]
  generate = make_generate(RolloutConfig.of(decoder, vocabulary, group=8, max_new_tokens=16, constraint=constraint))
  lengths = np.array([len(prompt) + 2 for prompt in PROMPTS])
  found = generate(
    params, opened, np.arange(6) < lengths[:, None], jax.random.key(0), Sampling.create(), references=jnp.asarray(references)
  )
  length, seen = references.shape[-1], 0
  for row in range(3):
    for completion, log_probs in zip(np.asarray(found.completions[row]), np.asarray(found.behaviour_logps[row]), strict=True):
      if completion[0] == vocabulary.special("answer"):
        slot = references[row].tolist().index(completion[1 : 1 + length].tolist())
        np.testing.assert_allclose(log_probs[1 : 1 + length].sum(), scores[row, slot], atol=1e-4)
        seen += 1
  assert seen > 3


def test_sorting_keeps_the_order_shown_where_scores_are_equal():
  scores = np.array([[-2.0, -1.0, -1.0, -np.inf], [-3.0, -1.0, -2.0, -0.5]], np.float32)
  shown = np.array([[2, 0, 1, 3], [3, 2, 1, 0]])
  np.testing.assert_array_equal(sort_by_scores(scores, shown), [[0, 1, 2, -1], [0, 2, 1, 3]])


def test_scores_that_are_nan_are_no_ranking():
  scores = np.array([[-2.0, np.nan, -1.0], [-3.0, -1.0, -2.0]], np.float32)
  np.testing.assert_array_equal(sort_by_scores(scores, np.array([[0, 1, 2]] * 2)), [[-1, -1, -1], [1, 2, 0]])


def test_slates_are_ranked_in_batches_each_at_its_place(model):
  vocabulary, decoder, params = model
  style, items = STYLES["sid"], tuple(Item(f"i{n}", "best", None, (), None, None) for n in range(5))
  context = PromptContext(Catalogue(items), CODES, vocabulary)
  random = np.random.default_rng(0)
  slates = [
    Slate("u", (f"i{n}",), tuple(f"i{c}" for c in random.permutation(5)[:size]), (1,) + (0,) * (size - 1)) for n, size in enumerate(SIZES)
  ]
  shown = [random.permutation(size) for size in SIZES]
  score, done = make_score(decoder, vocabulary, style), []
  ranked = rank_by_scores(score, params, slates, shown, context, style, batch_size=2, on_progress=done.append)
  assert done == [2, 3] and ranked.rankings.shape == (3, 5) and ranked.errors == [None] * 3
  for row, (slate, order) in enumerate(zip(slates, shown, strict=True)):
    alone = rank_by_scores(score, params, [slate], [order], context, style, batch_size=1).rankings[0]
    np.testing.assert_array_equal(ranked.rankings[row, : SIZES[row]], alone)
    assert sorted(alone) == list(range(SIZES[row])) and (ranked.rankings[row, SIZES[row] :] == -1).all()
    assert ranked.prompt_tokens[row] == len(render_prompt(slate, order, context, style).tokens)
  diverged = rank_by_scores(lambda *args: score(*args).at[1, 0].set(jnp.nan), params, slates, shown, context, style, batch_size=3)
  assert diverged.errors == [None, "not_finite", None] and (diverged.rankings[1] == -1).all()


def test_free_text_has_no_first_reference(model):
  with pytest.raises(ValueError, match="compact answers, not of json"):
    make_score(model[1], model[0], PromptStyle(answer="json"))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_slate_with_a_score_that_is_not_finite_has_no_answer(model, wrong):
  vocabulary, _, _ = model
  context = PromptContext(Catalogue(tuple(Item(f"i{n}", "best") for n in range(5))), CODES, vocabulary)
  slates = [Slate("u", ("i0",), ("i1", "i2", "i3")[:size], (1, 0, 0)[:size]) for size in (2, 3)]
  scores = np.array([[-1.0, -0.5, -np.inf], [-1.0, wrong, -2.0]], np.float32)
  ranked = rank_by_scores(lambda *_: scores, None, slates, [np.arange(2), np.arange(3)], context, STYLES["slot"], batch_size=2)
  assert ranked.errors == [None, "not_finite"] and ranked.rankings.tolist() == [[1, 0, -1], [-1, -1, -1]]
