"""A stage's life: what it needs before it runs, when it is finished, what refuses it, and what it leaves."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict
from toy_runs import COMMAND, CONFIG, DATA, POLICY, RL, finish, finished_run, leave_policy, make_config, need, unchanged

from gr2_jax.data.schema import DataError
from gr2_jax.runs.life import check_stages, is_finished, open_stage
from gr2_jax.runs.policies import read_policies
from gr2_jax.runs.run import Run, RunError, begin_run
from gr2_jax.runs.stages import needed_stages

TOY = (DATA, RL)
# Between them one that reads nothing of the config but the seed.
LONG = (DATA, dataclasses.replace(DATA, name="sft", reads=("seed",), files=(), inputs=("data",)), dataclasses.replace(RL, inputs=("sft",)))


def check(run, *names, known=TOY, **options):
  """`check_stages` of the named stages, or all."""
  needed = needed_stages(known, run.config)
  check_stages(run, [stage for stage in needed if not names or stage.name in names], known, **options)


def begin(run, needed):
  """A stage that leaves a file and breaks off."""
  with pytest.raises(RuntimeError), open_stage(run, needed):
    run.path(needed.name, "half.txt").write_text("half")
    raise RuntimeError


# Before anything runs.


def test_inputs_are_finished_or_run_before(tmp_path):
  run = Run(tmp_path / "a", make_config())
  check(run)
  with pytest.raises(RunError, match=r"rl needs the artifacts of data, .*--stages=data,rl"):
    check(run, "rl")
  assert not run.directory.exists()
  finish(begin_run(run.directory, run.config, COMMAND), need(DATA))
  check(run, "rl")


def test_the_command_that_is_advised_runs_all_that_is_missing(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with pytest.raises(RunError, match=r"artifacts of data, sft, .*--stages=data,sft,rl"):
    check(run, "rl", known=LONG)
  check(run, "data", "sft", "rl", known=LONG)
  finish(run, need(DATA))
  with pytest.raises(RunError, match=r"artifacts of sft, .*--stages=sft,rl"):
    check(run, "rl", known=LONG)


@pytest.mark.parametrize("key", [{"reads": ("seed", "market")}, {"files": ("data.folder",)}])
def test_a_key_that_the_config_lacks(tmp_path, key):
  with pytest.raises(RunError, match=r"market|data\.folder"):
    check(Run(tmp_path, make_config()), known=[dataclasses.replace(DATA, **key)])


def test_a_changed_key_touches_the_stages_that_read_it_and_no_other(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  finish(run, need(LONG[0]))
  finish(run, need(LONG[1], 1))
  check(dataclasses.replace(run, config=make_config(rl__steps=9)), known=LONG)  # rl has not begun
  begin(run, need(LONG[2], 2))
  changed = dataclasses.replace(run, config=make_config(rl__steps=9))
  with unchanged(tmp_path), pytest.raises(RunError) as raised:
    check(changed, known=LONG)
  message = str(raised.value)
  assert "rl, begun: config.rl.steps: 4 -> 9" in message and f"remove {tmp_path / 'rl'}" in message
  assert f"--from={tmp_path}, which takes over data, sft" in message
  assert "finished" not in message


def test_all_stages_that_cannot_stay_are_listed_at_once(tmp_path):
  finished_run(tmp_path)
  changed = Run(tmp_path, make_config(data__users=6, rl__steps=9, rl__sizes=(1, 3)))
  with unchanged(tmp_path), pytest.raises(RunError) as raised:
    check(changed)
  message = str(raised.value)
  assert "data, finished: config.data.users: 5 -> 6" in message and "rl, finished: config.rl.steps: 4 -> 9" in message
  assert "rl, finished: config.rl.sizes: [1, 2] -> [1, 3]" in message and "--workdir" in message and "--from" not in message


def test_no_stage_that_is_there_may_differ_from_the_config_whether_it_is_asked_for_or_not(tmp_path):
  finished_run(tmp_path)
  with pytest.raises(RunError, match=r"config\.rl\.steps"):
    check(Run(tmp_path, make_config(rl__steps=9)), "data")
  newer = (DATA, dataclasses.replace(RL, format=2))
  check(Run(tmp_path, make_config()), "data", known=newer)  # other code of a stage that nobody asks for
  with pytest.raises(RunError, match="format: 1 -> 2"):
    check(Run(tmp_path, make_config()), known=newer)


def test_what_has_to_be_made_again_is_no_change_for_those_that_read_it(tmp_path):
  finished_run(tmp_path)
  shutil.rmtree(tmp_path / "data")
  check(Run(tmp_path, make_config()))
  with pytest.raises(RunError, match=r"inputs\.data"):
    check(Run(tmp_path, make_config(data__users=6)))


def test_keys_that_decide_nothing_may_change(tmp_path):
  known = (dataclasses.replace(DATA, unused=lambda config: ("data.users",) if config.data.source else ()), RL)
  run = begin_run(tmp_path, make_config(), COMMAND)
  finish(run, need(known[0]))
  assert run.done("data")["reads"]["config"] == {"seed": 3, "data": {"source": "synthetic"}}
  other = dataclasses.replace(run, config=make_config(data__users=6))
  check(other, known=known)
  assert is_finished(other, need(known[0]))
  with pytest.raises(RunError, match=r"data\.source"):
    check(dataclasses.replace(run, config=make_config(data__source="")), known=known)


def test_a_stage_that_is_older_than_a_setting_was_made_with_what_it_did(tmp_path):
  older = finished_run(tmp_path)
  assert Run.open(tmp_path).config.rl.anchor == 0.0  # see `fingerprints.ADDED`

  def with_anchor(value):
    return dataclasses.replace(older, config=ConfigDict({**CONFIG, "rl": {**CONFIG["rl"], "anchor": value}}))

  check(with_anchor(0.0))
  assert is_finished(with_anchor(0.0), need(RL, 1))
  with pytest.raises(RunError, match=r"rl, finished: config.rl.anchor: 0.0 -> 0.5"):
    check(with_anchor(0.5))


# A stage's life.


def test_a_stage_that_ends_is_done_with_its_outputs_and_place(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  assert not is_finished(run, need(DATA))
  finish(run, need(DATA, 4))
  assert is_finished(run, need(DATA, 4))
  done = json.loads((tmp_path / "data" / "done.json").read_text())
  assert done["outputs"] == {"out.txt": {"bytes": 4, "sha256": hashlib.sha256(b"data").hexdigest()}}
  assert done["place"] == 4 and done["seconds"] >= 0
  assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["done.json", "out.txt"]


def test_a_stage_leaves_its_policies_in_the_manifest(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with open_stage(run, need(DATA, policies=leave_policy)):
    assert read_policies(run) == []
  assert read_policies(run) == [POLICY]
  assert list(run.done("data")["outputs"]) == ["policies.json"]


def test_a_stage_that_breaks_off_is_begun_and_goes_on(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with pytest.raises(RuntimeError), open_stage(run, need(DATA)):
    raise RuntimeError
  assert not is_finished(run, need(DATA)) and not run.is_done("data")
  started = json.loads((tmp_path / "data" / "started.json").read_text())
  (tmp_path / "data" / "started.json").write_text(json.dumps({**started, "seconds": 100.0}))
  finish(run, need(DATA))
  assert run.done("data")["seconds"] >= 100.0, "the seconds of all sessions"
  assert not (tmp_path / "data" / "started.json").exists()


def test_a_stage_that_refuses_its_input_was_not_begun_unless_it_has_a_checkpoint(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with pytest.raises(DataError), open_stage(run, need(DATA)):
    raise DataError("line 3: no item")
  assert not (tmp_path / "data" / "started.json").exists()
  with pytest.raises(DataError), open_stage(run, need(DATA)):
    (tmp_path / "data" / "checkpoints").mkdir()
    raise DataError("line 3: no item")
  assert (tmp_path / "data" / "started.json").exists()


@pytest.mark.parametrize("bring", [finish, begin])
def test_a_stage_of_other_inputs_is_neither_skipped_nor_continued(tmp_path, bring):
  run = begin_run(tmp_path, make_config(), COMMAND)
  bring(run, need(DATA))
  with unchanged(tmp_path), pytest.raises(RunError, match=r"nothing was overwritten(?s:.*)format: 1 -> 2"):
    is_finished(run, need(DATA, format=2))
  with pytest.raises(RunError, match=r"config\.data\.users: 5 -> 6"):
    is_finished(dataclasses.replace(run, config=make_config(data__users=6)), need(DATA))


def test_a_stage_that_left_nothing_was_not_begun(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with pytest.raises(RuntimeError), open_stage(run, need(DATA)):
    run.path("data", "checkpoints").mkdir()
    raise RuntimeError
  assert not is_finished(dataclasses.replace(run, config=make_config(data__users=6)), need(DATA))


def test_changed_code_of_a_stage_reaches_those_that_read_it(tmp_path):
  run = finished_run(tmp_path)
  assert is_finished(run, need(RL, 1))
  done = run.done("data")
  (tmp_path / "data" / "done.json").write_text(json.dumps(done | {"fingerprint": "made anew"}))
  with pytest.raises(RunError, match=r"inputs\.data: "):
    is_finished(run, need(RL, 1))


def test_changed_external_files_are_noticed_by_content(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  (source / "items.jsonl").write_text("one")
  run = begin_run(tmp_path / "run", make_config(data__source=str(source)), COMMAND)
  finish(run, need(DATA))
  (source / "items.jsonl").write_text("one")
  assert is_finished(run, need(DATA))
  (source / "items.jsonl").write_text("two")
  with pytest.raises(RunError, match=r"files\.data\.source"):
    is_finished(run, need(DATA))


def test_a_lost_artifact_is_an_error_not_a_skip(tmp_path):
  run = finished_run(tmp_path)
  (tmp_path / "data" / "out.txt").unlink()
  with pytest.raises(RunError, match=r"out\.txt of the finished stage 'data' is gone"):
    is_finished(run, need(DATA))


def test_what_another_run_made_decides_a_stage_that_reads_it_and_not_where_it_lies(tmp_path):
  config = make_config(data__source=str(tmp_path / "a"))
  config.rl.teacher = "data"
  reader, run = need(RL, 1, runs=(("data.source", "rl.teacher"),), reads=("seed", "data")), Run(tmp_path / "b", config)
  known = (dataclasses.replace(DATA, files=(), unused=lambda config: ("data.source",)), reader.stage)
  with pytest.raises(RunError, match=r"--config\.data\.source: .* has no finished stage 'data'"):
    check(run, known=known)
  check(run, known=known, ahead={pathlib.Path(tmp_path / "a")})
  finished_run(tmp_path / "a")
  check(run, known=known)
  run = begin_run(tmp_path / "b", config, COMMAND)
  finish(run, need(known[0]))
  finish(run, reader)
  assert is_finished(run, reader)
  (tmp_path / "a").rename(tmp_path / "moved")
  config.data.source = str(tmp_path / "moved")
  assert is_finished(run, reader)
  done = tmp_path / "moved" / "data" / "done.json"
  done.write_text(json.dumps(json.loads(done.read_text()) | {"fingerprint": "retrained"}))
  with pytest.raises(RunError, match=r'runs\.data\.source: .*-> "retrained"'):
    is_finished(run, reader)
