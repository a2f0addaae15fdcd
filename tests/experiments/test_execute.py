"""The program over toy stages: a run does what is missing, says why it does not, and stops cleanly; and the real stages in their order."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal

import pytest
from small_runs import hash_files, tiny_config
from toy_runs import COMMAND, DATA, RL, make_config

from experiments.pipeline import choose_stages, execute
from experiments.stages import load_stages
from gr2_jax.runs.inputs import config_of
from gr2_jax.runs.life import check_stages
from gr2_jax.runs.lock import locked
from gr2_jax.runs.run import Run, RunError


class Calls(list):
  """What ran; `hooks`: what a stage does besides, by its name."""

  def __init__(self):
    super().__init__()
    self.hooks = {}

  def run(self, context):
    self.append(context.name)
    self.hooks.get(context.name, lambda _: None)(context.stop)
    context.path("out.txt").write_text(context.name)

  def stages(self):
    return [dataclasses.replace(stage, run=self.run) for stage in (DATA, RL)]


@pytest.fixture
def calls():
  return Calls()


def go(workdir, calls, config=None, names=None, stages=None, source=None):
  return execute(config or make_config(), str(workdir), names, COMMAND, stages or calls.stages(), source=source)


def test_the_same_command_again_skips_what_is_done(tmp_path, calls, capsys):
  assert go(tmp_path, calls) == 0
  capsys.readouterr()
  assert go(tmp_path, calls) == 0
  assert calls == ["data", "rl"]
  assert "data: done before in 0:00, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("changes", "said"),
  [({"rl__steps": 9}, "rl.steps: 4 -> 9"), ({"data__source": "elsewhere"}, 'data.source: "synthetic" -> "elsewhere"')],
)
def test_what_does_not_fit_is_said_in_one_error_and_nothing_is_touched(tmp_path, calls, capsys, changes, said):
  go(tmp_path, calls)
  before = hash_files(tmp_path)
  assert go(tmp_path, calls, make_config(**changes)) == 1
  error = capsys.readouterr().err
  assert error.startswith("ERROR: ") and said in error and "--workdir" in error
  assert hash_files(tmp_path) == before


def test_a_stage_that_has_not_begun_takes_a_new_value(tmp_path, calls):
  assert go(tmp_path, calls, names=["data"]) == 0
  assert go(tmp_path, calls, make_config(rl__steps=9)) == 0
  assert calls == ["data", "rl"] and Run.open(tmp_path).config.rl.steps == 9


def test_the_remedy_that_is_named_keeps_what_is_unchanged(tmp_path, calls, capsys):
  old, new = tmp_path / "old", tmp_path / "new"
  go(old, calls)
  changed = make_config(rl__steps=9)
  assert go(old, calls, changed) == 1
  assert f"--workdir=NEW --from={old}, which takes over data" in capsys.readouterr().err
  before = hash_files(old)
  for _ in range(2):  # stopped and given again
    assert go(new, calls, changed, source=str(old)) == 0
  assert calls == ["data", "rl", "rl"]
  assert f"data: the same as in {old}, linked" in capsys.readouterr().out
  assert (new / "data" / "out.txt").samefile(old / "data" / "out.txt") and hash_files(old) == before


def test_a_source_that_is_none_or_fits_nothing_is_told_before_anything_is_begun(tmp_path, calls, capsys):
  go(tmp_path / "old", calls)
  for source, changes in ((tmp_path / "nowhere", {}), (tmp_path / "old", {"data__users": 6})):
    assert go(tmp_path / "new", calls, make_config(**changes), source=str(source)) == 1
    assert capsys.readouterr().err.startswith("ERROR: --from: ")
  assert not (tmp_path / "new").exists()


def test_a_run_in_use_is_refused_and_untouched(tmp_path, calls, capsys):
  go(tmp_path, calls, names=["data"])
  with locked(tmp_path):
    before = hash_files(tmp_path)
    assert go(tmp_path, calls, make_config(rl__steps=9)) == 1
    assert hash_files(tmp_path) == before
  assert f"in use by process {os.getpid()}" in capsys.readouterr().err
  assert go(tmp_path, calls) == 0
  assert not (tmp_path / "lock").exists()


def test_a_damaged_input_is_told_before_the_stage_that_reads_it(tmp_path, calls, capsys):
  go(tmp_path, calls, names=["data"])
  (tmp_path / "data" / "out.txt").write_text("atad")
  assert go(tmp_path, calls) == 1
  assert f"ERROR: {tmp_path / 'data' / 'out.txt'} is damaged" in capsys.readouterr().err
  assert calls == ["data"] and not (tmp_path / "rl").exists()


def test_stages_run_in_order_alone_or_after_their_inputs(tmp_path, calls, capsys):
  assert go(tmp_path / "a", calls, names=["rl"]) == 1
  assert "--stages=data,rl" in capsys.readouterr().err
  assert not (tmp_path / "a").exists()
  assert go(tmp_path / "a", calls, names=["data"]) == 0
  assert go(tmp_path / "a", calls, names=["rl"]) == 0
  assert go(tmp_path / "b", calls, names=["rl", "data"]) == 0
  assert calls == ["data", "rl", "data", "rl"]


def test_changed_code_reaches_only_its_stage(tmp_path, calls, capsys):
  go(tmp_path, calls)
  data, rl = calls.stages()
  newer = [data, dataclasses.replace(rl, format=2)]
  assert go(tmp_path, calls, names=["data"], stages=newer) == 0
  assert go(tmp_path, calls, stages=newer) == 1
  assert "format: 1 -> 2" in capsys.readouterr().err


def test_unknown_stage_and_missing_directory(tmp_path, calls, capsys):
  assert go(tmp_path, calls, names=["dta"]) == 1
  assert "'dta' is no stage, did you mean data?; there are: data, rl" in capsys.readouterr().err
  assert go("", calls) == 1
  assert "--workdir" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == [] and calls == []


def test_a_config_that_does_not_pass_its_check_begins_no_run(tmp_path, calls, capsys):
  def check(config):
    raise RunError("--config.rl.steps: too many")

  assert execute(make_config(), str(tmp_path / "run"), None, COMMAND, calls.stages(), check) == 1
  assert "--config.rl.steps" in capsys.readouterr().err
  assert not (tmp_path / "run").exists() and calls == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_exits_cleanly_and_goes_on(tmp_path, calls, capsys, number, code):
  def interrupted(stop):
    os.kill(os.getpid(), number)
    stop.check()

  calls.hooks["rl"] = interrupted
  assert go(tmp_path, calls) == code
  assert "the same command goes on from here" in capsys.readouterr().err
  assert (tmp_path / "data" / "done.json").exists()
  assert not (tmp_path / "rl" / "done.json").exists()
  calls.hooks.clear()
  assert go(tmp_path, calls) == 0
  assert calls == ["data", "rl", "rl"]


def test_a_signal_that_a_stage_outlives_stops_before_the_next(tmp_path, calls):
  calls.hooks["data"] = lambda stop: os.kill(os.getpid(), signal.SIGTERM)
  assert go(tmp_path, calls) == 143
  assert (tmp_path / "data" / "done.json").exists()
  assert go(tmp_path, calls) == 0
  assert calls == ["data", "rl"]


def test_a_stage_begun_with_other_inputs_is_not_continued(tmp_path, calls, capsys):
  def killed(stop):
    (tmp_path / "data" / "half.txt").write_text("half")
    raise RuntimeError("killed")

  calls.hooks["data"] = killed
  with pytest.raises(RuntimeError, match="killed"):
    go(tmp_path, calls)
  calls.hooks.clear()
  data, rl = calls.stages()
  assert go(tmp_path, calls, stages=[dataclasses.replace(data, format=2), rl]) == 1
  assert "format: 1 -> 2" in capsys.readouterr().err
  assert go(tmp_path, calls) == 0


def test_a_stage_that_reads_another_run_waits_for_it_and_keeps_to_it(tmp_path, calls, capsys):
  settings = make_config(data__source=str(tmp_path / "a"))
  settings.rl.teacher = "data"
  data, rl = calls.stages()
  stages = [dataclasses.replace(data, files=()), dataclasses.replace(rl, runs=(("data.source", "rl.teacher"),))]
  assert go(tmp_path / "b", calls, settings, stages=stages) == 1
  assert f"--config.data.source: {tmp_path / 'a'} has no finished stage 'data'" in capsys.readouterr().err
  assert not (tmp_path / "b").exists()
  assert go(tmp_path / "a", calls, names=["data"]) == 0
  for _ in range(2):
    assert go(tmp_path / "b", calls, settings, stages=stages) == 0
  done = tmp_path / "a" / "data" / "done.json"
  done.write_text(json.dumps(json.loads(done.read_text()) | {"fingerprint": "retrained"}))
  assert go(tmp_path / "b", calls, settings, stages=stages) == 1
  assert "runs.data.source: " in (error := capsys.readouterr().err) and '-> "retrained"' in error


# The real stages.

PRIORS = {
  # rl.init, opd.init -> the stages that are left out, and what RL and evaluation read beside data, tokenize and slates
  ("sft", "midtrain"): ({"opd"}, {"sft"}, {"sft", "rl"}),
  ("midtrain", "midtrain"): ({"traces", "sft", "opd"}, {"midtrain"}, {"rl"}),
  ("opd", "midtrain"): ({"traces", "sft"}, {"opd"}, {"opd", "rl"}),
  ("opd", "sft"): (set(), {"opd"}, {"sft", "opd", "rl"}),
}


def needed(**changes):
  return choose_stages(None, load_stages(), tiny_config(**changes))


def test_the_stages_are_those_of_the_pipeline():
  order = [stage.name for stage in load_stages()]
  assert order[-1] == "evaluation" and len(set(order)) == len(order)
  main_line = ("data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft", "opd", "rl", "direct", "prune", "evaluation")
  for earlier, later in itertools.pairwise(main_line):
    assert order.index(earlier) < order.index(later)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_pipeline_runs_what_the_prior_needs_and_reads_only_earlier_stages(prior):
  left_out, rl_reads, evaluation_reads = PRIORS[prior]
  config = tiny_config(rl__init=prior[0], opd__init=prior[1], opd__teacher_run="teacher")
  stages = {stage.name: stage for stage in choose_stages(None, load_stages(), config)}
  assert set(stages) == {stage.name for stage in load_stages()} - left_out - {"direct", "prune", "compress"}
  common = {"data", "tokenize", "slates", "evidence"}
  assert set(stages["rl"].inputs) == common | rl_reads
  assert set(stages["evaluation"].inputs) == common | {"midtrain"} | evaluation_reads
  run = Run(pathlib.Path("nowhere"), config)
  check_stages(run, list(stages.values()), load_stages(), ahead={pathlib.Path("teacher")})
  if "opd" in stages:
    with pytest.raises(RunError, match=r"--config\.opd\.teacher_run: teacher has no finished stage 'rl'"):
      check_stages(run, list(stages.values()), load_stages())


def test_a_stage_that_nothing_else_needs_runs_where_the_config_asks_for_it():
  def inputs(**changes):
    return {stage.name: set(stage.inputs) for stage in needed(**changes)}

  direct = inputs(direct__enabled=True, direct__init="midtrain")
  assert (
    direct["direct"] == {"data", "tokenize", "slates", "evidence", "midtrain"}
    and "direct" in direct["evaluation"]
    and "prune" not in direct
  )
  pruned = inputs(prune__enabled=True)
  assert "rl" in pruned["prune"] and "prune" in pruned["evaluation"] and "direct" not in pruned
  assert "sft" in inputs(rl__init="midtrain", sft__without_reasoning=True)["evaluation"]
  assert "compress" in inputs(compress__variants=("rules",))["evaluation"]


@pytest.mark.parametrize(
  ("stage", "source", "unused", "used"),
  [
    ("data", {"data__source": "synthetic"}, {"data__on_error": "skip"}, {"data__market__num_items": 130}),
    ("data", {"data__source": "folder"}, {"data__market__num_items": 130, "data__market_seed": 1}, {"data__on_error": "skip"}),
    ("slates", {"slates__source": "log"}, {"slates__size": 5, "slates__ctr__epochs": 3}, {"slates__source": "ctr"}),
    ("slates", {"slates__source": "beam"}, {"slates__ctr__epochs": 3, "slates__also": "ctr"}, {"slates__beams": 3}),
    ("slates", {"slates__source": "ctr"}, {"slates__sasrec__epochs": 3, "slates__also": "ctr"}, {"slates__ctr__epochs": 3}),
    ("slates", {"slates__source": "sasrec"}, {"slates__ctr__epochs": 3}, {"slates__sasrec__epochs": 3}),
    ("slates", {"slates__source": "sasrec"}, {"slates__beams": 3}, {"slates__also": "ctr"}),
    ("slates", {"slates__source": "sasrec", "slates__also": "ctr"}, {"slates__beams": 3}, {"slates__ctr__epochs": 3}),
    ("midtrain", {"midtrain__warmup_rows__enabled": False}, {"midtrain__warmup_rows__steps": 9}, {"midtrain__steps": 9}),
    (
      "midtrain",
      {"midtrain__form": "packed"},
      {
        "midtrain__mixture__persona": 0.2,
        "midtrain__corpus_epochs": 3,
        "midtrain__warmup_rows__steps": 9,
        "midtrain__beams": 3,
      },
      {"midtrain__packed__negatives": 9},
    ),
    (
      "midtrain",
      {"midtrain__form": "tokens"},
      {"midtrain__packed__negatives": 9, "midtrain__packed__folds": 3, "midtrain__packed__whole_log": True},
      {"midtrain__row_length": 64},
    ),
    ("compress", {"compress__variants": ("rules",)}, {"compress__rewriter__steps": 9}, {"compress__budget": 9}),
    ("evaluation", {"evaluation__shuffles": 1}, {"evaluation__listwise__epochs": 3}, {"evaluation__baselines": ("prm",)}),
    ("evaluation", {"evaluation__baselines": ("prm",)}, {}, {"evaluation__listwise__epochs": 3}),
  ],
)
def test_keys_that_decide_nothing_do_not_count(stage, source, unused, used):
  of_name = {known.name: known for known in load_stages()}

  def decides(**changes):
    return config_of(Run(pathlib.Path("nowhere"), tiny_config(**source | changes)), of_name[stage])

  assert decides(**unused) == decides() != decides(**used)


def test_a_stage_that_starts_from_no_stage():
  with pytest.raises(RunError, match=r"--config\.rl\.init: 'teacher'"):
    needed(rl__init="teacher")
  with pytest.raises(RunError, match=r"lacks .*\.init"):
    choose_stages(None, load_stages(), make_config())
