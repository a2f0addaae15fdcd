"""Split by time: whatever happens on the days of validation and test, what is learnt stays as it is, bit for bit."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from rich.console import Console
from small_runs import ROOT, edit_line, final_state, tiny_config, write_dataset

from experiments.flags import load_config
from experiments.stages import evidence, slates
from experiments.stages.tokenize import train_vocabulary
from gr2_jax.data.jsonl import read_slates, write_interactions
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import SPLITS, History, Slate
from gr2_jax.data.splits import SECONDS_PER_DAY, cut_history, first_days
from gr2_jax.errors import ConfigError
from gr2_jax.evidence.facts import FACTS, LM_SCORE
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features
from gr2_jax.runs import load, packed_midtraining
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import open_context
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

CTR = {"data__split": "time", "slates__source": "ctr", "slates__folds": 2, "slates__ctr__epochs": 1, "slates__per_user": 8}
GROUPS = ("seen_users_and_items", "unseen_users", "unseen_items")


def make_log(market):
  """The market's purchases, of which forty late users' are those of early ones as well; four are new at the end, and ten items too."""
  of, ids = market.histories, [item.id for item in market.catalogue.items]
  start = first_days(of)[0]
  log = []
  for joined in (*zip(of[:40], of[-44:-4], strict=True), *((history,) for history in (*of[40:-44], *of[-4:]))):
    events = sorted((time, item) for history in joined for item, time in zip(history.items, history.timestamps, strict=True))
    items = [ids[ids.index(item) + 10] if time < start and ids.index(item) < 10 else item for time, item in events]
    log.append(History(joined[0].user, tuple(items), tuple(time for time, _ in events)))
  return log


def shuffle(histories, start):
  """The same log, but for who took what from `start` on."""
  rng = np.random.default_rng(0)
  events = [(of.user, item, time) for of in histories for item, time in zip(of.items, of.timestamps, strict=True)]
  earlier, (users, items, times) = [e for e in events if e[2] < start], zip(*[e for e in events if e[2] >= start], strict=True)
  later = zip(rng.permutation(users).tolist(), rng.permutation(items).tolist(), times, strict=True)
  of_user = {history.user: [] for history in histories}
  for user, item, time in sorted([*earlier, *later], key=lambda event: event[2]):
    of_user[user].append((item, time))
  return [History(user, *(tuple(column) for column in zip(*of, strict=True))) for user, of in of_user.items() if of]


def write_log(folder, market, histories):
  """A folder of the market's items and this log."""
  (folder / "log").mkdir(parents=True)
  dataset = write_dataset(folder / "log", market)
  for split in SPLITS:
    (dataset / f"slates_{split}.jsonl").unlink()
  write_interactions(dataset / "interactions.jsonl", histories)
  return str(dataset)


def open_stage(run, stage):
  return open_context(run, stage, Progress(Console(quiet=True)), StopSignal())


@pytest.fixture(scope="module")
def runs(run_here, small_market, tmp_path_factory):
  """Of a log, and of the same shuffled from the first day of validation on: runs whose stages data and slates are done."""
  folder, log, found = tmp_path_factory.mktemp("time"), make_log(small_market), {}
  for name, of in (("log", log), ("shuffled", shuffle(log, first_days(log)[0]))):
    config = tiny_config(data__source=write_log(folder / name, small_market, of), **CTR)
    assert run_here(config, folder / name / "run", ["data"]) == 0
    found[name] = Run(folder / name / "run", config)
    found[name].path("slates").mkdir()
    slates.run(open_stage(found[name], slates.STAGE))
  return found


def read(run, split):
  return read_slates(run.path("slates", f"{split}.jsonl.gz"), None)


def facts_of(run, split):
  """All counts of a split's slates, with vectors that stand for those of the items' texts."""
  catalogue = load.load_catalogue(run)
  items = ItemArrays.of(catalogue, np.random.default_rng(0).normal(size=(len(catalogue), 4)))
  names = [name for name in FACTS if name != LM_SCORE]
  return slate_features(read(run, split), catalogue, LogCounts.fit(load.load_log(run, catalogue), catalogue), items, facts=names)


def priming_of(stage):
  """The knowledge in prompts of the stage's run."""
  config = tiny_config(**CTR, prompt__knowledge_priming=True)
  vocabulary = train_vocabulary(config, stage.catalogue, text_pieces=512, num_levels=1, codebook_size=8, num_candidates=10)
  codes = np.zeros((len(stage.catalogue), 1), int)
  return load.make_context(dataclasses.replace(stage.run, config=config), stage.catalogue, stage.log, codes, vocabulary, None).priming


def test_shuffling_what_happens_from_the_validation_on_changes_nothing_that_is_learnt(runs):
  log, shuffled = (open_stage(run, slates.STAGE) for run in runs.values())
  assert log.split.train == shuffled.split.train and log.split.validation != shuffled.split.validation
  assert packed_midtraining._histories(log) == packed_midtraining._histories(shuffled)
  assert len(read(runs["log"], "train")) > 20 and read(runs["log"], "train") == read(runs["shuffled"], "train")
  np.testing.assert_array_equal(facts_of(runs["log"], "train"), facts_of(runs["shuffled"], "train"))
  assert priming_of(log) == priming_of(shuffled) != ""
  assert log.log != shuffled.log and read(runs["log"], "test") != read(runs["shuffled"], "test")  # there was something to see


def test_counts_go_on_to_the_request_and_not_beyond(runs):
  stage = open_stage(runs["log"], slates.STAGE)
  counts = LogCounts.fit(stage.log, stage.catalogue).popularity
  events = [(time, item) for history in stage.log for item, time in zip(history.items, history.timestamps, strict=True)]
  new = {request.target for request in stage.split.test} - {item for history in stage.split.train for item in history.items}
  asked = [request for request in stage.split.test if request.target in new]
  found = [int(counts.count(stage.catalogue.rows[of.target], of.timestamp)) for of in asked]
  assert found == [sum(item == of.target and time < of.timestamp for time, item in events) for of in asked] and max(found) > 0


def test_unseen_users_and_items_are_counted_apart(runs):
  run = runs["log"]
  data, report = (json.loads(run.path(*names).read_text()) for names in (("data", "counts.json"), ("slates", "report.json")))
  split, counts = open_stage(run, slates.STAGE).split, data["split_by_time"]
  assert counts["training"] == {"users": len(split.train), "interactions": sum(len(history.items) for history in split.train)}
  first = {"validation": split.validation, "test": split.test}
  for name, requests in first.items():
    of, users = counts[name], {history.user for history in split.train}
    assert of["requests"] == len(requests) and of["unseen_users"] == sum(request.user not in users for request in requests) > 0
    assert 0 < of["seen_users_and_items"] < of["requests"] and of["unseen_items"] > 0
  asked = sum(counts[name]["requests"] + counts[name]["first_interactions"] for name in first)
  assert data["interactions"] == counts["training"]["interactions"] + asked
  for group in GROUPS:
    of = report["retrieved"][f"test, {group.replace('_', ' ')}"]
    assert of["requests"] == counts["test"][group] and of["retrieved"] <= of["requests"]
  assert report["slates"]["test"] == report["retrieved"]["test"]["retrieved"] > 0


def test_training_slates_of_beams_come_before_those_of_validation():
  made = [Slate("u", ("a",), ("b", "c"), (1, 0), timestamp=time) for time in (9, 1, 5, 7, 7, 3, 7)]
  stage = types.SimpleNamespace(
    config=tiny_config(data__split="time", slates__source="beam"), options=types.SimpleNamespace(validation_share=0.3), seed=0
  )
  train, validation = slates._divide(stage, made)
  assert [slate.timestamp for slate in train] == [1, 5, 3] and [slate.timestamp for slate in validation] == [9, 7, 7, 7]
  assert slates._divide(stage, []) == ([], [])
  stage.config = tiny_config(slates__source="beam")
  assert [len(part) for part in slates._divide(stage, made)] == [5, 2]


# What cannot be used.


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"timestamps": None},
      "needs the time of every interaction, and user 'user00002' has no timestamps",
    ),
    (None, "takes tenths of the days on which something happened, and the log has 1, of ten"),
  ],
)
def test_a_log_that_time_cannot_split_is_told_before_any_work(change, message, dataset, run_here, tmp_path, capsys):
  if change:
    edit_line(dataset / "interactions.jsonl", 3, change)
  else:
    day = [History(f"u{u}", ("item0000", "item0001"), (SECONDS_PER_DAY, SECONDS_PER_DAY + u)) for u in range(9)]
    write_interactions(dataset / "interactions.jsonl", day)
  assert run_here(tiny_config(data__source=str(dataset), **CTR), tmp_path / "run", ["data"]) == 1
  assert capsys.readouterr().err.startswith(f"ERROR: --config.data.split: 'time' {message}")
  assert not list((tmp_path / "run" / "data").iterdir())


def test_training_users_with_too_few_items_are_told_of_before_any_training(runs):
  stage = open_stage(runs["log"], slates.STAGE)
  assert slates.foresee(stage) == []
  short = dataclasses.replace(stage.split, train=tuple(cut_history(history, 2) for history in stage.split.train))
  (fault,) = slates.foresee(types.SimpleNamespace(config=stage.config, options=stage.options, catalogue=stage.catalogue, split=short))
  assert fault.startswith("--config.slates.source: 'ctr' makes training slates of users with 3 items or more before the validation's days")


def test_settings_that_do_not_go_with_a_split_by_time():
  with pytest.raises(ConfigError, match=r"--config\.data\.split: 'time' .* those of slates\.source 'log' come split already"):
    slates.check(tiny_config(data__split="time"))
  packed = {"answer__form": "scored", "midtrain__form": "packed", "midtrain__packed__folds": 2}
  evidence.check(tiny_config(**CTR, **packed))
  with pytest.raises(
    ConfigError, match=r"--config\.midtrain\.packed\.whole_log: True, .* as their targets all items of the log's last days"
  ):
    evidence.check(tiny_config(**CTR, **packed, midtrain__packed__whole_log=True))


# Whole runs.

STAGES = ("tokenize", "midtrain", "slates", "evidence", "traces", "sft", "rl", "direct")
TESTED = ("slates/test.jsonl.gz", "slates/report.json", "evidence/facts_test.npy", "midtrain/retrieval.json")  # of the test's days
CHOOSING = ("slates/validation.jsonl.gz", "evidence/facts_validation.npy", "evidence/teacher.npy", "evidence/trees.json")


def contents(run, stages, but):
  """What the stages left: the content of files, and the last state of every training."""
  found = {}
  for stage in stages:
    trainings = {path.parent for path in (run / stage).glob("*/*") if path.name.isdigit()}
    found |= {f"{stage}/{of.name}": final_state(run, stage, of.name) for of in trainings if not of.name.endswith("_training")}
    files = [path for path in (run / stage).rglob("*") if path.is_file() and trainings.isdisjoint(path.parents)]
    found |= {str(path.relative_to(run)): path.read_bytes() for path in files if path.name != "done.json"}
  return {name: of for name, of in found.items() if name not in (*but, "tokenize/checkpoints")}  # which is saved by the minute


@pytest.mark.slow
def test_a_run_learns_the_same_whatever_comes_later(run_here, tmp_path):
  market = make_market(MarketConfig(num_items=120, train_slates=300, validation_slates=20, test_slates=20), seed=0)
  log = make_log(market)
  validation_from, test_from = first_days(log)
  for name, of in (("log", log), ("test", shuffle(log, test_from)), ("validation", shuffle(log, validation_from))):
    config = load_config(f"{ROOT / 'configs' / 'amazon.py'}:beauty,time,tiny")
    config.data.source = write_log(tmp_path / name, market, of)
    stages = {"log": None, "test": ["data", *STAGES], "validation": ["data", *STAGES[:4]]}[name]
    assert run_here(config, tmp_path / name / "run", stages) == 0
  runs = {name: tmp_path / name / "run" for name in ("log", "test", "validation")}
  for name, stages, but in (("test", STAGES, TESTED), ("validation", STAGES[:4], (*TESTED, *CHOOSING))):
    one, two = (contents(run, stages, but) for run in (runs["log"], runs[name]))
    assert one.keys() == two.keys() >= {"midtrain/checkpoints", "midtrain/fold_1", "slates/train.jsonl.gz", "tokenize/rqvae.msgpack"}
    for key in one:
      jax.tree.map(np.testing.assert_array_equal, one[key], two[key])
    assert read(Run.open(runs["log"]), "test") != read(Run.open(runs[name]), "test")

  results = json.loads((runs["log"] / "evaluation" / "results.json").read_text())
  retrieval = json.loads((runs["log"] / "midtrain" / "retrieval.json").read_text())
  sizes = {group: of["n"] for group, of in results["subsets"].items()}
  assert sum(sizes[group] for group in ("seen_users_and_items", "unseen_users") if group in sizes) <= results["n"] <= sum(sizes.values())
  assert {*sizes} <= {*GROUPS} and all(f"masked, {group}" in retrieval for group in GROUPS)
  assert "last tenth of the days" in results["notes"][0] and "different_day" in results["segments"]
  assert "**unseen users**" in (runs["log"] / "evaluation" / "card.md").read_text()
