"""The device's parser gives the host parser's verdicts, on answers that a fuzz has spoiled in every way it knows."""

import random
from collections import Counter

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.answers import VERDICTS, parse_answer, reference_tokens, render_answer
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rollout.parse import parse_compact, parse_completions
from gr2_jax.rollout.rerank import pad_shown

MOST, LIMIT, GROUP = 6, 44, 20  # candidates, tokens of a completion, completions of a prompt
CASES = {
  "slot": (3, PromptStyle()),
  "sid-1": (1, PromptStyle(reference="sid")),
  "sid-2": (2, PromptStyle(reference="sid")),
  "sid-3": (3, PromptStyle(reference="sid")),
  "sid-1-markers": (1, PromptStyle(reference="sid", sid_markers=True)),
  "slot-direct": (3, PromptStyle(direct=True)),
  "sid-3-markers": (3, PromptStyle(reference="sid", sid_markers=True)),
}


def make_vocabulary(levels):
  texts = ["shampoo then conditioner best"] * 30
  return Vocabulary.train(texts, text_pieces=400, num_levels=levels, codebook_size=4, num_candidates=MOST + 1)


def pad_references(named):
  out = np.full((len(named), MOST, len(named[0][0])), -1, np.int32)
  for row, tokens in enumerate(named):
    out[row, : len(tokens)] = tokens
  return out


def spoil(tokens, opening, references, strangers, draw):
  """A valid answer's tokens changed in 0 to 3 places: single tokens, whole references, frames, the end, or everything.

  `references` may stand in an answer, among them some that name no candidate; `strangers` are single tokens.
  """
  for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
    at, other = draw.randrange(len(tokens)), draw.randrange(len(tokens))
    token = draw.choice(strangers) if draw.random() < 0.9 else draw.randint(-3, max(strangers) + 200)
    reference, length = list(draw.choice(references)), len(references[0])
    start = tokens.index(opening) + 1 + length * draw.randrange(3) if opening in tokens else at
    match draw.randrange(10):
      case 0:
        tokens[at], tokens[other] = tokens[other], tokens[at]
      case 1:
        tokens = tokens[:at] + tokens[at + 1 :]
      case 2:
        tokens = tokens[:at] + [token] + tokens[at:]
      case 3:
        tokens[at] = token
      case 4:  # a reference left out
        tokens = tokens[:start] + tokens[start + length :]
      case 5:  # one put in once more, at a seam or anywhere
        tokens = tokens[:start] + reference + tokens[start:]
      case 6:  # one in the place of another
        tokens = tokens[:start] + reference + tokens[start + length :]
      case 7:
        tokens = tokens[:at]
      case 8:
        tokens = tokens[:at] + tokens[other:]
      case 9:
        tokens = [draw.choice(strangers) for _ in range(draw.randrange(1, LIMIT))]
    tokens = tokens or [token]
  return tokens[:LIMIT]


def fuzz(case, prompts, seed):
  """Counts of verdicts over prompts x GROUP completions, all of which both parsers must read alike."""
  levels, style = CASES[case]
  vocabulary, draw = make_vocabulary(levels), random.Random(seed)
  frames = [vocabulary.special(name) for name in ("think", "/think", "answer", "/answer", "eos", "pad", "user", "sid", "/sid")]
  strangers = [*frames, *vocabulary.candidate_tokens.tolist(), *vocabulary.sid_token_ids.ravel().tolist(), vocabulary.used_size, 5]
  thoughts = (None, [], vocabulary.encode("best"), [*vocabulary.encode("then best"), vocabulary.candidate_start, frames[-2], frames[-1]])
  counts = Counter()
  for _ in range(0, prompts, 200):
    shown, codes, named = [], [], []
    completions = np.full((200, GROUP, LIMIT), vocabulary.pad_id, np.int32)
    for p in range(200):
      size = draw.randint(1, MOST)
      shown.append(np.array(draw.sample(range(size), size)))
      codes.append(np.array([[draw.randrange(2) for _ in range(levels)] for _ in range(size)]))  # many share a SID
      named.append(reference_tokens(shown[p], vocabulary, style, codes[p]))
      every_code = np.array([[draw.randrange(4) for _ in range(levels)] for _ in range(MOST + 1)])
      references = named[p] + reference_tokens(range(MOST + 1), vocabulary, style, every_code)
      for g in range(GROUP):
        ranking = draw.sample(range(size), size)
        whole = render_answer(ranking, shown[p], draw.choice(thoughts), vocabulary, style, codes[p]).tokens
        row = spoil(whole, vocabulary.special("answer"), references, strangers, draw)
        completions[p, g, : len(row)] = row
    parsed = parse_compact(completions, pad_references(named), pad_shown(shown, MOST), vocabulary=vocabulary, style=style)
    rankings, verdicts, lengths = (np.asarray(x) for x in parsed)
    for p in range(200):
      size = len(shown[p])
      for g, row in enumerate(completions[p].tolist()):
        answer = parse_answer(row, shown[p], vocabulary, style, codes[p])
        expected = [*(answer.ranking or [-1] * size), *[-1] * (MOST - size)]
        found = (VERDICTS[verdicts[p, g]], lengths[p, g], rankings[p, g].tolist())
        assert found == (answer.error, answer.reasoning_length, expected), vocabulary.decode(row)
        counts[answer.error] += 1
  return counts


def check_mixture(counts):
  total = sum(counts.values())
  assert all(counts[verdict] > 0.005 * total for verdict in VERDICTS), counts  # the fuzz reaches every verdict


@pytest.mark.parametrize("case", CASES)
def test_device_and_host_agree(case):
  check_mixture(fuzz(case, 200, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_device_and_host_agree_on_a_million(case):
  check_mixture(fuzz(case, 8400, seed=2))


@pytest.mark.parametrize("reference", ["slot", "sid"])
def test_completions_shorter_than_an_answer(reference):
  style = PromptStyle(reference=reference)
  vocabulary = make_vocabulary(2)
  references = pad_references([reference_tokens(range(2), vocabulary, style, np.array([[0, 1], [1, 0]]))])
  for tokens in ([vocabulary.eos_id], [vocabulary.special("answer")], [vocabulary.special("think"), vocabulary.eos_id]):
    parsed = parse_compact(np.array([[tokens]]), references, pad_shown([np.arange(2)], MOST), vocabulary=vocabulary, style=style)
    expected = parse_answer(tokens, range(2), vocabulary, style, np.array([[0, 1], [1, 0]]))
    assert VERDICTS[parsed.codes[0, 0]] == expected.error and not (np.asarray(parsed.rankings) >= 0).any()


@pytest.mark.parametrize("answer", ["compact", "json"])
def test_both_answer_forms_give_the_same_arrays(answer):
  vocabulary, style = make_vocabulary(2), PromptStyle(answer=answer)
  catalogue = Catalogue(tuple(Item(f"i{n}", f"Toner {n}", "Velora", ("Care",), None, 1.0) for n in range(3)))
  context = PromptContext(catalogue, np.zeros((3, 2), int), vocabulary)
  slates = [Slate("u", ("i0",), candidates, (1,) + (0,) * (len(candidates) - 1)) for candidates in (("i0", "i1", "i2"), ("i2", "i1"))]
  shown = [np.array([2, 0, 1]), np.array([1, 0])]
  rows = [
    render_answer(ranking, order, vocabulary.encode("then best"), vocabulary, style).tokens
    for ranking, order in zip(([1, 2, 0], [0, 1]), shown, strict=True)
  ]
  completions = np.full((2, 2, 80), vocabulary.pad_id, np.int32)
  for p, row in enumerate(rows):
    completions[p, 0, : len(row)] = row
    completions[p, 1, : len(row) - 1] = row[:-1]
  references = np.full((2, MOST + 1, 1), -1, np.int32)  # as wide as the vocabulary allows
  for p, order in enumerate(shown):
    references[p, : len(order)] = reference_tokens(order, vocabulary, style, None)
  parsed = parse_completions(completions, references, pad_shown(shown, 3), slates, context, style)
  np.testing.assert_array_equal(parsed.rankings, [[[1, 2, 0], [-1] * 3], [[0, 1, -1], [-1] * 3]])
  np.testing.assert_array_equal(parsed.codes, [[0, VERDICTS.index("overlong")]] * 2)
  assert (np.asarray(parsed.reasoning_lengths)[:, 0] >= 2).all() and (np.asarray(parsed.reasoning_lengths)[:, 1] == 0).all()
