"""The config for a folder of one's own: what it reads from the folder, and that its tiny form runs on one."""

import json

import pytest
from small_runs import ROOT, write_dataset

from experiments.check import check_values
from experiments.flags import load_config
from experiments.pipeline import execute
from experiments.stages.evaluation import name_data
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.errors import ConfigError

PATH = str(ROOT / "configs" / "own_data.py")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "items.jsonl").write_text('{"item": "B1", "title": "Rose Toner"}\n')
  (tmp_path / "interactions.jsonl").write_text('{"user": "u1", "items": ["B1"]}\n')
  return tmp_path


def test_slates_are_made_where_there_are_none(folder):
  config = load_config(f"{PATH}:{folder},seed=3")
  assert (config.data.source, config.slates.source, config.slates.size, config.seed) == (str(folder), "ctr", 10, 3)
  assert config.tokenize.rqvae.levels is config.tokenize.rqvae.codebook_size is None
  assert config.name == "own_data"


@pytest.mark.parametrize("name", ["slates_train.jsonl", "slates_test.jsonl.gz"])
def test_slates_that_are_there_are_re_ranked(folder, name):
  (folder / name).touch()
  assert load_config(f"{PATH}:{folder}").slates.source == "log"


def test_longer_slates_get_more_room(folder):
  short, long = (load_config(f"{PATH}:{folder},candidates={count}") for count in (5, 30))
  assert short.slates.size == 5 and long.slates.size == 10 and long.tokenize.num_candidates == 30
  assert long.prompt.max_prompt_tokens - short.prompt.max_prompt_tokens == 25 * 20
  for config in (short, long):
    assert config.sft.row_length > config.prompt.max_prompt_tokens + config.decoding.max_new_tokens


@pytest.mark.parametrize("arg", ["", ":seed=1", ":/nowhere/at/all", ":/nowhere,tiny"])
def test_a_folder_must_be_named_and_there(arg):
  with pytest.raises(ConfigError, match=r"config argument: .*name the"):
    load_config(PATH + arg)


def test_a_file_that_lies_there_twice_is_named(folder):
  for name in ("slates_train.jsonl", "slates_train.jsonl.gz"):
    (folder / name).touch()
  with pytest.raises(ConfigError, match="slates_train"):
    load_config(f"{PATH}:{folder}")


@pytest.mark.parametrize(
  ("source", "manual_dir", "name"),
  [
    ("synthetic", "", "synthetic market"),
    ("tfds:beauty", "", "beauty"),
    ("tfds:beauty", "/downloads", "beauty"),
    ("tfds:own_log", "/data/my shop", "my shop"),
    ("/data/my_shop/", "", "my_shop"),
  ],
)
def test_data_have_a_name_of_their_own(source, manual_dir, name):
  config = load_config(f"{PATH}:tiny").copy_and_resolve_references()
  config.data.source, config.data.manual_dir = source, manual_dir
  assert name_data(config.data) == name


@pytest.mark.slow
@pytest.mark.parametrize("logged", [False, True])
def test_the_tiny_form_runs_on_a_folder(logged, in_process, tmp_path):
  market = make_market(MarketConfig(num_items=120, train_slates=300, validation_slates=30, test_slates=30, slate_size=8), seed=0)
  write_dataset(tmp_path / "my_data", market)
  if not logged:
    for file in (tmp_path / "my_data").glob("slates_*"):
      file.unlink()
  config = load_config(f"{PATH}:{tmp_path / 'my_data'},tiny")
  with in_process():
    check_values(config)
    assert execute(config, str(tmp_path / "run"), None, ["test"]) == 0
  results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
  assert results["dataset"] == "my_data" and {"upstream", "lambdamart", "policy"} <= set(results["orders"])
  assert (tmp_path / "run" / "evaluation" / "card.md").read_text().startswith("# own_data: my_data, seed 0\n\n**The RL policy ")
