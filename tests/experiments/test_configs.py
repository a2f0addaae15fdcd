"""Every config file loads, holds values that the stages can use, and its tiny variant trains every stage."""

import fnmatch
import json
import math
import pathlib
import re
import sys
import types

import jax
import pytest
from ml_collections import ConfigDict
from small_runs import ROOT, tiny_config

from configs.base import base
from configs.rl_losses import RL_LOSSES
from experiments import variants as sweep
from experiments.check import check_values
from experiments.flags import check_overrides, load_config
from gr2_jax.errors import ConfigError
from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.runs.fingerprints import value_at

# The arguments by which each file is checked; the last one is its tiny variant.
CONFIGS = {
  "quickstart.py": ("", "seed=3", "at_once", "teacher=tree", "at_once,tiny", "tiny"),
  "written.py": ("", "seed=3", "tiny"),
  "small_market.py": ("", "seed=1", "tiny"),
  "own_data.py": ("seed=1,tiny", "tiny"),  # test_own_data.py has those of a folder
  "amazon.py": (
    *("beauty", "sports", "toys,small", "beauty,small,written", "beauty,small,strong", "beauty,strong,tiny", "beauty,strong,time"),
    *("beauty,small,time", "beauty,tiny"),
  ),
  "pods.py": ("", "seed=3", "long", "tiny"),
  "rl_losses.py": ("dapo", "grpo,seed=1", "dr_grpo", "gspo", "tis", "gspo,tiny"),
  "verbose_prompts.py": ("", "seed=1", "tiny"),
  "ablations/evidence.py": ("", "seed=1", "tiny"),
  "ablations/internalise.py": ("", "seed=1", "tiny"),
  "ablations/main.py": ("", "seed=1", "tiny"),
  "ablations/prior.py": ("", "beauty", "beauty,tiny", "tiny"),
  "ablations/pruning.py": ("", "seed=1", "tiny"),
  "ablations/reward_hacking.py": ("", "seed=1", "tiny"),
  "ablations/true_reasons.py": ("", "seed=1", "tiny"),
  "ablations/rl_value.py": ("", "seed=1", "tiny"),
  "ablations/compressor.py": ("", "seed=1", "tiny"),
}


def test_no_config_file_is_left_out():
  files = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.py")}
  assert files - {"base.py", "published.py", "__init__.py"} == set(CONFIGS)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The check is against this machine's devices, and the tests' eight are not those of a user."""
  first = jax.devices()[:1]
  monkeypatch.setattr("gr2_jax.training.mesh.jax.devices", lambda: first)


@pytest.mark.parametrize(("file", "arg"), [(file, arg) for file, args in CONFIGS.items() for arg in args])
def test_a_config_passes_its_own_check(file, arg):
  config = load_config(f"{ROOT / 'configs' / file}" + (f":{arg}" if arg else ""))
  check_values(config)
  assert config.is_locked


def metrics(run, stage):
  return [json.loads(line) for line in (run / "metrics" / f"{stage}.jsonl").read_text().splitlines()]


# Runs of tiny variants that other tests read too.
RUNS = {"written.py": "tiny_run", "amazon.py": "amazon_run", "verbose_prompts.py": "verbose_run"}


@pytest.mark.parametrize("run", ["tiny_run", *(pytest.param(run, marks=pytest.mark.slow) for run in ("amazon_run", "verbose_run"))])
def test_the_tiny_variant_steps_through_every_stage(run, request):
  directory = request.getfixturevalue(run)
  config = json.loads((directory / "config.json").read_text())
  for stage in ("midtrain_warmup_rows", "midtrain", "sft", "rl"):
    steps = (config["midtrain"]["warmup_rows"] if stage.endswith("rows") else config[stage])["steps"]
    lines = metrics(directory, stage)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    losses = [line["loss"] for line in lines if "loss" in line]  # an RL batch without a kept group has none
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    assert losses or stage == "rl"
  orders = json.loads((directory / "evaluation" / "results.json").read_text())["orders"]
  assert {"upstream", "random", "oracle", "popularity", "lambdamart", "sft", "policy"} <= set(orders)
  assert "| ranker |" in (directory / "evaluation" / "card.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("file", "arg"),
  [("amazon.py", "beauty,strong,tiny"), *((file, args[-1]) for file, args in CONFIGS.items() if file not in RUNS and "/" not in file)],
)
def test_the_tiny_variant_of_a_config_ends_in_a_card(file, arg, run_here, tmp_path):
  assert run_here(load_config(f"{ROOT / 'configs' / file}:{arg}"), tmp_path / "run") == 0
  assert (tmp_path / "run" / "evaluation" / "card.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file in CONFIGS if "/" in file])
def test_the_tiny_variant_of_an_ablation_ends_in_a_table(file, tiny_sweep):
  folder = tiny_sweep(pathlib.Path(file).stem)
  result = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
  assert set(result["variants"]) == {run.parent.name for run in folder.glob("*/seed_0")}
  assert (folder / "sweep.md").exists()


@pytest.mark.parametrize("arg", ["", "tiny"])
@pytest.mark.parametrize("file", [file for file in CONFIGS if "/" in file])
def test_all_variants_of_an_ablation_pass_the_check(file, arg, tmp_path):
  variants, configs = sweep.plan(f"{ROOT / 'configs' / file}:{arg}".removesuffix(":"), None, ["0"], {}, tmp_path)
  assert list(variants) == list(configs)
  if arg == "tiny":
    steps = {of[0][stage].steps for of in configs.values() for stage in ("midtrain", "sft", "rl", "opd", "direct", "prune")}
    assert max(steps) <= 3


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("data__on_error", "ignore", r"--config\.data\.on_error: 'ignore' is not known; choose stop or skip"),
    ("slates__source", "logs", "choose log or ctr or sasrec or beam"),
    ("sft__presentation", "shuffle", r"--config\.sft\.presentation: 'shuffle' is not known; choose upstream or shuffled"),
    ("sft__compressed_share", 1.5, r"--config\.sft\.compressed_share: 1\.5 must be at least 0 and at most 1"),
    ("prompt__answer", "jsn", r"--config\.prompt\.answer: 'jsn' is not known; choose compact or json"),
    ("prompt__hints", ("rank",), r"--config\.prompt\.hints: 'rank' is not known"),
    ("model__preset", "huge", r"--config\.model\.preset: 'huge' is not known; choose test or micro or tiny"),
    ("rl__reward__rank", "mrr", r"--config\.rl\.reward\.rank: 'mrr'"),
    ("rl__reward__condition", "v2", r"--config\.rl\.reward\.condition: 'v2'"),
    ("rl__temperature", 0.0, r"--config\.rl\.temperature: "),
    ("rl__min_filled", 0.0, r"--config\.rl\.min_filled: "),
    ("rl__init", "opd", r"--config\.opd\.teacher_run: missing; name the directory of a finished run"),
    ("rl__init", "none", r"--config\.rl\.init: 'none' .* choose midtrain or sft or opd"),
    ("opd__teacher_run", "runs/x", r"--config\.opd\.teacher_run: set, but no stage reads it while rl\.init is 'sft'"),
    ("opd__teacher_stage", "midtrain", "choose rl or sft"),
    (
      "opd__distillation__kl",
      "k3",
      r"--config\.opd\.distillation\.kl: 'k3' is not offered: .*gradient of the forward KL.*use exact or top_k or per_token",
    ),
    ("opd__distillation__kl", "k1", r"--config\.opd\.distillation\.kl: 'k1' is not offered: .*a gradient of 0 in expectation"),
    ("opd__group", 1, r"--config\.opd\.group: 1 must be at least 2, or reward_weight 0"),
    ("opd__microbatches", 3, r"--config\.opd\.prompts: 2 do not divide into 3 microbatches"),
    ("opd__overlong_zone", 57, r"--config\.opd\.overlong_zone: "),
    ("rl__minibatches", 3, r"--config\.rl\.prompts: 2 do not divide into 3 minibatches"),
    ("rl__group", 0, r"--config\.rl\.group: 0 must be at least 2"),
    ("rl__group", 1, r"--config\.rl\.group: 1 must be at least 2"),
    ("rl__overlong_zone", 57, r"--config\.rl\.overlong_zone: "),
    ("rl__decode_prompts", 0, r"--config\.rl\.decode_prompts: "),
    ("rl__decode_rows", 9, r"--config\.rl\.decode_rows: "),
    ("rl__loss__aggregation", "mean", r"--config\.rl\.loss\.aggregation: "),
    ("rl__loss__importance_cap", 0.5, r"--config\.rl\.loss\.importance_cap: "),
    ("sft__save_every", 0, r"--config\.sft\.save_every: 0 must be at least 1"),
    ("sft__reasoning_weight", 2.0, r"--config\.sft\.reasoning_weight: 2\.0 must be below answer_weight 1\.0"),
    ("sft__optimizer__schedule", "step", r"--config\.sft\.optimizer\.schedule: 'step' is not known"),
    ("rl__optimizer__rule", "sgd", r"--config\.rl\.optimizer\.rule: 'sgd' is not known; choose adamw or muon"),
    ("midtrain__optimizer__warmup_steps", 9, r"--config\.midtrain\.optimizer\.warmup_steps: 9 of 3 steps"),
    ("midtrain__mixture__persona", -1.0, r"--config\.midtrain\.mixture\.persona: "),
    ("tokenize__rqvae__levels", 0, r"--config\.tokenize\.rqvae\.levels: 0"),
    ("tokenize__last_level", "randm", "choose random or independent or nearest"),
    ("mesh__data", 3, r"--config\.mesh: .*does not fit 1 devices"),
    ("decoding__constraint", "slates", "choose none or slate"),
    ("direct__method", "grpo", "choose rl or sft or distil or scores"),
    ("direct__init", "traces", "choose midtrain or sft or opd or rl"),
    ("prompt__answer", "json", r"--config\.decoding\.constraint: 'slate' is for compact answers, not for json; set it to none"),
  ],
)
def test_a_value_that_no_stage_could_use_is_named(key, value, message):
  with pytest.raises(ConfigError, match=message):
    check_values(tiny_config(**{key: value}))


def test_bad_lines_of_a_prepared_source_cannot_be_skipped():
  with pytest.raises(ConfigError, match=r"--config\.data\.on_error: 'skip'"):
    check_values(tiny_config(data__source="tfds:beauty", data__on_error="skip"))


def test_a_writer_that_is_not_installed_is_found_before_work_starts(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match=r"--config\.wandb_project: .*pip install"):
    check_values(tiny_config(wandb_project="mine"))
  monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
  check_values(tiny_config(wandb_project="mine"))


@pytest.mark.parametrize(
  ("key", "value"),
  [
    *(("sft__optimizer__learning_rate", value) for value in (math.nan, -1.0, 0.0, math.inf)),
    *(("slates__ctr__learning_rate", -1.0), ("tokenize__training__learning_rate", math.nan)),
    *(("seed", -1), ("seed", 10**20), ("data__market_seed", -1)),
    *(("traces__temperature", -1.0), ("rl__temperature", -1.0), ("opd__temperature", math.nan)),
    *(("evaluation__shuffles", -1), ("tokenize__text_pieces", 5), ("tokenize__vectors", "nowhere.npy")),
    ("tokenize__code_vectors", "nowhere.npy"),
    *(("data__market__slate_size", 500), ("slates__validation_share", 1.0), ("mesh__tensor", 0)),
  ],
)
def test_a_number_that_no_stage_could_use_is_named(key, value):
  with pytest.raises(ConfigError, match=rf"^--config\.{key.replace('__', '.')}: "):
    check_values(tiny_config(**{key: value}))


def test_all_faults_are_told_at_once():
  with pytest.raises(ConfigError) as error:
    check_values(tiny_config(seed=-1, rl__group=1, rl__loss__clip_low=1.0, compress__rewriter__chat__timeout=0.0))
  keys = ["seed", "rl.group", "rl.loss.clip_low", "compress.rewriter.chat.timeout"]
  assert sorted(re.findall(r"--config\.(\S+): ", str(error.value))) == sorted(keys)
  with pytest.raises(ConfigError) as error:  # what goes with what, of several stages
    check_values(tiny_config(decoding__constraint="none", rl__overlong_zone=57, opd__overlong_zone=57, mesh__data=3))
  assert sorted(re.findall(r"--config\.(\S+): ", str(error.value))) == ["mesh", "opd.overlong_zone", "rl.overlong_zone"]


# What may be negative: axes of the mesh, and weights of a sum, for which less than nothing is a choice.
NEGATIVE = (
  *(f"mesh.{axis}" for axis in ("data", "fsdp", "tensor")),
  *("data.market.*_weight", "data.market.upstream_exposure", "traces.teacher.*", "*.reward.invalid"),
)


def numeric_leaves():
  """(dotted key, type) of every number in a config, and of every member of a tuple of numbers."""
  config = base()

  def walk(section, prefix):
    for key in section:
      kind, value = section.get_type(key), section[key]
      if isinstance(value, ConfigDict):
        yield from walk(value, f"{prefix}{key}.")
      elif isinstance(value, tuple):
        yield from ((prefix + key, type(member)) for member in value[:1] if isinstance(member, int | float))
      elif kind in (int, float):
        yield prefix + key, kind

  return list(walk(config, ""))


@pytest.mark.parametrize("wrong", ["NaN", "below", "huge"])
def test_every_number_is_checked(wrong):
  config, leaves = base(), numeric_leaves()
  assert len(leaves) > 150
  for key, kind in leaves:
    value = {"NaN": math.nan, "below": kind(-2) if key.startswith("mesh") else kind(-1), "huge": 10**20 if kind is int else 1e300}[wrong]
    if wrong == "NaN" and kind is int:
      continue  # the config itself takes no fraction there
    if wrong == "below" and any(fnmatch.fnmatch(key, allowed) for allowed in NEGATIVE) and not key.startswith("mesh"):
      continue
    right = value_at(config, key)
    config.update_from_flattened_dict({key: (value,) * len(right) if isinstance(right, tuple) else value})
    with pytest.raises(ConfigError, match=rf"--config\.{re.escape(key)}: "):
      check_values(config)
    config.update_from_flattened_dict({key: right})
  check_values(config)


@pytest.mark.parametrize("key", ["traces.teacher.upstream", "data.market.taste_weight", "rl.reward.invalid"])
def test_a_weight_may_be_negative(key):
  config = tiny_config(**{key.replace(".", "__"): -1.0})
  check_values(config)


def test_a_mesh_must_divide_the_model(monkeypatch):
  monkeypatch.undo()  # all eight devices
  fitting = {"midtrain__batch_size": 8, "sft__batch_size": 8, "rl__prompts": 8}
  check_values(tiny_config(mesh__tensor=2, **fitting))
  with pytest.raises(ConfigError, match=r"--config\.mesh\.tensor: 4 parts do not divide the model's 2 key heads"):
    check_values(tiny_config(mesh__tensor=4, **fitting))
  with pytest.raises(ConfigError, match=r"--config\.mesh\.fsdp: only one"):
    check_values(tiny_config(mesh__fsdp=-1, **fitting))


def test_layers_that_there_are_not_cannot_be_kept():
  with pytest.raises(ConfigError, match=r"--config\.prune\.layers: 3"):
    check_values(tiny_config(prune__enabled=True, prune__layers=3))
  check_values(tiny_config(prune__layers=3))  # not asked for


def test_direct_policies_need_something_to_learn_from():
  with pytest.raises(ConfigError, match=r"direct\.init: 'distil' learns from the answers or the reasoning of init; choose sft or rl"):
    check_values(tiny_config(direct__enabled=True, direct__method="distil", direct__init="midtrain"))
  with pytest.raises(ConfigError, match=r"direct\.method: 'scores' is for compact answers, not for json"):
    check_values(tiny_config(direct__enabled=True, direct__method="scores", prompt__answer="json", decoding__constraint="none"))
  with pytest.raises(ConfigError, match=r"direct\.prompts: 3 do not divide into 2 minibatches"):
    check_values(tiny_config(direct__enabled=True, direct__prompts=3, direct__minibatches=2))
  with pytest.raises(ConfigError, match=r"prune\.init: there is no direct policy"):
    check_values(tiny_config(prune__enabled=True, prune__init="direct"))


@pytest.mark.parametrize("name", RL_LOSSES)
def test_every_named_loss_is_one_that_the_stage_can_use(name):
  config = tiny_config()
  before = PolicyLossConfig(**config.rl.loss)
  RL_LOSSES[name](config)
  check_values(config)
  assert (PolicyLossConfig(**config.rl.loss) == before) == (name == "dapo")


@pytest.mark.parametrize("name", RL_LOSSES)
def test_an_rl_algorithm_chosen_by_its_name_changes_rl_alone(name):
  plain = load_config(f"{ROOT / 'configs' / 'small_market.py'}:tiny").to_dict()
  chosen = load_config(f"{ROOT / 'configs' / 'rl_losses.py'}:{name},tiny").to_dict()
  assert chosen["name"] == f"rl_{name}"
  assert {key for key in plain if chosen[key] != plain[key]} - {"name"} == (set() if name == "dapo" else {"rl"})


def test_the_rl_algorithms_are_all_different():
  chosen = [load_config(f"{ROOT / 'configs' / 'rl_losses.py'}:{name},tiny").rl.to_json() for name in RL_LOSSES]
  assert len(set(chosen)) == len(RL_LOSSES)


@pytest.mark.parametrize("arg", ["", ":tiny", ":grpo,gspo"])
def test_one_rl_algorithm_must_be_chosen(arg):
  with pytest.raises(ConfigError, match="dapo, grpo, dr_grpo, gspo, tis"):
    load_config(f"{ROOT / 'configs' / 'rl_losses.py'}{arg}")


def test_a_teacher_of_another_tokenizer_is_refused_before_work_starts(tmp_path):
  def check(**theirs):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(**theirs).to_dict()))
    check_values(tiny_config(rl__init="opd", opd__teacher_run=str(tmp_path)))

  check(model__preset="small", sft__steps=7, data__source="elsewhere")
  with pytest.raises(ConfigError, match=r"has other semantic IDs or another vocabulary(.|\n)*tokenize\.rqvae\.codebook_size: 64 -> null"):
    check(tokenize__rqvae__codebook_size=64)
  with pytest.raises(ConfigError, match="seed: 5 -> 0"):
    check(seed=5)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("variants", ("rulez",), r"\.variants: 'rulez' is not known; choose sids or rules"),
    ("budget", 0, r"\.budget: 0 must be at least 1"),
    ("soft_tokens__per_item", 9, r"\.budget: 8 tokens hold no item, which takes 9"),
    ("splits", ("train",), r"\.splits: the evaluation needs 'test' among them"),
    ("rewriter__judge", "oracle", r"\.rewriter\.judge: 'oracle' is not known; choose ranker or chat"),
    ("rewriter__judge", "chat", r"\.rewriter\.chat: give the url and the model of the endpoint"),
    ("rewriter__metric", "mrr", r"\.rewriter\.metric: 'mrr' is not known"),
    ("rewriter__alpha", (0.3, 1.5), r"\.rewriter\.alpha: 1\.5 must be"),
    ("rewriter__group", 1, r"\.rewriter\.group: 1 must be at least 2"),
    ("rewriter__temperature", 0.0, r"\.rewriter\.temperature: 0\.0 must be above 0"),
    ("rewriter__chat__workers", 0, r"\.rewriter\.chat\.workers: 0 must be at least 1"),
    ("soft_tokens__optimizer__rule", "muon", r"\.soft_tokens\.optimizer\.rule: muon knows the matrices of the decoder alone"),
    ("soft_tokens__optimizer__warmup_steps", 9, r"\.soft_tokens\.optimizer\.warmup_steps: 9 of 3 steps"),
  ],
)
def test_a_compressor_that_could_not_work_is_named(key, value, message):
  on = {"compress__variants": ("soft_tokens", "rewriter"), "compress__budget": 8}
  with pytest.raises(ConfigError, match=r"--config\.compress" + message):
    check_values(tiny_config(**on | {f"compress__{key}": value}))
  check_values(tiny_config(**on))


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("baselines", ("prm", "mlp"), r"\.baselines: 'mlp' is not known; choose prm or listwise_mlp"),
    ("listwise__heads", 3, r"\.listwise\.heads: 3 cannot share a width of 64"),
  ],
)
def test_baselines_that_are_not_there_are_named(key, value, message):
  with pytest.raises(ConfigError, match=r"^--config\.evaluation" + message):
    check_values(tiny_config(**{f"evaluation__{key}": value}))


def test_a_rewriter_is_trained_in_one_process():
  with pytest.raises(ConfigError, match=r"--config\.compress\.variants: the rewriter is trained in one process"):
    check_values(tiny_config(compress__variants=("rewriter",), distributed=True))
  check_values(tiny_config(compress__variants=("soft_tokens",), distributed=True))


def test_values_that_do_not_go_together():
  with pytest.raises(ConfigError, match=r"slates\.size: 12, but only 10 candidates have names"):
    check_values(tiny_config(slates__source="ctr", slates__size=12))
  check_values(tiny_config(slates__size=12))  # unused: the slates are logged ones


# (changes of batches that fit eight devices, what the message says)
UNEVEN = {
  "mid-training": ({"midtrain__batch_size": 4}, r"midtrain\.batch_size: 4 rows at once do not divide over the 8 parts of the mesh"),
  "SFT": ({"sft__batch_size": 12}, r"sft\.batch_size: 12 rows .* make sft\.batch_size a multiple of 8, or the mesh smaller"),
  "RL": ({"rl__prompts": 12}, r"rl\.prompts: 12 rows"),
  "minibatches": (
    {"rl__prompts": 24, "rl__minibatches": 2, "rl__microbatches": 3},
    r"rl\.prompts: 4 rows at once in each of minibatches x microbatches .* make rl\.prompts a multiple of 48",
  ),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_batches_must_divide_over_the_mesh(case, monkeypatch):
  monkeypatch.undo()  # all eight devices
  fitting = {"midtrain__batch_size": 8, "sft__batch_size": 16, "rl__prompts": 8, "rl__group": 3}  # groups divide nothing
  check_values(tiny_config(**fitting))
  changes, message = UNEVEN[case]
  with pytest.raises(ConfigError, match=f"--config.{message}"):
    check_values(tiny_config(**fitting | changes))


def test_the_mesh_must_divide_over_the_processes(monkeypatch):
  monkeypatch.undo()
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  config = tiny_config(midtrain__batch_size=24, sft__batch_size=24, rl__prompts=24, distributed=True)
  check_values(config)  # a program that has not joined the others does not know
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  with pytest.raises(ConfigError, match=r"--config\.mesh: 8 parts \(data x fsdp\) do not divide over 3 processes.* a multiple of 3"):
    check_values(config)


def test_a_value_that_is_set_is_set_for_its_key_and_config_alone():
  config = tiny_config(rl__reward__alpha=0.2)
  assert (config.rl.reward.alpha, config.rl.reward.invalid) == (0.2, None)
  assert tiny_config().rl.reward.alpha is None


@pytest.mark.parametrize(
  ("key", "text", "message"),
  [
    ("rl.stpes", "3", r"config\.rl has no key 'stpes'; did you mean steps"),
    ("steps", "3", r"config has no key 'steps'; did you mean .*(midtrain|sft|rl)\.steps"),
    ("rl.reward.conditon", "v1", "did you mean condition"),
    ("rl.steps", "ten", r"--config\.rl\.steps: expected int \(now 2\), got str 'ten'"),
    ("rl.steps", "2.5", r"expected int \(now 2\), got float '2\.5'"),
    ("rl.reward.alpha", "x", r"expected float \(now None\), got str 'x'"),
    ("prompt.hints", "bought_after", r"expected tuple .*, got str 'bought_after'"),
    ("prompt.knowledge_priming", "maybe", "expected bool"),
  ],
)
def test_overrides_of_the_real_config(key, text, message):
  with pytest.raises(ConfigError, match=message):
    check_overrides(tiny_config(), [(key, text)])
