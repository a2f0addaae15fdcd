"""The copy automaton: semantic IDs stand whole and come from the prompt, and sampling and losses see the same legal tokens."""

import functools

import jax
import numpy as np
import pytest

from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.rollout.copy_constraint import CopyConstraint
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling

LIMIT = 9
# The items of two histories; two of the first share codes, and the second has one alone.
HISTORIES = ([(0, 1, 2), (0, 1, 3), (2, 2, 2)], [(3, 0, 1)])


@pytest.fixture(scope="module")
def model():
  vocabulary = Vocabulary.train(["shampoo then conditioner best"] * 30, text_pieces=400, num_levels=3, codebook_size=4, num_candidates=5)
  decoder = Decoder(preset("test", vocabulary.size))
  # Large weights: a confident model that would never copy by itself.
  return vocabulary, decoder, jax.tree.map(lambda x: 3 * x, init_params(decoder, jax.random.key(0)))


@pytest.fixture(scope="module")
def prompts(model):
  vocabulary, _, _ = model
  rows = [[vocabulary.special("bos"), *(t for codes in history for t in (3, *vocabulary.sid_tokens(codes), 4))] for history in HISTORIES]
  tokens = np.full((2, max(map(len, rows))), vocabulary.pad_id, np.int32)
  for row, of in enumerate(rows):
    tokens[row, : len(of)] = of
  return tokens, (np.arange(tokens.shape[1]) < np.array([[len(of)] for of in rows])).astype(np.int32)


@pytest.fixture(scope="module")
def constraint(model):
  return CopyConstraint(model[0], max_items=4)


@pytest.fixture(scope="module")
def sample(model, prompts, constraint):
  """`sample(temperature)`: 400 completions of each prompt."""
  vocabulary, decoder, params = model
  generate = make_generate(RolloutConfig.of(decoder, vocabulary, group=400, max_new_tokens=LIMIT, constraint=constraint))
  references = jax.jit(constraint.references)(prompts[0])
  return lambda temperature: generate(params, *prompts, jax.random.key(1), Sampling.create(temperature), references=references)


def test_references_are_the_semantic_ids_of_the_prompt(model, prompts, constraint):
  references = np.asarray(jax.jit(constraint.references)(prompts[0]))
  for row, history in enumerate(HISTORIES):
    assert references[row, : len(history)].tolist() == [model[0].sid_tokens(codes) for codes in history]
    assert (references[row, len(history) :] == -1).all()


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 50.0])
def test_what_is_written_ends_in_time_and_copies_whole_semantic_ids(model, sample, temperature):
  vocabulary = model[0]
  rollout = sample(temperature)
  assert np.asarray(rollout.finished).all()
  copied, texts = set(), 0
  for p, history in enumerate(HISTORIES):
    known = [vocabulary.sid_tokens(codes) for codes in history]
    for completion in np.asarray(rollout.completions[p]).tolist():
      written = completion[: completion.index(vocabulary.eos_id)]
      assert written
      while written:
        if written[0] < vocabulary.new_token_start:
          assert written[0] not in vocabulary.forbidden_ids
          written, texts = written[1:], texts + 1
        else:
          assert written[:3] in known
          copied.add((p, known.index(written[:3])))
          written = written[3:]
  if temperature == 50.0:
    assert texts > 1000 and copied == {(0, 0), (0, 1), (0, 2), (1, 0)}  # every item may be copied, and text is as free


def test_losses_see_the_distribution_that_was_sampled(model, constraint, sample):
  _, decoder, params = model
  rollout = sample(1.0)
  texts = rollout.prompts, rollout.prompt_mask, rollout.completions, rollout.completion_mask
  log_probs, entropy = jax.jit(functools.partial(completion_log_probs, decoder, constraint=constraint))(params, *texts)
  mask = np.asarray(rollout.completion_mask)
  np.testing.assert_allclose(np.asarray(log_probs)[mask], np.asarray(rollout.behaviour_logps)[mask], atol=2e-4)
  np.testing.assert_allclose(np.asarray(entropy)[mask], np.asarray(rollout.entropy)[mask], atol=2e-3)


def test_a_semantic_id_that_no_longer_fits_is_not_begun(model, prompts, constraint):
  vocabulary = model[0]
  references = np.asarray(jax.jit(constraint.references)(prompts[0][:1]))
  completions = np.full((1, LIMIT), 3)

  @jax.jit
  def logits(place):
    return constraint.apply(np.zeros((1, vocabulary.size)), constraint.next_state(completions, place[None], references))

  for place in range(LIMIT):
    legal = np.asarray(logits(place))[0] > -1
    assert legal[references[0, 0, 0]] == (place + 3 < LIMIT)
    assert legal[vocabulary.eos_id] == (place > 0)
    assert legal[3] == (place < LIMIT - 1)
