"""Runs that begin at a published model in a folder, or at the policy of another run."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from published_folders import write_published
from safetensors.numpy import load_file
from small_runs import ROOT, tiny_config
from tokenizers import Tokenizer

from experiments.check import check_values
from experiments.exchange import convert
from experiments.flags import load_config
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.language.prompts import present, render_prompt
from gr2_jax.language.tokenizer_files import chat_messages
from gr2_jax.models.hf_folders import open_folder
from gr2_jax.models.published import load_published
from gr2_jax.models.transformer import Decoder
from gr2_jax.runs import stages
from gr2_jax.runs.load import load_slates, load_vocabulary, make_decoder, open_context, prompt_style
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.starts import model_config, open_start, read_init
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.mesh import make_mesh

ROOM = {"sft__row_length": 1024, "prompt__max_prompt_tokens": 900, "midtrain__warmup_rows__enabled": False}
# Where no training moves them, parameters are those that a stage starts from.
STILL = {"midtrain__steps": 0, "midtrain__optimizer__warmup_steps": 0, "sft__steps": 0, "sft__optimizer__warmup_steps": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("published") / "model"
  write_published(folder)
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_here, folder):
  """A run of `written.py:tiny` from the folder, up to an SFT that changes nothing."""
  workdir = tmp_path_factory.mktemp("from_folder") / "run"
  config = tiny_config(model__init=f"hf:{folder}", **ROOM, **STILL)
  assert run_here(config, workdir, ["data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft"]) == 0
  return workdir


def params_of(run, stage):
  opened = Run.open(run)
  model = make_decoder(opened, load_vocabulary(opened))
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  return jax.device_get(load_params(model, Checkpointer(opened.path(stage, "checkpoints")), mesh))


def test_a_run_begins_at_the_weights_and_tokens_of_the_folder(run, folder):
  opened = Run.open(run)
  vocabulary, published = load_vocabulary(opened), json.loads((folder / "config.json").read_text())
  config = model_config(opened.config, vocabulary)
  assert (config.num_layers, config.width, config.vocab_size) == (7, 32, vocabulary.size)
  assert published["vocab_size"] == 320 and vocabulary.size == 512
  table = params_of(run, "sft")["embedding"]
  first = vocabulary.new_token_start
  known = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
  np.testing.assert_array_equal(table[:first], known[:first])
  a = vocabulary.candidate_start
  assert np.abs(table[a] - known[vocabulary.encode("A")].mean(axis=0)).max() < 0.5 * known[:first].std()
  new, spread = table[vocabulary.sid_start :], known[:first].std(axis=0)
  assert np.abs(new.mean(axis=0) - known[:first].mean(axis=0)).max() < 0.1 * spread.max()
  assert len(np.unique(new, axis=0)) == len(new)
  np.testing.assert_allclose(new.std(axis=0), 0.1 * spread, rtol=0.5)


def test_prompts_are_written_in_the_chat_template(run):
  context = open_context(Run.open(run))
  opened = Run.open(run)
  slate = load_slates(opened, context.catalogue, "test")[0]
  text = context.vocabulary.decode(
    render_prompt(slate, present(len(slate.candidates), "upstream", (0, 0, 0)), context, prompt_style(opened)).tokens
  )
  assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_rl_begins_at_the_kept_policy_of_another_run(tmp_path, run, run_here):
  config = tiny_config(model__init=f"run:{run}/sft", rl__init="model", rl__steps=0, rl__optimizer__warmup_steps=0, **ROOM)
  names = [needed.name for needed in stages.needed_stages(load_stages(), config)]
  assert not {"midtrain", "traces", "sft"} & {*names}
  workdir = tmp_path / "run"
  assert run_here(config, workdir, ["data", "tokenize", "slates", "evidence", "rl"]) == 0
  jax.tree.map(np.testing.assert_array_equal, params_of(workdir, "rl"), params_of(run, "sft"))
  assert (workdir / "tokenize" / "sids.npz").read_bytes() == (run / "tokenize" / "sids.npz").read_bytes()
  assert find_policy(Run.open(workdir), "rl").prior is False


def test_another_runs_policy_is_asked_about_the_same_items(tmp_path, run, run_here, capsys):
  config = tiny_config(model__init=f"run:{run}/sft", rl__init="model", data__market__num_items=140, **ROOM)
  assert run_here(config, tmp_path / "run", ["data", "tokenize"]) != 0
  assert "is about other items (120, here 140" in capsys.readouterr().err


def test_an_exported_policy_keeps_the_published_tokens_and_makes_the_same_prompts(tmp_path, run, folder):
  to = tmp_path / "out"
  assert convert(str(run / "sft"), str(to), None, export=True) == 0
  opened, found = Run.open(run), open_folder(to)
  context, style = open_context(opened), prompt_style(opened)
  assert found.config == model_config(opened.config, context.vocabulary)
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  jax.tree.map(np.testing.assert_array_equal, load_published(found, found.config, mesh), params_of(run, "sft"))
  theirs, ours = (Tokenizer.from_file(str(of / "tokenizer.json")) for of in (folder, to))
  for text in ("a gentle rose shampoo <s_x>", "bought 41 times;", " <|im_end|> 护"):
    assert theirs.encode(text).ids == ours.encode(text).ids
  template = (to / "chat_template.jinja").read_text()
  for slate in load_slates(opened, context.catalogue, "test")[:5]:
    prompt = render_prompt(slate, present(len(slate.candidates), "upstream", (0, 0, 0)), context, style).tokens
    messages = chat_messages(context.vocabulary, prompt)
    text = ImmutableSandboxedEnvironment().from_string(template).render(messages=messages, add_generation_prompt=True)
    assert ours.encode(text, add_special_tokens=False).ids == prompt
  settings = json.loads((to / "tokenizer_config.json").read_text())
  assert (settings["eos_token"], settings["pad_token"]) == ("<|im_end|>", "<|endoftext|>") and "bos_token" not in settings
  raw = json.loads((to / "config.json").read_text())
  assert raw["vocab_size"] == context.vocabulary.size and raw["eos_token_id"] == context.vocabulary.eos_id


@pytest.fixture
def one_device(monkeypatch):
  """The check is against this machine's devices, and the tests' eight are not those of a user."""
  first = jax.devices()[:1]
  monkeypatch.setattr("gr2_jax.training.mesh.jax.devices", lambda: first)


def test_adapters_are_all_that_is_trained_and_kept_of_a_published_model(tmp_path, run, run_here, folder):
  """Each stage stands on the merged one before; what its checkpoints hold is small."""
  lora = {"model__lora__rank": 2, "model__lora__alpha": 4.0}
  short = {"midtrain__steps": 2, "midtrain__warmup_rows__enabled": False, "sft__steps": 2, "sft__save_every": 1}
  config = tiny_config(model__init=f"hf:{folder}", **(ROOM | lora | short))
  workdir = tmp_path / "run"
  assert run_here(config, workdir, ["data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft"]) == 0
  on = [Checkpointer(workdir / stage / "checkpoints").read_about()["adapters"]["on"] for stage in ("midtrain", "sft")]
  assert on[0]["folder"] == str(folder) and on[1] == "../../midtrain/checkpoints"
  trained, begun = params_of(workdir, "sft"), params_of(run, "sft")
  first = load_vocabulary(Run.open(run)).new_token_start
  np.testing.assert_array_equal(trained["embedding"][:first], begun["embedding"][:first])
  assert np.abs(trained["embedding"][first:] - begun["embedding"][first:]).max() > 1e-6
  np.testing.assert_array_equal(trained["layers"]["mlp_norm"]["scale"], begun["layers"]["mlp_norm"]["scale"])
  assert np.abs(trained["layers"]["q"]["kernel"] - begun["layers"]["q"]["kernel"]).max() > 1e-6


def other_folder(tmp_path, folder, name, change):
  copy = tmp_path / name
  shutil.copytree(folder, copy)
  change(copy)
  return copy


BROKEN = {
  "gone": (shutil.rmtree, r"config\.json is missing"),
  "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
  "cut": (lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]), "cut short"),
  "tokenizer of another model": (lambda folder: edit(folder / "config.json", vocab_size=200), "its config makes it"),
  "vision": (lambda folder: edit(folder / "config.json", vision_config={}), "reads images"),
}


def edit(path: pathlib.Path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_holds_no_model_is_said_before_anything_is_written(tmp_path, folder, name):
  change, message = BROKEN[name]
  config = tiny_config(model__init=f"hf:{other_folder(tmp_path, folder, 'copy', change)}", **ROOM)
  with pytest.raises(ConfigError, match=rf"--config\.model\.init: .*{message}"):
    check_values(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model__init": "smollm2"}, "none of random, hf:DIR"),
    ({"model__init": "run:runs"}, "none of random, hf:DIR"),
    ({"model__init": "run:nowhere/sft"}, "nowhere is no run"),
    ({"rl__init": "model"}, r"--config\.rl\.init: 'model' begins where model.init says, which is 'random'"),
    ({"sft__init": "model"}, r"--config\.sft\.init: 'model' begins"),
  ],
)
def test_what_nothing_can_begin_at_is_a_fault_of_the_config(changes, message):
  with pytest.raises(ConfigError, match=message):
    check_values(tiny_config(**changes))


def test_scored_policies_begin_at_random_numbers(folder):
  config = load_config(f"{ROOT / 'configs' / 'amazon.py'}:beauty,tiny")
  with config.unlocked():
    config.model.init = f"hf:{folder}"
  with pytest.raises(ConfigError, match=r"scored policy reads packed facts.*--from=RUN"):
    check_values(config)


def test_a_policy_of_another_size_is_no_start(run):
  opened = Run.open(run)
  vocabulary = load_vocabulary(opened)
  other = Decoder(dataclasses.replace(model_config(opened.config, vocabulary), num_layers=3))
  with pytest.raises(RunError, match=r"another model \(num_layers: 7, here 3\)"):
    open_start(tiny_config(model__init=f"run:{run}/sft"), other, vocabulary)


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("random", ("random", pathlib.Path(), "")),
    ("hf:a/b", ("hf", pathlib.Path("a/b"), "")),
    ("run:runs/a/sft", ("run", pathlib.Path("runs/a"), "sft")),
  ],
)
def test_the_start_is_read_from_text(text, found):
  assert tuple(read_init(text)) == found


@pytest.mark.parametrize("name", ["smollm2", "qwen3_0_6b", "gemma3_1b"])
@pytest.mark.usefixtures("one_device")
def test_configs_of_published_models_hold_with_a_folder(folder, name):
  config = load_config(f"{ROOT / 'configs' / 'amazon.py'}:beauty,{name},tiny")
  with config.unlocked():
    config.model.init = f"hf:{folder}"
  check_values(config)
