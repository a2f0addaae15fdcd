"""What decides an artifact, as values that can be compared."""

import pytest
from toy_runs import CONFIG, make_config

from configs.base import base
from experiments.check import check_values
from gr2_jax.runs.fingerprints import ADDED, config_to_json, fill_added, fingerprint_of, flat_keys, hash_path, list_differences, value_at


def test_list_differences():
  assert list_differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
    "a.c: 2 -> 5",
    "d: 3 -> (none)",
    "e: (none) -> 4",
  ]
  assert list_differences(CONFIG, CONFIG) == []
  assert list_differences({"a": None}, {"a": {"b": 1}}) == ['a: null -> {"b": 1}']


def test_a_config_as_it_stands_in_its_file():
  assert config_to_json(make_config()) == {**CONFIG, "rl": {"steps": 4, "sizes": [1, 2]}}


def test_dotted_keys():
  config = make_config()
  assert set(flat_keys(CONFIG)) == {"seed", "data", "data.source", "data.users", "rl", "rl.sizes", "rl.steps"}
  assert value_at(config, "rl.steps") == 4 and value_at(config, "seed") == 3
  with pytest.raises(KeyError):
    value_at(config, "rl.rate")


def test_a_file_is_its_content_and_a_folder_its_names_and_contents(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  for folder in (one, two):
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("same")
  assert hash_path(one) == hash_path(two) and hash_path(one / "inner" / "a.txt") == hash_path(two / "inner" / "a.txt")
  (two / "inner" / "a.txt").rename(two / "inner" / "b.txt")
  assert hash_path(one) != hash_path(two) and hash_path(one / "inner" / "a.txt") == hash_path(two / "inner" / "b.txt")
  (one / "inner" / "a.txt").write_text("other")
  assert hash_path(one / "inner" / "a.txt") != hash_path(two / "inner" / "b.txt")


def test_fingerprints_do_not_depend_on_the_order_of_keys():
  assert fingerprint_of({"a": 1, "b": [1, 2]}) == fingerprint_of({"b": [1, 2], "a": 1}) != fingerprint_of({"a": 1, "b": [2, 1]})


def test_an_older_config_has_what_its_run_did_and_no_section_that_it_lacked():
  old = {"seed": 3, "answer": {"form": "scored", "past": 4}}
  assert fill_added(old) == {"seed": 3, "answer": {"form": "scored", "past": 4, "texts": False, "text_dropout": 0.2, "names": False}}
  assert old["answer"] == {"form": "scored", "past": 4} and fill_added(CONFIG)["data"] == CONFIG["data"] | {"split": "leave_one_out"}


def test_a_setting_deep_inside_is_added_where_its_section_is():
  old = {"midtrain": {"form": "packed", "packed": {"folds": 2}}}
  assert fill_added(old)["midtrain"]["packed"] == {"folds": 2, "chosen_by": "loss"} and old["midtrain"]["packed"] == {"folds": 2}
  assert "packed" not in fill_added({"midtrain": {"form": "tokens"}})["midtrain"]


def test_what_older_runs_are_given_are_settings_of_today_and_values_that_they_hold():
  config = base().lock()
  for key, value in ADDED.items():
    assert type(value_at(config_to_json(config), key)) is type(value)
    config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
  check_values(config)
