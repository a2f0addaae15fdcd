"""No upstream ranker has seen the targets of the training slates that it makes, and no model of packed items those of the slates to which
it gives `lm_score`: here of two orders side by side."""

import json

import numpy as np
import pytest
from small_runs import tiny_config

from experiments.stages import evidence
from experiments.stages import slates as slates_stage
from experiments.stages.midtrain import STAGE
from gr2_jax.data.jsonl import read_interactions, read_slates
from gr2_jax.data.schema import SPLITS
from gr2_jax.errors import UserError
from gr2_jax.evaluation import retrieval_rows
from gr2_jax.evaluation.retrieval_rows import measure_retrieval
from gr2_jax.models.sasrec import SasrecConfig
from gr2_jax.reports.retrieval import render_retrieval_table
from gr2_jax.rollout.catalogue_scores import make_dense_scores, make_packed_beam_scores
from gr2_jax.runs import packed_midtraining
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import open_context
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

FOLDS = 2
CONFIG = {
  "answer__form": "scored",
  "slates__source": "sasrec",
  "slates__also": "ctr",
  "slates__folds": 3,
  "slates__ctr__epochs": 2,
  "slates__sasrec__epochs": 2,
  "slates__sasrec__width": 16,
  "slates__sasrec__layers": 1,
  "midtrain__form": "packed",
  "midtrain__packed__folds": FOLDS,
  "midtrain__packed__evaluate_every": 1,
  "midtrain__packed__whole_log": False,
  "midtrain__steps": 2,
  "midtrain__eval_users": 4,
  "tokenize__training__epochs": 5,
}


@pytest.fixture(scope="module")
def recorded(run_here, tmp_path_factory):
  """(run, histories given to each training by its name, rows that each stepped on, slates scored by each model's name).

  Of `rankers`, by (name, number of the fit), what each was fitted on and the slates that it made.
  """
  histories, stepped, scored, rankers = {}, {}, {}, {}
  fit, best_of = slates_stage._fit, slates_stage._best_of
  train, make_batches, load = packed_midtraining._train, packed_midtraining._make_batches, packed_midtraining.load_packed_scores

  def recording_train(stage, of, name):
    histories[name] = of
    return train(stage, of, name)

  def recording_batches(stage, rows, seed):
    stepped[list(histories)[-1]] = [row.tolist() for row in rows]
    return make_batches(stage, rows, seed)

  def recording_load(run, catalogue, mesh, name="checkpoints"):
    scores = load(run, catalogue, mesh, name)

    def recorded(slates):
      scored.setdefault(name, []).extend(slates)
      return scores(slates)

    return recorded

  def recording_fit(stage, name, of, fit_number, users):
    scores = fit(stage, name, of, fit_number, users)
    rankers[name, fit_number] = {"fitted": of, "slates": [], "scores": scores}
    return scores

  def recording_best_of(stage, name, scores, requests):
    found = best_of(stage, name, scores, requests)
    next(of for of in rankers.values() if of["scores"] is scores)["slates"] += found.slates
    return found

  directory = tmp_path_factory.mktemp("out_of_fold") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(packed_midtraining, "_train", recording_train)
    patch.setattr(packed_midtraining, "_make_batches", recording_batches)
    patch.setattr(slates_stage, "_fit", recording_fit)
    patch.setattr(slates_stage, "_best_of", recording_best_of)
    for module in (packed_midtraining, evidence):
      patch.setattr(module, "load_packed_scores", recording_load)
    assert run_here(tiny_config(**CONFIG), directory, ["data", "tokenize", "midtrain", "slates", "evidence"]) == 0
  return Run.open(directory), histories, stepped, scored, rankers


@pytest.fixture(scope="module")
def slates(recorded):
  return {split: read_slates(recorded[0].path("slates", f"{split}.jsonl.gz"), None) for split in SPLITS}


def places(log, slates):
  """(user, place in the user's whole history) of each slate's target, found by what came before it."""
  found = []
  for slate in slates:
    items, (target,) = log[slate.user], slate.targets
    ends = [end for end in range(1, len(items)) if items[end] == target and items[max(0, end - len(slate.history)) : end] == slate.history]
    assert ends, "a target follows its slate's history in the log"
    found.append((slate.user, ends))
  return found


def test_the_target_of_no_slate_is_in_what_its_upstream_ranker_was_fitted_on(recorded, slates):
  run, rankers = recorded[0], recorded[-1]
  log = {history.user: history.items for history in read_interactions(run.path("data", "interactions.jsonl.gz"), None)}
  assert set(rankers) == {("sasrec", 0), ("sasrec", 1), ("sasrec", 2), ("sasrec", 3), ("ctr", 0), ("ctr", 1), ("ctr", 2)}
  for (_, number), of in rankers.items():
    fitted = {history.user: history.items for history in of["fitted"]}
    for user, ends in places(log, of["slates"]):
      assert (user not in fitted) == (number < 3), "of training slates the whole user is unknown"
      assert min(ends) >= len(fitted.get(user, ()))


def test_training_slates_are_of_both_orders_and_all_others_of_the_strong_one(recorded, slates):
  run, rankers = recorded[0], recorded[-1]
  made = {name: [slate for number in range(3) for slate in rankers[name, number]["slates"]] for name in ("sasrec", "ctr")}
  assert made["sasrec"] and made["ctr"]
  assert list(slates["train"]) == made["sasrec"] + made["ctr"]
  assert [*slates["validation"], *slates["test"]] == rankers["sasrec", 3]["slates"]
  report = json.loads(run.path("slates", "report.json").read_text())
  assert report["retrieved"]["train"]["retrieved"] == len(made["sasrec"]) == sum(report["train_upstream_rank"]["sasrec"])
  assert report["retrieved"]["train by ctr"]["retrieved"] == len(made["ctr"]) == sum(report["train_upstream_rank"]["ctr"])
  assert report["retrieved"]["train by ctr"]["requests"] == report["retrieved"]["train"]["requests"]
  assert report["retrieval"]["masked"]["n"] == report["retrieved"]["test"]["requests"]


def test_the_target_of_no_slate_is_in_what_scored_it(recorded, slates):
  run, histories, _, scored, _ = recorded
  log = {history.user: history.items for history in read_interactions(run.path("data", "interactions.jsonl.gz"), None)}
  assert set(histories) == set(scored) == {"fold_1", "fold_2", "checkpoints"}
  for name, of in scored.items():
    trained = {history.user: history.items for history in histories[name]}
    for user, ends in places(log, of):
      # What is learnt of a user is the first part of the history: the target stands behind it.
      assert trained.get(user, ()) == log[user][: len(trained.get(user, ()))] and min(ends) >= len(trained.get(user, ()))


def test_a_training_slate_s_user_is_unknown_to_what_scored_it_and_known_to_the_others(recorded, slates):
  _, histories, _, scored, _ = recorded
  users = {name: {history.user for history in of} for name, of in histories.items()}
  of_training = [slate for name in ("fold_1", "fold_2") for slate in scored[name]]
  assert sorted(of_training, key=repr) == sorted(slates["train"], key=repr) and all(scored.values())
  for name, other in (("fold_1", "fold_2"), ("fold_2", "fold_1")):
    asked = {slate.user for slate in scored[name]}
    assert asked.isdisjoint(users[name]) and asked <= users[other] and asked <= users["checkpoints"]
  assert users["fold_1"] | users["fold_2"] == users["checkpoints"] and users["fold_1"].isdisjoint(users["fold_2"])


def test_validation_and_test_slates_are_scored_by_the_model_of_all_users(recorded, slates):
  run, histories, _, scored, _ = recorded
  assert scored["checkpoints"] == [*slates["validation"], *slates["test"]]
  log = {history.user: history.items for history in read_interactions(run.path("data", "interactions.jsonl.gz"), None)}
  for history in histories["checkpoints"]:
    items = log[history.user]
    assert history.items == (items[:-2] if len(items) > 2 else items)


def test_held_out_users_are_stepped_on_by_no_update(recorded):
  run, histories, stepped, _, _ = recorded
  stage = open_context(run, STAGE, None, None)
  held_out = packed_midtraining.held_out_users(stage)
  rows = [
    list(stage.catalogue.to_rows(history.items))
    for history in histories["checkpoints"]
    if len(history.items) > 1 and history.user not in held_out
  ]
  assert held_out and sorted(stepped["checkpoints"]) == sorted(rows)


def test_the_fact_is_there_finite_and_each_slate_s_own(recorded, slates):
  tables = FactTables(recorded[0])
  assert "lm_score" in tables.names and "lm_score" in tables.codes.names
  for split, of in slates.items():
    column = tables.read(split, ("lm_score",))[..., 0]
    real = np.arange(column.shape[1]) < np.array([[len(slate.candidates)] for slate in of])
    assert np.isfinite(column[real]).all() and column[real].std() > 0


def test_the_best_step_of_each_training_is_kept_apart(recorded):
  folder = recorded[0].path("midtrain")
  for name in ("fold_1", "fold_2", "checkpoints"):
    assert any(path.name.isdigit() for path in (folder / name).iterdir())
    assert (folder / f"{name}_training" / "2").is_dir()
  assert json.loads((folder / "retrieval.json").read_text())["head"] == "dense"
  stage = open_context(recorded[0], STAGE, None, None)
  model, params, table = packed_midtraining.load_packed_items(stage.run, stage.catalogue, stage.mesh)
  np.testing.assert_allclose(np.load(folder / "item_vectors.npy"), model.apply({"params": params}, table, method="item_vectors"), atol=1e-5)


def test_slates_of_beams_are_the_best_of_them_by_the_dense_head(recorded):
  run = recorded[0]
  config = run.config.copy_and_resolve_references()
  with config.unlocked():
    config.slates.update({"source": "beam", "beams": 30, "size": 6})
  stage = open_context(Run(run.directory, config, main=False), slates_stage.STAGE, Progress(), StopSignal())
  found, report = slates_stage._from_beams(stage)
  model = packed_midtraining.load_packed_items(run, stage.catalogue, stage.mesh)
  max_history = run.config.midtrain.max_history
  beams = make_packed_beam_scores(*model, beams=30, max_history=max_history)
  dense = make_dense_scores(*model, max_history=max_history)
  assert found["test"] and report["retrieved"]["test"]["requests"] == len(stage.split.test)
  for slate in found["test"]:
    history = np.asarray(stage.catalogue.to_rows(slate.history), np.int32)
    (of_beams,), (of_dense,) = beams(history[None]), dense(history[None])
    best = np.where(np.isfinite(of_beams), of_dense, -np.inf)
    best[history] = -np.inf
    rows = stage.catalogue.to_rows(slate.candidates)
    np.testing.assert_allclose(best[rows], np.sort(best)[::-1][:6], atol=1e-4)
    np.testing.assert_allclose(slate.upstream_scores, best[rows], atol=1e-4)


def retrieve_from(directory, **changes):
  options = {"beams": 30, "beam_weight": 0.5, "users": None, "split": "test", "sasrec": False}
  return measure_retrieval(str(directory), Progress(), StopSignal(), **options | changes)


def test_retrieval_rows_stand_side_by_side(recorded, in_process, monkeypatch):
  run = recorded[0]
  monkeypatch.setattr("gr2_jax.evaluation.retrieval_rows.SasrecConfig", lambda: SasrecConfig(epochs=1, width=16, layers=1))
  with in_process():
    found = retrieve_from(run.directory, sasrec=True)
  assert list(found["rows"]) == [
    "dense head",
    "beams",
    "beams by the dense head",
    "beams by both",
    retrieval_rows.GRAPH,
    retrieval_rows.SASREC,
  ]
  assert json.loads((run.directory / "retrieval.json").read_text()) == found
  assert found["n"] == len(open_context(run, STAGE, None, None).split.test)
  for name, of in found["rows"].items():
    assert all(0 <= row["ci95"][0] <= row["value"] <= row["ci95"][1] <= 1 for row in of.values()), name
  delta = found["paired"]["beams by the dense head_vs_beams"]["recall@10"]["delta"]
  rows = found["rows"]
  assert delta == pytest.approx(rows["beams by the dense head"]["recall@10"]["value"] - rows["beams"]["recall@10"]["value"])
  assert str(found["n"]) in render_retrieval_table(found).title
  with in_process():
    assert retrieve_from(run.directory, users=5, split="validation")["n"] == 5


def test_a_model_that_has_no_beams_or_has_learnt_the_targets_is_named(recorded, tmp_path):
  config = json.loads((recorded[0].directory / "config.json").read_text())
  for changes, message in [
    ({"form": "tokens"}, "is mid-trained on tokens; give a run of midtrain.form packed"),
    ({"packed": config["midtrain"]["packed"] | {"whole_log": True}}, "has learnt the targets"),
    ({}, "has no finished stage 'midtrain'; run that first"),
  ]:
    (tmp_path / "config.json").write_text(json.dumps(config | {"midtrain": config["midtrain"] | changes}))
    with pytest.raises(UserError, match=message):
      retrieve_from(tmp_path)
