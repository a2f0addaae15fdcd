"""The slate automaton: sampled answers always parse, and sampling and losses see the same legal tokens."""

import functools

import jax
import numpy as np
import pytest

from gr2_jax.language.answers import direct_answer_length, parse_answer, reference_tokens, render_answer
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.layout import pack
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.slate_constraint import SlateConstraint

LIMIT = 16


SIZES = (5, 3, 4)
# Candidates 0 and 2 share their first code, 1 and 3 all of them.
CODES = np.array([[0, 1], [2, 2], [0, 3], [2, 2], [1, 0]])
STYLES = {"slot": PromptStyle(), "sid": PromptStyle(reference="sid")}


@pytest.fixture(scope="module")
def model():
  vocabulary = Vocabulary.train(["shampoo then conditioner best"] * 30, text_pieces=400, num_levels=2, codebook_size=4, num_candidates=5)
  decoder = Decoder(preset("test", vocabulary.size))
  # Large weights: a confident model that would never form an answer by itself.
  return vocabulary, decoder, jax.tree.map(lambda x: 3 * x, init_params(decoder, jax.random.key(0)))


@pytest.fixture(scope="module")
def constrained(model):
  """`constrained(style, limit)`: (the constraint, the program that answers by it)."""
  vocabulary, decoder, _ = model

  @functools.cache
  def make(style, limit):
    constraint = SlateConstraint(vocabulary, style)
    return constraint, make_generate(RolloutConfig.of(decoder, vocabulary, group=4, max_new_tokens=limit, constraint=constraint))

  return make


def sample(model, constrained, style, temperature, limit=LIMIT):
  vocabulary, _, params = model
  generate = constrained(style, limit)[1]
  bos = vocabulary.special("bos")
  prompts = np.array([[bos, 3, 4, 5], [bos, 5, 0, 0], [bos, 3, 6, 0]], np.int32)
  named = [reference_tokens(range(size), vocabulary, style, CODES) for size in SIZES]
  references = np.full((3, 5, len(named[0][0])), -1, np.int32)
  for row, tokens in enumerate(named):
    references[row, : len(tokens)] = tokens
  return generate(params, prompts, prompts > 0, jax.random.key(1), Sampling.create(temperature), references=references)


@pytest.mark.parametrize("reference", STYLES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_every_answer_is_a_full_permutation(model, constrained, temperature, reference):
  rollout = sample(model, constrained, STYLES[reference], temperature)
  assert np.asarray(rollout.finished).all()
  rankings = set()
  for p, size in enumerate(SIZES):
    for completion in np.asarray(rollout.completions[p]):
      answer = parse_answer(completion, range(size), model[0], STYLES[reference], CODES[:size])
      assert answer.error is None
      rankings.add(answer.ranking)
  if temperature == 50.0:
    assert len(rankings) > 6  # the mask does not decide the order


def test_direct_answers_fit_their_length_exactly(model, constrained):
  style = PromptStyle(reference="sid", direct=True)
  rollout = sample(model, constrained, style, 50.0, limit=direct_answer_length(max(SIZES), model[0], style))
  assert np.asarray(rollout.finished).all()
  for p, size in enumerate(SIZES):
    for completion in np.asarray(rollout.completions[p]):
      assert completion[0] == model[0].special("answer")
      assert parse_answer(completion, range(size), model[0], style, CODES[:size]).error is None


@pytest.mark.parametrize("reference", ["sid", pytest.param("slot", marks=pytest.mark.slow)])
def test_losses_see_the_distribution_that_was_sampled(model, constrained, reference):
  _, decoder, params = model
  rollout = sample(model, constrained, STYLES[reference], 1.0)
  constraint, _ = constrained(STYLES[reference], LIMIT)
  again = jax.jit(functools.partial(completion_log_probs, decoder), static_argnames="constraint")
  real = np.asarray(rollout.completion_mask) > 0
  texts = rollout.prompts, rollout.prompt_mask, rollout.completions, rollout.completion_mask
  packed = jax.jit(pack, static_argnums=1)
  layout = next(layout for rows in range(1, 5) for layout, fits in [packed(rollout.completion_mask, rows)] if fits)
  assert not real.all()
  for rows in (None, layout):
    log_probs, entropy = again(params, *texts, constraint=constraint, layout=rows)
    np.testing.assert_allclose(np.asarray(log_probs)[real], np.asarray(rollout.behaviour_logps)[real], atol=1e-4)
    np.testing.assert_allclose(np.asarray(entropy)[real], np.asarray(rollout.entropy)[real], atol=1e-4)
  free, _ = again(params, *texts)
  assert np.abs(np.asarray(free) - np.asarray(log_probs))[real].max() > 1  # without the mask they are others


def legal_names(model, style, tokens, completion, segments):
  vocabulary = model[0]
  constraint = SlateConstraint(vocabulary, style)

  @jax.jit
  def logits(*row):
    state = jax.tree.map(lambda x: x[0], constraint.replay(*row))
    return constraint.apply(np.zeros((len(tokens), vocabulary.size)), state)

  legal = np.asarray(logits(*(np.array([x]) for x in (tokens, completion, segments)))) == 0
  assert legal[np.arange(len(tokens)), tokens].all()  # what was written was legal
  return legal, [[vocabulary.surface(t) for t in np.flatnonzero(row)] for row in legal]


def test_states_of_a_packed_row_by_hand(model):
  vocabulary, style = model[0], STYLES["slot"]
  answer = render_answer((1, 0), (0, 1), vocabulary.encode("best"), vocabulary, style)
  direct = render_answer((0, 1, 2), (0, 1, 2), None, vocabulary, style)
  # The prompt itself names frames, as the full instructions do: they must not move the automaton.
  prompt = [vocabulary.special("bos"), vocabulary.special("answer"), *vocabulary.candidate_tokens[:2]]
  tokens = prompt + answer.tokens + prompt + direct.tokens
  completion = [False] * 4 + [True] * len(answer.tokens) + [False] * 4 + [True] * len(direct.tokens)
  segments = [1] * (4 + len(answer.tokens)) + [2] * (4 + len(direct.tokens))
  legal, names = legal_names(model, style, tokens, completion, segments)
  assert legal[~np.asarray(completion)].all()
  assert names[4] == ["<think>", "<answer>"]
  assert names[8 + len(answer.tokens) :] == [
    ["<think>", "<answer>"],
    ["<A>", "<B>", "<C>"],
    ["<B>", "<C>"],
    ["<C>"],
    ["</answer>"],
    ["<eos>"],
  ]


def test_semantic_ids_are_spelled_along_the_remaining_candidates(model):
  vocabulary, style = model[0], STYLES["sid"]
  answer = render_answer((2, 1, 0), (0, 1, 2), None, vocabulary, style, CODES[:3])
  _, names = legal_names(model, style, answer.tokens, [True] * len(answer.tokens), [1] * len(answer.tokens))
  assert names == [
    ["<think>", "<answer>"],
    ["<s_a_0>", "<s_a_2>"],
    ["<s_b_1>", "<s_b_3>"],  # both that begin with 0
    ["<s_a_0>", "<s_a_2>"],
    ["<s_b_2>"],
    ["<s_a_0>"],
    ["<s_b_1>"],
    ["</answer>"],
    ["<eos>"],
  ]


def test_only_compact_answers_have_an_automaton(model):
  with pytest.raises(ValueError, match="compact"):
    SlateConstraint(model[0], PromptStyle(answer="json"))
