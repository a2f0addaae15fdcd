"""How a policy is asked: single answers from numbers that are not finite are invalid, a policy of no others is named."""

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.evaluation.policy_answers import MeanOfOrders, ask_policy
from gr2_jax.language.prompts import present
from gr2_jax.rollout.rerank import RankedSlates, render_prompts
from gr2_jax.rollout.scoring import make_score
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.runs.load import style_of_mode


@pytest.fixture
def stage():
  return types.SimpleNamespace(
    options=types.SimpleNamespace(shuffles=0),
    run=types.SimpleNamespace(main=False),
    seed=0,
    task=lambda *_: contextlib.nullcontext(),
    on_progress=lambda task: lambda done: None,
  )


def ask(stage, rankings, errors):
  nothing = np.zeros(len(errors), np.int32)
  ranked = RankedSlates(np.array(rankings), errors, [[]] * len(errors), nothing, nothing, nothing)
  slates = [Slate("u", ("a",), ("b", "c"), (0, 1))] * len(errors)
  return ask_policy(stage, "sft_direct", None, lambda *_: ranked, slates)["sft_direct"]


def test_an_answer_whose_numbers_are_not_finite_is_invalid(stage):
  answers = ask(stage, [[0, 1], [-1, -1]], [None, "not_finite"]).answers["upstream"]
  assert answers.errors == [None, "not_finite"] and answers.rankings.tolist() == [[0, 1], [-1, -1]]


def test_a_policy_none_of_whose_numbers_is_finite_is_named(stage):
  with pytest.raises(DataError, match=r"^sft_direct: "):
    ask(stage, [[-1, -1]] * 2, ["not_finite"] * 2)


@pytest.fixture(scope="module")
def writer(make_reranker):
  """(what a stage gives that a policy's prompts need, its decoder, its parameters, slates); it may reason."""
  policy = make_reranker().policy
  items = [item.id for item in policy.context.catalogue.items]
  slates = [Slate("u", tuple(items[n : n + 2]), tuple(items[n + 3 : n + 7 - n % 2]), (1, *(0,) * (3 - n % 2))) for n in range(5)]
  stage = types.SimpleNamespace(
    style=policy.style,
    prompts=policy.context,
    vocabulary=policy.context.vocabulary,
    constraint=lambda style: SlateConstraint(policy.context.vocabulary, style),
    options=types.SimpleNamespace(batch_size=2),
    run=types.SimpleNamespace(config=types.SimpleNamespace(decoding=types.SimpleNamespace(max_new_tokens=20))),
  )
  return stage, policy.engine._decoder, policy.engine._params, slates


def in_order(stage, slates, seed, thought=None):
  """A presentation of all slates, and answers behind a `thought` (tokens), of which only the beginning is read."""
  shown = [present(len(slate.candidates), "upstream" if seed is None else "shuffled", (seed or 0, n, 0)) for n, slate in enumerate(slates)]
  special = stage.vocabulary.special
  completions = [[special("think"), *thought, special("/think"), special("answer"), 5] if thought else [] for _ in slates]
  counts = np.full(len(slates), 3, np.int32)
  return shown, RankedSlates(None, [None] * len(slates), completions, counts, counts, counts)


def test_the_mean_over_orders_is_that_of_one_pass_scores(writer):
  stage, decoder, params, slates = writer
  orders = [in_order(stage, slates, seed) for seed in (None, 3, 4)]
  found = MeanOfOrders(stage, decoder, "score", slates).sort(params, orders)
  style = style_of_mode(stage.style, "score")
  score = make_score(decoder, stage.vocabulary, style, stage.constraint(style))
  rankings = found.answers["upstream"].rankings
  several = 0
  for row, slate in enumerate(slates):
    of_orders = []
    for shown, _ in orders:
      prompt = render_prompts([slate], [shown[row]], stage.prompts, style)
      by_slot = np.asarray(score(params, prompt.tokens, prompt.mask, prompt.references))[0, : len(slate.candidates)]
      of_orders.append(by_slot[np.argsort(shown[row])])
    assert np.isfinite(of_orders).all()
    expected = np.argsort(-np.mean(of_orders, axis=0), kind="stable").tolist()
    assert rankings[row].tolist() == expected + [-1] * (4 - len(expected))
    several += len({tuple(np.argsort(-of)) for of in of_orders}) > 1
  assert several and found.cost == {"prompt_tokens": 9, "completion_tokens": 9} and found.answers["upstream"].errors == [None] * 5


def test_what_was_reasoned_in_an_order_is_read_and_one_without_an_answer_left_out(writer):
  stage, decoder, params, slates = writer
  mean = MeanOfOrders(stage, decoder, "reason", slates)
  thoughtful, other = in_order(stage, slates, 3, [9, 8]), in_order(stage, slates, None, [30, 31, 32])
  alone = mean.sort(params, [thoughtful]).answers["upstream"].rankings
  assert (alone != mean.sort(params, [in_order(stage, slates, 3, [30, 31, 32])]).answers["upstream"].rankings).any()
  cut = other[0], dataclasses.replace(other[1], completions=[[7, 7, 7]] * 5, errors=["overlong"] * 5)
  np.testing.assert_array_equal(mean.sort(params, [thoughtful, cut]).answers["upstream"].rankings, alone)
  nothing = mean.sort(params, [cut]).answers["upstream"]
  assert nothing.errors == ["overlong"] * 5 and (nothing.rankings == -1).all()
