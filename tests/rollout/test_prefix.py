"""A prompt computed on top of its cached beginning is the whole prompt; one-pass scores against plain forwards, with and without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import prefill
from gr2_jax.rollout.scoring import score_candidates

VOCABULARY, OPENING = 30, [27, 28, 29]
DECODER = Decoder(preset("test", VOCABULARY))
PROMPTS = ([3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14])
CUT = (2, 1, 4)  # the last has nothing behind its beginning


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: 3 * x, init_params(DECODER, jax.random.key(0)))


run_prefill = jax.jit(functools.partial(prefill, DECODER))
run_scores = jax.jit(functools.partial(score_candidates, DECODER, opening=OPENING))


@jax.jit
def log_probs_of(params, tokens):
  """Of what follows each token of one padded row, by a plain causal forward: what comes later can't matter."""
  positions = jnp.arange(tokens.shape[0])[None]
  hidden, _ = DECODER.apply({"params": params}, tokens[None], positions, jnp.ones_like(positions))
  return jax.nn.log_softmax(DECODER.apply({"params": params}, hidden, method="logits")[0])


def pad(rows, length):
  tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
  for place, row in enumerate(rows):
    tokens[place, : len(row)], mask[place, : len(row)] = row, 1
  return tokens, mask


def beginning(params, length=6):
  return run_prefill(params, *pad([prompt[:cut] for prompt, cut in zip(PROMPTS, CUT, strict=True)], length))[1]


def rest(length=4):
  return pad([prompt[cut:] for prompt, cut in zip(PROMPTS, CUT, strict=True)], length)


def test_what_follows_a_cached_beginning_is_computed_as_in_the_whole(params):
  expected, whole, lengths = run_prefill(params, *pad(PROMPTS, 7))
  hidden, prefix, found = run_prefill(params, *rest(), beginning(params))
  np.testing.assert_array_equal(found, lengths)
  np.testing.assert_allclose(hidden[:2], expected[:2], atol=1e-5)  # without a token of its own a row has no last hidden state
  for row in range(3):
    for ours, theirs in ((prefix.k, whole.k), (prefix.v, whole.v)):
      np.testing.assert_allclose(ours[:, row][:, prefix.mask[row]], theirs[:, row][:, whole.mask[row]], atol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_scores_are_log_probabilities_of_whole_references(params, length, cached):
  references = np.random.default_rng(0).integers(3, 27, (3, 4, length)).astype(np.int32)
  references[1, 2:] = -1
  prompts = rest() if cached else pad(PROMPTS, 7)
  prefix = beginning(params) if cached else None
  scores = np.asarray(run_scores(params, *prompts, references, prefix))
  assert np.isneginf(scores[1, 2:]).all()
  for row, prompt in enumerate(PROMPTS):
    for slot in range(2 if row == 1 else 4):
      sequence = [*prompt, *OPENING, *references[row, slot]]
      log_probs = log_probs_of(params, pad([sequence], 11)[0][0])
      places = np.arange(len(sequence) - length - 1, len(sequence) - 1)
      expected = log_probs[places, references[row, slot]].sum()
      np.testing.assert_allclose(scores[row, slot], expected, atol=1e-4)
