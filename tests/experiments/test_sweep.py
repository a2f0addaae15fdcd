"""A sweep plans all its runs before the first starts, shares what they have in common, and goes on where it stopped."""

import json
import os
import pathlib
import re
import signal

import pytest
from small_runs import ROOT, continue_from, hash_files

from experiments import variants as sweep
from experiments.flags import load_module
from experiments.pipeline import choose_stages
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.reports.sweeps import load_sweep
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import Stage

ABLATION = str(ROOT / "configs" / "ablations" / "reward_hacking.py")
PRIOR = str(ROOT / "configs" / "ablations" / "prior.py")


def plan(path=ABLATION, only=None, seeds=None, overrides=None, workdir=pathlib.Path("sweep")):
  return sweep.plan(path, only, seeds, overrides or {}, workdir)


# What is planned.


@pytest.mark.parametrize("args", ["", ":tiny"])
def test_the_ablation_crosses_five_rewards_two_presentations_and_three_seeds(in_process, args):
  with in_process():
    variants, configs = plan(ABLATION + args)
  rewards = {(of[1].rl.reward.condition, of[1].rl.presentation) for of in configs.values()}
  assert rewards == {(c, p) for c in ("naive", "v1", "eq7", "relative", "improving") for p in ("upstream", "shuffled")}
  assert list(variants) == list(configs) and next(iter(variants)) == "naive_upstream"
  for of in configs.values():
    assert {seed: (config.seed, config.data.market_seed) for seed, config in of.items()} == {s: (s, s) for s in (1, 2, 3)}


def test_variants_and_seeds_can_be_chosen_and_all_runs_overridden(in_process):
  with in_process():
    variants, configs = plan(only=["eq7_shuffled"], seeds=["5"], overrides={"rl.steps": 7, "rl.presentation": "upstream"})
  assert list(variants) == list(configs) == ["eq7_shuffled"] and list(configs["eq7_shuffled"]) == [5]
  # A variant is what its changes say, whatever holds for all.
  assert (configs["eq7_shuffled"][5].rl.steps, configs["eq7_shuffled"][5].rl.presentation) == (7, "shuffled")


def test_the_prior_ablation_gives_each_student_the_teacher_of_its_seed(in_process):
  with in_process():
    variants, configs = plan(PRIOR)
  assert next(iter(variants)) == "teacher" and len(variants) == 1 + 5 * 2
  for name, of in configs.items():
    for seed, config in of.items():
      taught = name.startswith("opd")
      assert (config.rl.init == "opd") == taught
      assert config.opd.teacher_run == (f"sweep/teacher/seed_{seed}" if taught else "")
  asked = {name for pairs in load_module(PRIOR).COMPARISONS.values() for pair in pairs for name in pair}
  asked |= {name for teacher, students in load_module(PRIOR).SHARES.items() for name in (teacher, *students)}
  for name in asked:
    variant, order = name.split("/")
    stages = {stage.name for stage in choose_stages(None, load_stages(), configs[variant][0])}
    assert order in {"upstream", "policy", *stages}, name


def write_ablation(folder, variants, seeds=(0, 1)):
  path = folder / "ablation.py"
  path.write_text(
    "from configs.written import get_config as quickstart\n"
    f"VARIANTS = {variants!r}\nSEEDS = {seeds!r}\n"
    "def get_config(arg=None):\n  return quickstart(arg)\n"
  )
  return str(path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rl.stepz": 3}, r"variant b: --config\.rl\.stepz: config\.rl has no key 'stepz'; did you mean steps"),
    ({"rl.steps": "many"}, r"variant b: --config\.rl\.steps: expected int"),
    ({"rl.reward.condition": "v3"}, r"variant b: --config\.rl\.reward\.condition: .*v3"),
  ],
)
def test_a_wrong_variant_is_named_before_anything_starts(in_process, tmp_path, capsys, changes, message):
  path = write_ablation(tmp_path, {"a": {"rl.steps": 3}, "b": changes})
  with in_process(), pytest.raises(ConfigError, match=message):
    plan(f"{path}:tiny")
  with in_process():
    assert sweep.execute(f"{path}:tiny", str(tmp_path / "sweep"), []) == 1
  assert "ERROR: variant b: " in capsys.readouterr().err
  assert not (tmp_path / "sweep").exists()


def test_wrong_flags(tmp_path, capsys):
  with pytest.raises(ConfigError, match=r"--only: 'naive' is no variant; there are: naive_upstream, v1_upstream"):
    plan(only=["naive"])
  with pytest.raises(ConfigError, match="--seeds: 'x' is no seed"):
    plan(seeds=["0", "x"])
  with pytest.raises(ConfigError, match=r"quickstart\.py has no VARIANTS, so it is no ablation"):
    plan(str(ROOT / "configs" / "quickstart.py"))
  assert sweep.execute(ABLATION, None, []) == 1
  assert "ERROR: --workdir is missing" in capsys.readouterr().err


# What is run, on two toy stages.


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """`toy(...)` runs a sweep of variants a, b over seeds 0, 1; `toy.calls` lists (stage, seed, rl.steps), `toy.hook` is called in each."""
  path = write_ablation(tmp_path, {"a": {"rl.steps": 3}, "b": {"rl.steps": 4}})

  def go(seeds=None, workdir="sweep", source=None, overrides=None):
    return sweep.execute(f"{path}:tiny", str(tmp_path / workdir), ["python"], seeds=seeds, source=source, overrides=overrides)

  go.calls, go.hook, go.folder = [], lambda call: None, tmp_path / "sweep"

  def run(context):
    go.calls.append((context.name, context.seed, context.config.rl.steps))
    go.hook(go.calls[-1])
    context.stop.check()
    context.path("out.txt").write_text(context.name)

  stages = (Stage("data", run, reads=("seed", "data")), Stage("rl", run, reads=("seed", "rl"), inputs=("data",)))
  monkeypatch.setattr(sweep, "load_stages", lambda: stages)
  monkeypatch.setattr(sweep, "check_values", lambda config: None)
  monkeypatch.setattr(sweep, "_write_results", lambda *args: None)
  monkeypatch.setattr("jax.clear_caches", lambda: None)
  return go


def test_what_runs_have_in_common_is_done_once_and_seeds_come_one_after_the_other(toy, capsys):
  assert toy() == 0
  assert toy.calls == [("data", 0, 3), ("rl", 0, 3), ("rl", 0, 4), ("data", 1, 3), ("rl", 1, 3), ("rl", 1, 4)]
  assert (toy.folder / "b" / "seed_0" / "data" / "out.txt").samefile(toy.folder / "a" / "seed_0" / "data" / "out.txt")
  told = capsys.readouterr().out
  assert "run 1 of 4: a, seed 0\n" in told and re.search(r"run 4 of 4: b, seed 1, about \d+:\d\d left", told)
  assert f"data: the same as in {toy.folder / 'a' / 'seed_1'}, linked" in told


def test_a_stopped_sweep_goes_on(toy, capsys):
  toy.hook = lambda call: os.kill(os.getpid(), signal.SIGTERM) if call == ("rl", 0, 4) else None
  assert toy() == 143
  assert "stopped by SIGTERM; the same command goes on from here" in capsys.readouterr().err
  toy.hook = lambda call: None
  toy.calls.clear()
  assert toy() == 0
  assert toy.calls == [("rl", 0, 4), ("data", 1, 3), ("rl", 1, 3), ("rl", 1, 4)]
  assert "1 of 4 runs done before, skipped\nrun 2 of 4: b, seed 0\n" in capsys.readouterr().out
  toy.calls.clear()
  assert toy() == 0
  assert toy.calls == []


def test_a_sweep_takes_over_what_another_has(toy, tmp_path):
  assert toy(seeds=["0"]) == 0
  toy.calls.clear()
  assert toy(workdir="more", source=str(toy.folder)) == 0
  assert toy.calls == [("data", 1, 3), ("rl", 1, 3), ("rl", 1, 4)]
  for variant in ("a", "b"):
    assert (tmp_path / "more" / variant / "seed_0" / "rl" / "out.txt").samefile(toy.folder / variant / "seed_0" / "rl" / "out.txt")


def test_a_stage_of_other_values_stops_the_sweep_before_it_starts(toy, capsys):
  assert toy() == 0
  toy.calls.clear()
  before = hash_files(toy.folder)
  assert toy(overrides={"data.max_history": 9}) == 1
  assert "data.max_history: 50 -> 9" in capsys.readouterr().err
  assert toy(overrides={"rl.prompts": 8}) == 1
  assert f"--from={toy.folder}, which takes over data" in capsys.readouterr().err
  assert toy.calls == [] and hash_files(toy.folder) == before


def test_a_teacher_must_be_a_variant_before_its_students(tmp_path, monkeypatch, capsys):
  stages = (Stage("data", lambda context: None, reads=("seed",), runs=(("opd.teacher_run", "opd.teacher_stage"),)),)
  monkeypatch.setattr(sweep, "load_stages", lambda: stages)
  monkeypatch.setattr(sweep, "check_values", lambda config: None)
  path = write_ablation(tmp_path, {"b": {"opd.teacher_run": "run:a"}, "a": {"opd.teacher_run": "elsewhere"}}, seeds=(0,))
  assert sweep.execute(f"{path}:tiny", str(tmp_path / "sweep"), []) == 1
  told = capsys.readouterr().err
  assert f"--config.opd.teacher_run: {tmp_path / 'sweep' / 'a' / 'seed_0'} has no finished stage 'rl'" in told


def test_a_folder_of_another_run_stops_the_sweep_before_it_starts(toy, capsys):
  (toy.folder / "b" / "seed_1").mkdir(parents=True)
  (toy.folder / "b" / "seed_1" / "thesis.txt").write_text("precious")
  assert toy() == 1
  assert "is not empty and is no run" in capsys.readouterr().err
  assert toy.calls == []


# The real stages.


@pytest.mark.slow
def test_the_tiny_ablation_ends_in_one_table(tiny_run, in_process, tmp_path, capsys):
  variants = ["naive_upstream", "relative_shuffled"]
  with in_process():
    _, configs = plan(f"{ABLATION}:tiny", only=variants, seeds=["0"])
    # Up to SFT it is the quickstart's tiny run.
    first = continue_from(
      tiny_run, tmp_path / "naive_upstream" / "seed_0", configs["naive_upstream"][0], [s.name for s in load_stages()[:7]]
    )
    command = ["python", "-m", "experiments.sweep"]
    assert sweep.execute(f"{ABLATION}:tiny", str(tmp_path), command, only=variants, seeds=["0"]) == 0
    second = tmp_path / "relative_shuffled" / "seed_0"
    told = capsys.readouterr().out
    assert f"sft: the same as in {first}, linked" in told and "policies after RL" in told
    assert (second / "sft" / "done.json").samefile(first / "sft" / "done.json")
    assert not (second / "rl" / "done.json").samefile(first / "rl" / "done.json")
    assert Run.open(second).config.rl.reward.condition == "relative"
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert list(result["variants"]) == variants and result["commands"] == ["python -m experiments.sweep"]
    for name, run in (("naive_upstream", first), ("relative_shuffled", second)):
      alone = json.loads((run / "evaluation" / "results.json").read_text())
      pooled = result["variants"][name]
      assert pooled["n"] == alone["n"]
      for order in ("upstream", "sft", "policy"):
        assert pooled["orders"][order] == pytest.approx(alone["orders"][order])
    assert "policy_vs_reference" in result["variants"]["relative_shuffled"]["paired"]
    assert (tmp_path / "sweep.md").exists() and (tmp_path / "plots" / "copying.png").exists()

    before = {path: content for path, content in hash_files(second).items() if path.name != "command.txt"}
    assert sweep.execute(f"{ABLATION}:tiny", str(tmp_path), command, only=variants, seeds=["0"]) == 0
    assert "2 of 2 runs done before, skipped" in capsys.readouterr().out
    assert {path: content for path, content in hash_files(second).items() if path.name != "command.txt"} == before


@pytest.mark.slow
@pytest.mark.parametrize("study", sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py")))
def test_every_tiny_ablation_runs_through_to_its_page(study, tiny_sweep):
  """With one seed; the notebooks that read these sweeps are in tests/notebooks."""
  folder, ablation = tiny_sweep(study), load_module(str(ROOT / "configs" / "ablations" / f"{study}.py"))
  table, page = load_sweep(folder), (folder / "sweep.md").read_text(encoding="utf-8")
  assert {variant: of["seeds"] for variant, of in table["variants"].items()} == {variant: [0] for variant in ablation.VARIANTS}
  asked = getattr(ablation, "COMPARISONS", {})
  compared = {title: [(line["order"], line["base"]) for line in lines] for title, lines in table["comparisons"].items()}
  assert compared == {title: list(pairs) for title, pairs in asked.items()}
  assert all(f"## {title}\n" in page for title in ("Ranking", *asked, "Copying", "Plots"))
