"""The suites `rollout` and `rl_step` on shapes that take seconds: alone, and where they are installed against their peers."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import peers, rl_step, rollout, scored
from experiments.benchmarks.timing import Timing, compare_lines
from gr2_jax.models.transformer import init_params

SMALL = rollout.Contract(prompts=2, group=4, prompt_length=6, completion_length=3)


def test_lines_compare_medians_with_ours():
  first = {"gr2_jax": Timing(9.0, 8.0), "hf": Timing(4.0, 3.0)}
  ours, theirs = compare_lines("short", first, {"gr2_jax": Timing(0.5, 0.25), "hf": Timing(2.0, 2.0)}, rounds=5)
  assert ours["times_ours"] == 1 and theirs["times_ours"] == 4 and theirs["times_our_processor"] == 8
  assert theirs | {"case": "short", "peer": "hf", "rounds": 5, "first_call_s": 4.0, "median_s": 2.0} == theirs


def test_without_peers_a_suite_measures_ours_alone(monkeypatch):
  calls = []
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  monkeypatch.setattr(rl_step, "make_step", lambda contract: lambda: calls.append(contract))
  for suite in (rollout, rl_step):
    (line,) = suite.compare("small", SMALL, rounds=2)
    assert (line["case"], line["peer"], line["rounds"], line["times_ours"]) == ("small", "gr2_jax", 2, 1.0)
  assert calls == [SMALL] * 3  # the first call, apart, and two rounds


@pytest.mark.slow
def test_refill_is_compared_with_all_at_once():
  case = rollout.Refill(prompts=6, group=2, prompt_length=4, max_new_tokens=12, mean_length=4, settings=((None, None), (2, 1)))
  at_once, refilled = rollout.compare_refill("small", case, rounds=1)
  assert at_once["peer"] == "gr2_jax" and refilled["peer"] == "2 lanes of 1" and at_once["times_ours"] == 1
  assert 0 < at_once["occupancy"] < refilled["occupancy"] <= 1


@pytest.mark.slow
def test_a_step_trains_on_completions_of_full_length():
  step = rl_step.make_step(SMALL)
  first = np.array(step().params["embedding"])
  second = step()
  assert second.step == 2 and not np.array_equal(first, second.params["embedding"])


def test_our_weights_give_hf_the_same_log_probabilities():
  pytest.importorskip("transformers")
  params = jax.tree.map(lambda x: 3 * x, init_params(rollout.DECODER, jax.random.key(1)))
  prompts, sample = rollout.make_prompts(SMALL), rollout.make_sampler(SMALL)
  found = sample(params, prompts, jax.random.key(2))
  expected = peers.hf_log_probs(peers.to_hf_qwen3(rollout.DECODER.config, params), prompts, np.asarray(found.completions))
  np.testing.assert_allclose(found.behaviour_logps, expected, atol=1e-4)


def test_both_suites_agree_with_their_peers():
  pytest.importorskip("trl")
  for suite in (rollout, rl_step):
    assert {line["peer"] for line in suite.compare("small", SMALL, rounds=1)} > {"gr2_jax"}


def test_forms_of_answer_are_compared_by_the_ranking(monkeypatch):
  monkeypatch.setattr(scored, "make_step", lambda contract: lambda: None)
  machine, written, ours = scored.run(SMALL, slates=2, group=4, rounds=1)
  assert set(machine) == {"machine"} and (written["rankings"], ours["rankings"]) == (8, 8)
  assert ours["times_scored"] == 1 and written["times_scored"] < 1  # a step that does nothing


def test_a_scored_step_trains_on():
  step = scored.make_scored_step(slates=2, group=4)
  first = np.array(step().params["head"])
  second = step()
  assert second.step == 2 and not np.array_equal(first, second.params["head"])
