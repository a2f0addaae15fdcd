"""Scored policies served: the facts of the run's tables, evaluation's orders, the same alone and in a batch; what they cannot is told."""

import dataclasses
import gzip
import json
import shutil

import jax
import numpy as np
import pytest
from fastapi.testclient import TestClient

from gr2_jax.data.schema import DataError, History, Item
from gr2_jax.evidence.facts import LM_SCORE
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.load import load_catalogue, load_log, load_slates
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.serving.measure import find_settings, measure
from gr2_jax.serving.ranked_file import rank_lines
from gr2_jax.serving.request import Request, RequestError
from gr2_jax.serving.reranker import Options, Reranker, find_served, open_policies
from gr2_jax.serving.scored import SlateFacts
from gr2_jax.serving.server import make_app
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.progress import Progress


@pytest.fixture(scope="module")
def run(scored_run):
  return Run.open(scored_run)


@pytest.fixture(scope="module")
def slates(run):
  return load_slates(run, load_catalogue(run), "test")


@pytest.fixture(scope="module")
def load(run):
  return open_policies(run)


@pytest.fixture(scope="module")
def scorer(run, load):
  return load(find_policy(run, "rl"))


@pytest.fixture(scope="module")
def reranker(scorer):
  return Reranker.of_policy(scorer, options=Options(batch_size=8))


def to_request(slate, **fields):
  given = {"upstream_scores": slate.upstream_scores, "timestamp": slate.timestamp, "last_time": slate.last_time}
  return Request(slate.history, slate.candidates, **given | fields)


@pytest.mark.parametrize("size", [1, 5])
def test_a_request_has_the_facts_of_the_table(run, scorer, slates, size):
  table, names = FactTables(run).read("test"), scorer.facts.codes.names
  lm = names.index(LM_SCORE)
  assert (table.std(axis=(0, 1))[[lm, names.index("gap"), names.index("upstream_score")]] > 0).all()
  for start in range(0, 20, size):
    facts = scorer.facts.pack(slates[start : start + size], size, scorer.facts.longest).facts
    expected = table[start : start + size]
    np.testing.assert_allclose(facts[..., lm], expected[..., lm], atol=1e-5)
    np.testing.assert_array_equal(np.delete(facts, lm, axis=2), np.delete(expected, lm, axis=2))


def test_orders_are_those_of_evaluation(run, load, slates):
  for stage, name in (("sft", "sft"), ("rl", "policy"), ("direct", "direct")):
    answers = [json.loads(line) for line in run.path("evaluation", f"answers_{name}.jsonl").read_text().splitlines()]
    rankings = Reranker.of_policy(load(find_policy(run, stage))).rank_batch(list(map(to_request, slates)))
    assert [list(ranking.order) for ranking in rankings] == [answer["order"] for answer in answers]
    assert not any(ranking.fallback for ranking in rankings)
    assert any(ranking.order != slate.candidates for ranking, slate in zip(rankings, slates, strict=True))


def test_a_policy_that_reasons_says_what_it_wrote_before_its_scores(run, reranker, load, slates):
  lines = (run.path("evaluation", "answers_policy.jsonl").read_text(encoding="utf-8")).splitlines()
  ranking = reranker.rank_batch([to_request(slates[0])])[0]
  assert ranking.reasoning and json.loads(lines[0])["completion"].startswith(ranking.reasoning)
  direct = Reranker.of_policy(load(find_served(run, "direct")))
  assert direct.rank_batch([to_request(slates[0])])[0].reasoning is None


def test_scores_are_log_probabilities_of_being_first(reranker, slates):
  ranking = reranker.rank_batch([to_request(slates[0])])[0]
  assert list(ranking.scores) == sorted(ranking.scores, reverse=True) and np.exp(ranking.scores).sum() == pytest.approx(1, abs=1e-5)


def test_an_answer_does_not_depend_on_its_batch_or_presentation(reranker, slates):
  requests = [Request(s.history[i % 3 :], s.candidates[: 1 + i % 8], timestamp=s.timestamp) for i, s in enumerate(slates)]
  requests += [Request((), slates[0].candidates), Request(("delisted", slates[0].history[0]), slates[0].candidates)]
  for request, ranking in zip(requests, reranker.rank_batch(requests), strict=True):
    alone = reranker.rank_batch([request])[0]
    shuffled = reranker.rank(request.history, request.candidates, timestamp=request.timestamp, presentations=3)
    assert alone.order == shuffled.order == ranking.order and not ranking.fallback
    np.testing.assert_allclose(alone.scores, ranking.scores, atol=1e-5)
    np.testing.assert_allclose(shuffled.scores, alone.scores)
  assert ranking.unknown_history == 1


def test_upstream_scores_and_times_are_read(reranker, slates):
  def rank(**fields):
    return dict(zip(*(lambda r: (r.order, r.scores))(reranker.rank_batch([to_request(slates[0], **fields)])[0]), strict=True))

  whole = rank()
  for name in ("upstream_scores", "last_time", "timestamp"):
    without = rank(**{name: None})
    assert sorted(without) == sorted(whole) and without != whole


def test_a_long_history_loses_what_no_fact_reads(run, scorer, reranker, slates):
  most, candidates = scorer.facts.history, slates[0].candidates
  assert most == max(run.config.evidence.max_history, run.config.midtrain.max_history)
  past = [item.id for item in scorer.facts.catalogue.items[: most + 5]]
  long, short = reranker.rank(past, candidates), reranker.rank(past[5:], candidates)
  assert (long.dropped_history, short.dropped_history) == (5, 0) and (long.order, long.scores) == (short.order, short.scores)


def test_events_that_came_since_are_counted_as_if_the_log_had_held_them(run, load, slates):
  facts = SlateFacts(run, make_mesh(devices=jax.devices()[:1]))  # of its own, since they grow
  scorer = dataclasses.replace(load(find_policy(run, "rl")), facts=facts)
  reranker, log = Reranker.of_policy(scorer), load_log(run, facts.catalogue)
  slate = dataclasses.replace(slates[0], timestamp=max(log[0].timestamps) + 10**8)
  before = facts.pack([slate], 1, facts.longest).facts
  user, (first, second) = log[0].user, slate.candidates[:2]
  last = log[0].timestamps[-1]
  events = [{"user": user, "item": first, "timestamp": last}, {"user": "someone new", "item": second, "timestamp": last + 5}]
  with TestClient(make_app(reranker)) as client:
    answer = client.post("/events", content="\n".join(map(json.dumps, events)))
    assert (answer.status_code, answer.json()) == (200, {"added": 2})
    assert "gr2_events_total 2.0" in client.get("/metrics").text
  assert reranker.add_events([{"user": "someone new", "item": first, "timestamp": last + 6}]) == 1
  longer = [History(user, (*log[0].items, first), (*log[0].timestamps, last)), *log[1:]]
  longer.append(History("someone new", (second, first), (last + 5, last + 6)))
  names = facts.codes.names
  lm_scores = FactTables(run).read("test", [LM_SCORE])[:1, :, 0]
  table = slate_features(
    [slate],
    facts.catalogue,
    LogCounts.fit(longer, facts.catalogue),
    facts.items.arrays,
    facts=names,
    max_history=run.config.evidence.max_history,
    lm_scores=lm_scores,
  )
  served, lm = facts.pack([slate], 1, facts.longest).facts, names.index(LM_SCORE)
  np.testing.assert_array_equal(np.delete(served, lm, axis=2), np.delete(table, lm, axis=2))
  assert (served != before).any() and not reranker.rank_batch([to_request(slate)])[0].fallback


BAD_EVENTS = {
  "an unknown item": ({"user": "u", "item": "nowhere", "timestamp": 5}, 422, "unknown_item", "event 2: unknown item 'nowhere'"),
  "milliseconds": (
    {"user": "u", "item": "item0001", "timestamp": 10**12},
    422,
    "bad_request",
    "event 2: timestamp: 1000000000000",
  ),
  "no time": ({"user": "u", "item": "item0001"}, 422, "bad_request", "event 2: timestamp: missing"),
  "a time before the last": ({"user": "v", "item": "item0001", "timestamp": 4}, 422, "bad_request", "event 2: timestamp: 4 of user 'v'"),
  "another field": ({"user": "u", "item": "item0001", "timestamp": 5, "price": 1}, 422, "bad_request", "event 2: price: no field"),
  "no object": ([], 400, "broken_json", "event 2: "),
}


@pytest.mark.parametrize("event, status, kind, told", BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_events_that_cannot_be_counted_are_named_and_none_is(reranker, scorer, event, status, kind, told):
  lines = [{"user": "v", "item": "item0001", "timestamp": 5}, event]
  counts = scorer.facts.log.counts
  with TestClient(make_app(reranker)) as client:
    answer = client.post("/events", content="\n".join(map(json.dumps, lines)))
  error = answer.json()["error"]
  assert (answer.status_code, error["kind"]) == (status, kind) and error["message"].startswith(told)
  assert scorer.facts.log.counts is counts


def test_a_new_item_has_the_facts_of_what_is_known_of_it(run, scorer, reranker, slates):
  facts, slate = scorer.facts, slates[0]
  names = facts.codes.names
  known = facts.catalogue.items[facts.catalogue.rows[slate.candidates[1]]]
  twin = dataclasses.replace(known, id="twin")
  past = dataclasses.replace(facts.catalogue.items[facts.catalogue.rows[slate.history[-1]]], id="past twin")
  request = Request((*slate.history[:-1], past), (slate.candidates[0], twin, *slate.candidates[2:]), timestamp=slate.timestamp)
  [row], fields = reranker.policy.read(request, "reason", 1)
  assert (fields["assigned"], fields["guessed"], fields["unknown_history"]) == (("twin", "past twin"), {}, 0)
  whole = facts.pack([dataclasses.replace(slate, upstream_scores=None, last_time=None)], 1, facts.longest)
  found = facts.pack([row.slate], 1, facts.longest, [row.items])
  np.testing.assert_allclose(found.content, whole.content, atol=1e-5)
  np.testing.assert_allclose(found.past_content, whole.past_content, atol=1e-5)
  of_item = {"leaf_share", "leaf_is_last", "broad_is_last", "brand_share", "text_last", "text_max", "price_difference", LM_SCORE}
  of_item |= {"words_shared", "rare_words_shared", "leaf_next_count"} & set(names)
  of_log = ("popularity", "next_count_last", "far_count", "popularity_365")
  for name in names:
    mine, others = found.facts[0, 1, names.index(name)], whole.facts[0, :, names.index(name)]
    if name in of_item:
      np.testing.assert_allclose(found.facts[0, :, names.index(name)], others, atol=1e-4, err_msg=name)
    assert mine == 0 or name not in of_log
    assert mine == -1 or name not in ("age", "since_last_taken")
  # The other candidates lose what was counted of the last item, and nothing else.
  untouched = names.index("popularity")
  np.testing.assert_array_equal(found.facts[0, 2:, untouched], whole.facts[0, 2:, untouched])


def test_new_items_are_ranked_alone_and_beside_others_alike(reranker, slates):
  text, wordless = Item("new", "rose toner", "Velora", ("Skin Care", "Toner")), Item("wordless", "💅🏽")
  requests = [to_request(slates[0]), Request((*slates[0].history, text), (*slates[0].candidates[:3], wordless))]
  requests.append(Request((), (Item("new", "mint soap"), *slates[1].candidates[:2])))  # another item of the same id
  together = reranker.rank_batch(requests)
  assert (together[1].assigned, dict(together[1].guessed)) == (("wordless", "new"), {"wordless": "centre"})
  assert together[0].assigned == () and together[2].assigned == ("new",)
  for request, ranking in zip(requests, together, strict=True):
    alone = reranker.rank_batch([request])[0]
    assert alone.order == ranking.order and not ranking.fallback and ranking.unknown_history == 0
    np.testing.assert_allclose(alone.scores, ranking.scores, atol=1e-5)


def test_new_items_that_cannot_be_placed_are_errors_as_candidates_alone(reranker, scorer, slates, monkeypatch):
  def place(items):
    raise DataError("no tokenizer")

  monkeypatch.setattr(scorer.facts.places, "place", place)
  new = Item("new", "rose toner")
  assert reranker.rank((*slates[0].history, new), slates[0].candidates).unknown_history == 1
  with pytest.raises(RequestError, match="no tokenizer") as error:
    reranker.rank((), (*slates[0].candidates[:2], new))
  assert error.value.kind == "unknown_item"


BAD = {
  "unknown candidate": (("item0001", "nowhere"), {}, "unknown_item"),
  "too many candidates": (tuple(f"item{n:04}" for n in range(9)), {}, "too_many"),
  "repeated": (("item0001", "item0001"), {}, "repeated_candidate"),
  "mode that it has not": (("item0001", "item0002"), {"mode": "direct"}, "unknown_mode"),
  "scores of other candidates": (("item0001", "item0002"), {"upstream_scores": (1.0,)}, "bad_request"),
}


@pytest.mark.parametrize("candidates, fields, kind", BAD.values(), ids=BAD)
def test_bad_requests_are_named(reranker, candidates, fields, kind):
  with pytest.raises(RequestError) as error:
    reranker.rank((), candidates, **fields)
  assert error.value.kind == kind


def test_numbers_that_are_not_finite_give_the_upstream_order(reranker, slates, monkeypatch):
  monkeypatch.setattr(reranker.engine, "_params", jax.tree.map(lambda x: np.nan * x, reranker.engine._params))
  ranking = reranker.rank_batch([to_request(slates[0])])[0]
  assert ranking.fallback and ranking.order == slates[0].candidates and ranking.reason == "invalid answer: not_finite"


def test_after_warming_up_nothing_is_compiled(scorer, slates, compilations):
  reranker = Reranker.of_policy(scorer, options=Options(batch_size=3, max_candidates=9))
  steps = []

  def on_progress(done, total):
    steps.append((done, total, reranker.is_ready))
    if reranker.is_ready:
      before = len(compilations)
      assert not reranker.rank_batch(list(map(to_request, slates[:2])))[0].fallback and len(compilations) == before

  reranker.warm_up(on_progress)
  assert steps == [(1, 2, False), (2, 2, True)] and compilations
  del compilations[:]
  reranker.rank((), [item.id for item in scorer.facts.catalogue.items[:9]])
  reranker.rank_batch(list(map(to_request, slates)))
  assert not compilations


def test_lines_of_a_slates_file_and_http_answer_alike(run, reranker, slates):
  lines = gzip.decompress(run.path("slates", "test.jsonl.gz").read_bytes()).splitlines()[:5]
  reranker.warm_up()
  with TestClient(make_app(reranker)) as client:
    bodies = [client.post("/rank", content=line).json() for line in lines]
    assert client.get("/metrics").status_code == 200
  records = list(rank_lines(reranker, list(enumerate(lines, 1))))
  expected = [list(ranking.order) for ranking in reranker.rank_batch(list(map(to_request, slates[:5])))]
  assert [body["order"] for body in bodies] == [list(record["order"]) for record in records] == expected


def test_settings_that_cannot_work_are_refused(scored_run, scorer):
  for options, told in (
    (Options(mode="direct"), "mode"),
    (Options(prefix_cache=64), "prefix_cache"),
    (Options(prompt_lengths=(64,)), "prompt"),
  ):
    with pytest.raises(DataError, match=told):
      Reranker.of_policy(scorer, options=options, force=True)
  with pytest.raises(RunError, match="compressor: 'rules'"):
    Reranker.load(scored_run, compressor="rules")


@pytest.mark.parametrize("lost", ["evidence/codes.npz", "evidence/facts_test.npy", "midtrain/checkpoints", "rl/checkpoints"])
def test_what_is_gone_is_told_before_anything_is_loaded(scored_run, tmp_path, lost):
  copied = tmp_path / "run"
  shutil.copytree(scored_run, copied)
  (copied / lost).rename(tmp_path / "lost")
  with pytest.raises(RunError, match=f"{lost} is gone"):
    find_served(Run.open(copied), "rl")


def test_latency_is_measured_in_the_one_mode(scored_run, run, tmp_path):
  copied = tmp_path / "run"
  shutil.copytree(scored_run, copied)
  named = {"stages": None, "compressors": None, "modes": None, "presentations": [1, 3]}
  settings = find_settings(run, None, None, strict=True, modes=None, presentations=[1, 3], force=True)
  assert [(s.policy.stage, *s[1:]) for s in settings] == [("rl", "full", "reason", 1), ("direct", "full", "score", 1)]
  path = measure(str(copied), [], **named, requests=2, batch_size=8, progress=Progress())
  points = json.loads(path.read_text())["points"]
  results = json.loads((copied / "evaluation" / "results.json").read_text())
  assert points[0]["recall@1"] == pytest.approx(results["orders"]["policy"]["recall@1"]) and points[0]["trained"]
