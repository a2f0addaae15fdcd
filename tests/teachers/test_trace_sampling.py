"""Targeted and rejection sampling with teachers whose replies are known, and traces on file."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.data import schema
from gr2_jax.language import prompts, vocabulary
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.teachers import sampling
from gr2_jax.teachers.sampling import Proposal

CATALOGUE = schema.Catalogue(tuple(schema.Item(f"i{n}", f"title {n}") for n in range(6)))
SLATES = [
  schema.Slate("u0", ("i5",), ("i0", "i1", "i2"), (1, 0, 0)),
  schema.Slate("u1", ("i5",), ("i0", "i1", "i2"), (0, 1, 2)),
  schema.Slate("u2", ("i5",), ("i0", "i1", "i2"), (0, 1, 1)),
]
SHOWN = [np.array([0, 1, 2])] * 3
STYLE = PromptStyle()


@pytest.fixture(scope="module")
def context():
  vocab = vocabulary.Vocabulary.train(vocabulary.corpus_texts(CATALOGUE), text_pieces=600, num_levels=2, codebook_size=8, num_candidates=5)
  return prompts.PromptContext(CATALOGUE, np.array([[n, n] for n in range(6)]), vocab)


def rejection(teacher, context, **options):
  return sampling.rejection_traces(SLATES, SHOWN, teacher, context, STYLE, seed=3, **options)


def test_a_slate_is_asked_until_its_best_label_comes_first(context):
  asked = []

  def teacher(requests):
    asked.append([request.key for request in requests])
    # Puts candidate `attempt` first: slate 0 is right at once, slate 2 with candidate 1, slate 1 (best label: candidate 2) last.
    return [Proposal([], tuple(np.roll(range(3), -request.key[-1]).tolist())) for request in requests]

  traces = rejection(teacher, context)
  assert [(t.slate_index, t.attempt, t.accepted, t.reason) for t in traces] == [
    (0, 0, True, "top1_is_positive"),
    (1, 0, False, "top1_is_not_positive"),
    (1, 1, False, "top1_is_not_positive"),
    (1, 2, True, "top1_is_positive"),
    (2, 0, False, "top1_is_not_positive"),
    (2, 1, True, "top1_is_positive"),
  ]
  assert asked[:3] == [[(3, 0, 0), (3, 1, 0), (3, 2, 0)], [(3, 1, 1), (3, 2, 1)], [(3, 1, 2)]]
  assert all(trace.temperature == 0.8 for trace in traces)


def test_attempts_are_bounded_and_acceptance_is_by_upstream_rank(context):
  always_upstream = lambda requests: [Proposal([], (0, 1, 2)) for _ in requests]
  traces = rejection(always_upstream, context, attempts=4)
  assert len(traces) == 1 + 4 + 4
  asked, accepted = sampling.acceptance_by_rank(SLATES, traces)
  # Best-labelled candidates stand at upstream ranks 0, 2 and 1; only the first slate was accepted.
  assert asked.tolist() == [1, 1, 1] and accepted.tolist() == [1, 0, 0]
  with pytest.raises(ValueError, match="attempts"):
    rejection(always_upstream, context, attempts=0)


def test_targeted_shows_the_best_label_and_refuses_a_teacher_that_ignores_it(context):
  targets = []

  def obedient(requests):
    targets.extend(request.target for request in requests)
    return [Proposal([], (request.target, *(c for c in range(3) if c != request.target))) for request in requests]

  traces = sampling.targeted_traces(SLATES, SHOWN, obedient, context, STYLE, seed=0)
  assert targets == [0, 2, 1] and [t.reason for t in traces] == ["target_shown"] * 3
  stubborn = sampling.targeted_traces(SLATES, SHOWN, lambda rs: [Proposal([], (0, 1, 2)) for _ in rs], context, STYLE, seed=0)
  assert [t.accepted for t in stubborn] == [True, False, False]


def test_invalid_answers_and_false_quotes_are_refused_with_their_kind(context):
  vocab = context.vocabulary
  slate, shown = SLATES[:1], SHOWN[:1]
  known, stranger = vocab.sid_tokens([5, 5]), vocab.sid_tokens([4, 4])  # i5 is in the history, i4 nowhere in the slate
  cases = [
    (Proposal([], None, "overlong"), "overlong"),
    (Proposal([], (0, 1)), "missing"),
    (Proposal([vocab.special("assistant")], (0, 1, 2)), "wrong_format"),
    (Proposal([vocab.candidate_start + 3], (0, 1, 2)), "unknown_item"),
    (Proposal(stranger, (0, 1, 2)), "unknown_item"),
    (Proposal(known[:1], (0, 1, 2)), "unknown_item"),
    (Proposal([*vocab.encode("best"), *known, vocab.candidate_start + 2], (0, 1, 2)), "top1_is_positive"),
  ]
  for proposal, reason in cases:
    traces = sampling.rejection_traces(slate, shown, lambda _, p=proposal: [p], context, STYLE, seed=0, attempts=1)
    assert [(t.reason, t.accepted) for t in traces] == [(reason, reason == "top1_is_positive")]


def test_traces_come_back_from_their_file(tmp_path):
  traces = [
    sampling.Trace(0, (1, 0), (5, 6), (0, 1), 0.8, 0, True, "top1_is_positive"),
    sampling.Trace(1, (0, 1), (), None, 0.8, 7, False, "overlong"),
  ]
  path = tmp_path / "deep" / "traces.jsonl"
  sampling.write_traces(path, traces)
  assert sampling.read_traces(path) == traces and [p.name for p in path.parent.iterdir()] == ["traces.jsonl"]
  path.write_text(path.read_text() + '{"slate_index": 1}\n')
  with pytest.raises(schema.DataError, match=r"traces\.jsonl:3: not a trace"):
    sampling.read_traces(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "traces.jsonl"
  trace = sampling.Trace(0, (0, 1), (), (0, 1), 0.8, 0, True, "top1_is_positive")
  sampling.write_traces(path, [trace])
  with pytest.raises(TypeError):
    sampling.write_traces(path, [trace, dataclasses.replace(trace, reason=b"not text")])
  assert sampling.read_traces(path) == [trace]
