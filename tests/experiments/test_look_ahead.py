"""What a run's data make of its settings is told before any training: all of it, with keys, once the stage data is done."""

import dataclasses
import re
import shutil

import pytest
from rich.console import Console
from small_runs import tiny_config, write_dataset

from experiments.look_ahead import look_ahead
from experiments.pipeline import choose_stages
from experiments.stages import load_stages
from gr2_jax.data.jsonl import read_items, write_interactions, write_items
from gr2_jax.errors import ConfigError
from gr2_jax.language.vocabulary import FEWEST_PIECES
from gr2_jax.runs.run import Run
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_market, run_here):
  """A run whose stage data is done, on slates of ten by 104 users with histories of 5 to 12."""
  folder = tmp_path_factory.mktemp("ahead")
  config = tiny_config(data__source=str(write_dataset(folder / "dataset", small_market)))
  assert run_here(config, folder / "run", ["data"]) == 0
  return Run(folder / "run", config)


def find_faults(run, **changes):
  """What the run, with changes of its config, would come upon."""
  config = run.config.copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  stages = [stage for stage in choose_stages(None, load_stages(), config) if stage.name != "data"]
  try:
    look_ahead(dataclasses.replace(run, config=config), stages, Progress(Console(quiet=True)), StopSignal())
  except ConfigError as error:
    return [line.strip() for line in str(error).splitlines() if "--config." in line]
  return []


def look(run, **changes):
  """The keys of these faults."""
  return [line.partition(": ")[0].removeprefix("--config.") for line in find_faults(run, **changes)]


def test_a_config_that_goes_with_its_data_has_no_faults(run):
  assert look(run) == []
  assert look(run, slates__source="ctr") == look(run, slates__source="beam") == []


def test_all_faults_are_told_at_once(run):
  changes = {"prompt__max_prompt_tokens": 20, "sft__row_length": 60, "decoding__max_new_tokens": 20, "tokenize__num_candidates": 6}
  changes |= {"compress__variants": ("rewriter",), "compress__rewriter__warmup__row_length": 16}
  keys = ["prompt.max_prompt_tokens", "tokenize.num_candidates", "sft.row_length", "decoding.max_new_tokens"]
  assert look(run, **changes) == [*keys, "compress.rewriter.warmup.row_length"]


def test_the_lengths_that_are_named_as_needed_suffice(run):
  changes = {"prompt__reference": "slot", "prompt__item_fields": ("title",), "sft__row_length": 2000}
  found = find_faults(run, prompt__max_prompt_tokens=20, **changes)
  need = int(re.search(r"takes (\d+) tokens", found[0])[1])
  assert look(run, prompt__max_prompt_tokens=need, **changes) == []
  assert look(run, prompt__max_prompt_tokens=need - 1, **changes) == ["prompt.max_prompt_tokens"]


def test_facts_in_prompts_and_the_reasons_of_a_tree_are_foreseen_before_there_are_any(run):
  shown = {"prompt__facts": ("popularity", "gap", "brand_share"), "prompt__max_prompt_tokens": 400, "sft__row_length": 4000}
  assert look(run, **shown) == look(run, **shown, traces__source="tree", evidence__tree__enabled=True) == []
  assert look(run, **shown, prompt__fact_form="sentences") == ["prompt.max_prompt_tokens"]
  assert look(run, **shown | {"prompt__max_prompt_tokens": 3000}, prompt__fact_form="sentences") == []


def test_an_answer_whose_end_is_not_forced_needs_room_for_what_is_taught(run):
  # Ten codes of three levels and three frames, behind some nine tokens of reasoning.
  assert look(run, decoding__max_new_tokens=33) == []
  assert look(run, decoding__max_new_tokens=32) == ["decoding.max_new_tokens"]
  assert look(run, decoding__max_new_tokens=36, decoding__constraint="none") == ["decoding.max_new_tokens"]
  assert look(run, decoding__max_new_tokens=36, decoding__constraint="none", rl__init="midtrain") == []  # nothing is taught
  assert look(run, decoding__max_new_tokens=8, prompt__direct=True) == []  # an answer then takes what it takes


def test_text_that_a_vocabulary_has_no_room_for(run, tmp_path):
  shutil.copytree(run.directory, tmp_path / "run")
  path = tmp_path / "run" / "data" / "items.jsonl.gz"
  items = [dataclasses.replace(item, title=chr(0x4E00 + row) * 9) for row, item in enumerate(read_items(path).items)]
  write_items(path, items)
  run = dataclasses.replace(run, directory=tmp_path / "run")
  assert look(run, tokenize__text_pieces=FEWEST_PIECES, sft__row_length=60) == ["tokenize.text_pieces", "sft.row_length"]


@pytest.mark.parametrize(
  ("items", "changes", "keys"),
  [
    (2, {}, ["slates.source"]),  # nobody has a request
    (3, {}, ["slates.source"]),  # nobody has a purchase to fit on
    (4, {}, ["slates.source"]),  # nobody has a training request
    (4, {"slates__source": "sasrec"}, ["slates.source"]),
    (4, {"slates__source": "beam"}, []),
    (5, {}, []),
    (5, {"slates__folds": 105}, ["slates.folds"]),
    (5, {"slates__source": "sasrec", "slates__folds": 105}, ["slates.folds"]),
    (
      5,
      {"slates__size": 118, "tokenize__num_candidates": 118, "prompt__max_prompt_tokens": 4000, "decoding__max_new_tokens": 400},
      ["slates.size"],
    ),
  ],
)
def test_users_and_items_that_are_too_few_for_slates(run, tmp_path, small_market, items, changes, keys):
  shutil.copytree(run.directory, tmp_path / "run")
  cut = [dataclasses.replace(of, items=of.items[:items], timestamps=of.timestamps[:items]) for of in small_market.histories]
  write_interactions(tmp_path / "run" / "data" / "interactions.jsonl.gz", cut)
  changes = {"slates__source": "ctr", "sft__row_length": 5000} | changes
  assert look(dataclasses.replace(run, directory=tmp_path / "run"), **changes) == keys


def test_a_vocabulary_that_is_there_is_the_one_that_is_read(tiny_run):
  config = Run.open(tiny_run).config
  assert look(Run(tiny_run, config, main=False)) == []
  assert look(Run(tiny_run, config, main=False), prompt__max_prompt_tokens=9) == ["prompt.max_prompt_tokens"]
