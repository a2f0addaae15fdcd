"""The builders of a user's own logs: JSONL in, prepared, and the same records out."""

import pytest

from gr2_jax.data import jsonl, prepared
from gr2_jax.data.schema import DataError, History, Item, Slate
from gr2_jax.data.slate_logs import InteractionLog, SlateLog

ITEMS = (Item("b", "ハサミ", "Brand", ("X", "Y"), "long", 9.99), Item("a", ""), Item("c", "see", price=0.1))
HISTORIES = (History("v", ("a", "b", "a"), (0, 5, 2**36)), History("u", ("c",)))
SLATES = (
  Slate("u", ("a",), ("b", "c"), (0, 2), (0.1, -3.5), (1.0, 0.25), 0.3, 1_400_000_000, "same_day"),
  Slate("v", ("c", "c"), ("a", "c", "b"), (1, 0, 1)),
)


@pytest.fixture
def folder(tmp_path):
  jsonl.write_items(tmp_path / "log" / "items.jsonl.gz", ITEMS)
  jsonl.write_interactions(tmp_path / "log" / "interactions.jsonl", HISTORIES)
  return tmp_path / "log"


def _prepared(builder_class, config, tmp_path, folder):
  builder = builder_class(config=config, data_dir=tmp_path / "data")
  prepared.prepare(builder, folder)
  return builder


def test_interaction_log_round_trip(tmp_path, folder):
  assert prepared.prepared_histories(_prepared(InteractionLog, "interactions", tmp_path, folder)) == HISTORIES
  assert prepared.prepared_catalogue(_prepared(InteractionLog, "items", tmp_path, folder)).items == ITEMS
  source = InteractionLog(config="interactions", data_dir=tmp_path / "data").as_data_source(split="all_records")
  assert [example["user"] for example in (source[1], source[0])] == [b"u", b"v"]  # random access, in the order of the file


def test_a_single_slates_file_becomes_train(tmp_path, folder):
  jsonl.write_slates(folder / "slates.jsonl.gz", SLATES)
  assert prepared.prepared_slates(_prepared(SlateLog, "slates", tmp_path, folder)) == {"train": SLATES}
  assert prepared.prepared_catalogue(_prepared(SlateLog, "items", tmp_path, folder)).items == ITEMS


def test_split_files_become_splits(tmp_path, folder):
  jsonl.write_slates(folder / "slates_train.jsonl", SLATES * 20)
  jsonl.write_slates(folder / "slates_test.jsonl", SLATES[1:])
  loaded = prepared.prepared_slates(_prepared(SlateLog, "slates", tmp_path, folder))
  assert loaded == {"train": SLATES * 20, "test": SLATES[1:]}


def test_files_that_cannot_be_used_are_named(tmp_path, folder):
  with pytest.raises(DataError, match=r"slates\.jsonl\[\.gz\]: not found"):
    _prepared(SlateLog, "slates", tmp_path, folder)
  jsonl.write_slates(folder / "slates_test.jsonl", [])
  with pytest.raises(DataError, match=r"slates_test\.jsonl: holds no slate"):
    _prepared(SlateLog, "slates", tmp_path, folder)
  jsonl.write_slates(folder / "slates.jsonl", SLATES)
  with pytest.raises(DataError, match=r"slates\.jsonl: slates_test\.jsonl lies beside it"):
    _prepared(SlateLog, "slates", tmp_path, folder)
  jsonl.write_items(folder / "items.jsonl", ITEMS)
  with pytest.raises(DataError, match=r"items\.jsonl lies beside it"):
    _prepared(InteractionLog, "items", tmp_path, folder)


def test_bad_lines_and_unknown_items_stop_with_their_place(tmp_path, folder):
  jsonl.write_interactions(folder / "interactions.jsonl", (*HISTORIES, History("w", ("a", "z"))))
  with pytest.raises(DataError, match=r"interactions\.jsonl:3: items: unknown item 'z'"):
    _prepared(InteractionLog, "interactions", tmp_path, folder)
  (folder / "slates.jsonl").write_text('{"user": "u"}\n')
  with pytest.raises(DataError, match=r"slates\.jsonl:1: history: missing"):
    _prepared(SlateLog, "slates", tmp_path, folder)


def test_prepared_data_is_never_overwritten(tmp_path, folder):
  _prepared(InteractionLog, "interactions", tmp_path, folder)
  jsonl.write_interactions(folder / "interactions.jsonl", HISTORIES[:1])
  assert prepared.prepared_histories(_prepared(InteractionLog, "interactions", tmp_path, folder)) == HISTORIES
