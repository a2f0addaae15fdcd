"""Rounds of groups become a batch of fixed size: what is kept, refilled, bounded, masked, weighed and counted."""

import itertools

import numpy as np
import pytest

from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.rewards.judge import Judgement
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards
from gr2_jax.rl.collect import Round, collect_groups
from gr2_jax.rl.stop import NoSignalError, SilenceCounter
from gr2_jax.rollout.generate import Rollout
from gr2_jax.training.metric import Metric


def _judge(rewards, raw=None, **choices):
  """A judge of given rewards `[P, G]`, negative where the answer is invalid."""
  rewards = np.array(rewards, np.float32)
  raw = rewards if raw is None else np.array(raw, np.float32)
  return Judgement(rewards, rewards >= 0, *group_advantages(rewards, raw, **choices), {})


def _rollout(number=0, group=2, finished=True):
  """Two groups; the prompt token is the group's running number."""
  zeros = np.zeros((2, group, 3), np.float32)
  return Rollout(
    prompts=np.full((2, 4), 2 * number) + np.arange(2)[:, None],
    prompt_mask=np.ones((2, 4), bool),
    completions=zeros.astype(np.int32),
    completion_mask=zeros == 0,
    behaviour_logps=zeros,
    entropy=zeros,
    finished=np.broadcast_to(finished, (2, group)),
    row_steps=np.full(2, 4.0 * group, np.float32),
  )


def _scripted(rewards_by_round, *, finished=True, weights=None, **choices):
  """Rounds of 2 prompts x 2 answers whose rewards are given."""
  expected = itertools.count()

  def play_round(number):
    assert number == next(expected), "rounds are numbered as they are played"
    return Round(_rollout(number, finished=finished), _judge(rewards_by_round[number], **choices), weights)

  return play_round


def test_groups_are_refilled_until_the_batch_is_full():
  # Kept: groups 1, 2, 4, 5; group 0 is all equal, group 3 all invalid. Three are wanted, so 5 is surplus, and round 4 is never asked for.
  rounds = [[[1, 1], [0, 1]], [[1, 0], [-1, -1]], [[0, 1], [1, 0]], [[0, 1], [0, 1]]]
  batch, metrics = collect_groups(_scripted(rounds), num_prompts=3, max_rounds=4)
  assert batch.prompts[:, 0].tolist() == [1, 2, 4] and batch.keep.all()
  np.testing.assert_allclose(batch.advantages, [[-1, 1], [1, -1], [-1, 1]], rtol=1e-5)
  assert metrics["rounds"].sum == 3 and metrics["surplus_fraction"].sum == 1
  assert metrics["kept_fraction"].mean() == pytest.approx(4 / 6)
  assert metrics["all_equal_fraction"].mean() == pytest.approx(1 / 6)
  assert metrics["all_invalid_fraction"].mean() == pytest.approx(1 / 6)
  assert metrics["filled_fraction"].mean() == 1


def test_a_batch_that_is_full_enough_begins_no_further_round():
  rounds = [[[1, 1], [0, 1]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]]  # 3 of 4 places are filled after two rounds
  batch, metrics = collect_groups(_scripted(rounds), num_prompts=4, max_rounds=3, min_filled=0.75)
  assert metrics["rounds"].sum == 2 and metrics["filled_fraction"].mean() == 0.75
  assert batch.keep.tolist() == [True, True, True, False]
  assert collect_groups(_scripted(rounds), num_prompts=4, max_rounds=3, min_filled=0.8)[1]["rounds"].sum == 3


def test_rounds_are_bounded_and_leftover_places_have_weight_zero():
  batch, metrics = collect_groups(_scripted([[[1, 1], [0, 1]]] * 5), num_prompts=4, max_rounds=2)
  assert batch.prompts[:, 0].tolist() == [1, 3, 0, 2]
  assert batch.keep.tolist() == [True, True, False, False]
  assert metrics["filled_fraction"].mean() == 0.5 and metrics["rounds"].sum == 2


def test_too_few_groups_for_the_batch_never_count_one_twice():
  batch, _ = collect_groups(_scripted([[[0, 1], [1, 0]]]), num_prompts=5, max_rounds=1)
  assert batch.keep.tolist() == [True, True, False, False, False]
  assert batch.prompts.shape == (5, 4)


def test_all_processes_go_on_until_the_last_one_is_full():
  # This process has its share after the first round, the other one only after the third.
  others, seen = iter([0, 1, 2]), []

  def gather(kept):
    seen.append(int(kept))
    return np.array([kept, next(others)])

  rounds = [[[0, 1], [1, 0]], [[1, 1], [0, 1]], [[0, 1], [1, 1]], [[0, 1], [0, 1]]]
  batch, metrics = collect_groups(_scripted(rounds), num_prompts=2, max_rounds=4, gather=gather)
  assert seen == [2, 3, 4]
  assert batch.prompts[:, 0].tolist() == [0, 1] and batch.keep.all()
  assert metrics["rounds"].sum == 3 and metrics["surplus_fraction"].sum == 2


def test_without_dynamic_sampling_every_group_counts_once():
  # Group 0 is all equal in what is optimised, group 1 in the raw reward only: as no group is judged, its shaping is learnt.
  script = _scripted([[[1, 1], [0, 1]]] * 3, raw=[[1, 0], [0, 0]], min_raw_std=0.0)
  batch, metrics = collect_groups(script, num_prompts=2, max_rounds=3)
  assert batch.keep.all() and metrics["rounds"].sum == 1 and metrics["kept_fraction"].mean() == 1
  np.testing.assert_allclose(batch.advantages, [[0, 0], [-1, 1]], rtol=1e-5)
  assert metrics["all_equal_fraction"].mean() == 0.5


def test_advantages_without_the_standard_deviation():
  batch, _ = collect_groups(_scripted([[[0, 1], [1, 0]]], divide_by="none"), num_prompts=2, max_rounds=1)
  np.testing.assert_allclose(batch.advantages, [[-0.5, 0.5], [0.5, -0.5]], rtol=1e-6)


def test_truncated_completions_are_masked_when_told_to():
  finished = np.array([[True, False], [False, False]])
  for mask_truncated, expected in ((False, np.ones((2, 2))), (True, finished)):
    script = _scripted([[[0, 1], [1, 0]]], finished=finished)
    batch, metrics = collect_groups(script, num_prompts=2, max_rounds=1, mask_truncated=mask_truncated)
    np.testing.assert_array_equal(batch.completion_mask, np.repeat(expected[..., None], 3, axis=-1))
    # Counted, and at their length, in both cases; their rewards stay in the group's mean.
    assert metrics["truncated_rate"].mean() == 0.75 and metrics["completion_length"].mean() == 3
    np.testing.assert_allclose(batch.advantages, [[-1, 1], [1, -1]], rtol=1e-5)


@pytest.mark.parametrize(
  ("labels", "rank", "group"),
  [
    ([0, 0, 0], "promotion", 2),
    ([0, 0, 0], "auc", 2),
    ([0, 0, 0], "ndcg", 2),
    # Under the promotion v1's target is the first of equal positives, whose place still matters.
    ([1, 1, 1], "auc", 2),
    ([2, 2, 2], "ndcg", 2),
    ([0, 1, 0], "auc", 1),
  ],
)
@pytest.mark.parametrize("condition", ["naive", "v1", "relative"])
def test_slates_whose_order_cannot_matter_and_groups_of_one_are_counted_as_equal(labels, rank, group, condition):
  rankings = np.array([[[0, 1, 2], [2, 1, 0]]] * 2)[:, :group]
  rewards = compute_rewards(RewardConfig(rank, condition), rankings, np.array([labels] * 2), np.array([[0, 1, 2]] * 2))
  judgement = Judgement(rewards.total, rewards.format > 0, rewards.advantages, rewards.keep, {})
  batch, metrics = collect_groups(lambda _: Round(_rollout(group=group), judgement), num_prompts=2, max_rounds=2)
  assert not batch.keep.any() and not batch.advantages.any()
  assert metrics["all_equal_fraction"].mean() == 1 and metrics["filled_fraction"].mean() == 0 and metrics["rounds"].sum == 2


def test_a_batch_of_answers_that_never_end_is_counted():
  batch, metrics = collect_groups(
    _scripted([[[-1, -1], [-1, -1]]] * 2, finished=np.zeros((2, 2), bool)), num_prompts=2, max_rounds=2, mask_truncated=True
  )
  assert not batch.keep.any() and not batch.completion_mask.any() and not batch.advantages.any()
  assert metrics["truncated_rate"].mean() == 1 and metrics["all_invalid_fraction"].mean() == 1 and metrics["filled_fraction"].mean() == 0


def test_rounds_of_different_prompt_lengths_are_refused():
  rollout = _rollout()

  def play_round(number):
    shape = (2, 4 + number)
    return Round(rollout.replace(prompts=np.zeros(shape), prompt_mask=np.ones(shape)), _judge([[1, 1], [0, 0]]))

  with pytest.raises(ValueError, match=r"round 2 has prompts \(2, 5\).*the first had \(2, 4\)"):
    collect_groups(play_round, num_prompts=2, max_rounds=2)


def test_a_reward_that_is_not_finite_stops_with_its_place():
  with pytest.raises(ValueError, match=r"rewards\[1, 0\] is nan"):
    collect_groups(_scripted([[[0, 1], [np.nan, 1]]]), num_prompts=2, max_rounds=1)


def test_slates_keep_their_weights_and_weigh_one_without():
  rounds = [[[1, 1], [0, 1]], [[1, 0], [0, 1]]]  # the second group of the first round, then both of the second
  batch, _ = collect_groups(_scripted(rounds, weights=np.float32([0.5, 3])), num_prompts=3, max_rounds=2)
  assert batch.prompts[:, 0].tolist() == [1, 2, 3] and batch.weights.tolist() == [3, 0.5, 3]
  batch, _ = collect_groups(_scripted(rounds), num_prompts=3, max_rounds=2)
  assert batch.weights.tolist() == [1, 1, 1]


def test_monitors_of_all_rounds_add_up():
  def play_round(number):
    rewards = [[[1, 1], [0, 1]], [[1, 0], [0, 1]]][number]
    return Round(_rollout(number), _judge(rewards)._replace(monitors={"tau": Metric(float(number), 2.0)}))

  _, metrics = collect_groups(play_round, num_prompts=3, max_rounds=2)
  assert (metrics["tau"].sum, metrics["tau"].count) == (1.0, 4.0)


def test_groups_are_learnt_from_as_they_were_rolled_out():
  batch, metrics = collect_groups(_scripted([[[0, 1], [1, 0]]]), num_prompts=2, max_rounds=1)
  rollout = _rollout(0)
  for name in ("prompts", "prompt_mask", "completions", "completion_mask", "behaviour_logps"):
    np.testing.assert_array_equal(getattr(batch, name), getattr(rollout, name))
  # Two prompts, two answers of three tokens, of which the first is drawn outside the steps; 16 rows x steps.
  assert metrics["occupancy"].mean() == 8 / 16


def test_the_counts_of_steps_are_those_that_stop_a_run():
  def step(rewards, finished=True):
    return collect_groups(_scripted([rewards], finished=finished), num_prompts=2, max_rounds=1)[1]

  counter = SilenceCounter(2)
  nothing = step([[-1, -1], [1, 1]], finished=np.array([[False, False], [True, True]]))
  for metrics in (nothing, step([[0, 1], [1, 1]]), nothing):  # the second one has a signal, so that two never follow each other
    counter.add(metrics)
  with pytest.raises(NoSignalError, match=r"2 steps in a row.* of 4 groups 2 had no valid answer and 2 .*equal reward; 50% of the answers"):
    counter.add(nothing)
