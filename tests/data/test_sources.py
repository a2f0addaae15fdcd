"""Sources by name: the user's own log through TFDS equals the JSONL files it is made of, and no folder reads another's."""

import gzip
import json

import pytest

from gr2_jax.data import jsonl
from gr2_jax.data.schema import DataError, History, Item, Slate
from gr2_jax.data.sources import SOURCES, load_source

ITEMS = (Item("b", "ハサミ", "Brand", ("X", "Y"), "long", 9.99), Item("a", ""), Item("c", "see", price=0.1))
HISTORIES = (History("v", ("a", "b", "a"), (0, 5, 2**36)), History("u", ("c",)))
SLATES = (
  Slate("u", ("a",), ("b", "c"), (0, 2), (0.1, -3.5), (1.0, 0.25), 0.3, 1_400_000_000, "same_day"),
  Slate("v", ("c", "c"), ("a", "c", "b"), (1, 0, 1)),
)


def write_log(folder, items=ITEMS, histories=HISTORIES, **slates):
  jsonl.write_items(folder / "items.jsonl.gz", items)
  jsonl.write_interactions(folder / "interactions.jsonl", histories)
  for split, records in slates.items():
    jsonl.write_slates(folder / f"slates_{split}.jsonl", records)
  return folder


def test_an_own_log_equals_its_files(tmp_path):
  folder = write_log(tmp_path / "log", train=SLATES, test=SLATES[1:])
  catalogue, histories, slates = load_source("own_log", manual_dir=folder, own_dir=tmp_path / "run" / "tfds")
  assert catalogue == (expected := jsonl.read_items(folder / "items.jsonl.gz")) and catalogue.items == ITEMS
  assert histories == jsonl.read_interactions(folder / "interactions.jsonl", expected) == HISTORIES
  assert slates == {split: jsonl.read_slates(folder / f"slates_{split}.jsonl", expected) for split in ("train", "test")}
  assert list((tmp_path / "run" / "tfds").rglob("*.array_record*"))


def test_slates_are_read_where_there_are_any(tmp_path):
  folder = write_log(tmp_path / "log")
  assert load_source("own_log", manual_dir=folder, own_dir=tmp_path / "tfds")[2] == {}
  jsonl.write_slates(folder / "slates.jsonl", SLATES)
  assert load_source("own_log", manual_dir=folder, own_dir=tmp_path / "tfds")[2] == {"train": SLATES}


def test_what_was_prepared_before_is_not_read_again(tmp_path):
  load_source("own_log", manual_dir=write_log(tmp_path / "one", train=SLATES), own_dir=tmp_path / "tfds")
  other = write_log(tmp_path / "other", (*ITEMS, Item("d", "new")), HISTORIES[1:])
  catalogue, histories, slates = load_source("own_log", manual_dir=other, own_dir=tmp_path / "tfds")
  assert (len(catalogue), histories, slates) == (4, HISTORIES[1:], {})


def test_own_slates_alone(tmp_path):
  folder = write_log(tmp_path / "log", train=SLATES)
  (folder / "interactions.jsonl").unlink()
  assert load_source("own_log", manual_dir=folder, own_dir=tmp_path / "tfds")[1:] == (None, {"train": SLATES})


@pytest.fixture
def shared(tmp_path, monkeypatch):
  monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "shared"))
  return tmp_path / "shared"


def write_raw(folder, user="U1", title="Comb"):
  folder.mkdir(parents=True, exist_ok=True)
  review = {"reviewerID": user, "asin": "B1", "unixReviewTime": 86_400}
  (folder / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(json.dumps(review).encode(), mtime=0))
  (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress(f"{{'asin': 'B1', 'title': '{title}'}}\n".encode(), mtime=0))
  return folder


def test_public_data_is_prepared_outside_the_run_once_for_each_content(tmp_path, shared):
  def load(manual_dir):
    catalogue, histories, slates = load_source("beauty", manual_dir=manual_dir, own_dir=tmp_path / "run")
    assert slates == {}
    return catalogue.items[0].title, histories

  def prepared():
    return {path.relative_to(shared).parts[:2] for path in shared.rglob("*.array_record*")}

  one = History("U1", ("B1",), (86_400,))
  assert load(write_raw(tmp_path / "a")) == ("Comb", (one,))
  assert len(prepared()) == 1 and not (tmp_path / "run").exists()
  assert load(write_raw(tmp_path / "copy")) == ("Comb", (one,)) and len(prepared()) == 1
  assert load(write_raw(tmp_path / "b", user="U2"))[1][0].user == "U2"
  assert load(write_raw(tmp_path / "a", title="Brush")) == ("Brush", (one,)) and len(prepared()) == 3
  assert load(write_raw(shared / "downloads" / "manual", title="Soap")) == ("Soap", (one,))  # where TFDS looks without a folder
  assert load(None) == ("Soap", (one,)) and len(prepared()) == 4


def test_a_manual_dir_without_the_files_is_no_reason_to_download(tmp_path, shared, monkeypatch):
  monkeypatch.setattr("tensorflow_datasets.download.DownloadManager.download", lambda *_: pytest.fail("asked for the network"))
  (tmp_path / "empty").mkdir()
  for folder in (tmp_path / "nowhere", tmp_path / "empty"):
    with pytest.raises(DataError, match=r"config\.data\.manual_dir.*reviews_Beauty_5\.json\.gz or meta_Beauty"):
      load_source("beauty", manual_dir=folder, own_dir=tmp_path / "run")


def test_a_download_that_fails_names_the_way_out(tmp_path, shared, monkeypatch):
  def fail(*_):
    raise OSError("no network")

  monkeypatch.setattr("tensorflow_datasets.download.DownloadManager.download", fail)
  with pytest.raises(DataError, match=r"meta_Beauty\.json\.gz: cannot be downloaded \(no network\).*--config\.data\.manual_dir"):
    load_source("beauty", manual_dir=None, own_dir=tmp_path / "run")


def test_what_cannot_be_used_is_named(tmp_path):
  with pytest.raises(DataError, match=r"config\.data\.source") as refused:
    load_source("books", manual_dir=None, own_dir=tmp_path / "tfds")
  assert all(f"tfds:{name}" in str(refused.value) for name in SOURCES)
  (tmp_path / "empty").mkdir()
  for folder in (None, tmp_path / "nowhere", tmp_path / "empty"):
    with pytest.raises(DataError, match=r"config\.data\.manual_dir"):
      load_source("own_log", manual_dir=folder, own_dir=tmp_path / "tfds")
  (tmp_path / "empty" / "items.jsonl").write_text("{}\n")
  with pytest.raises(DataError, match=r"items\.jsonl:1: title"):
    load_source("own_log", manual_dir=tmp_path / "empty", own_dir=tmp_path / "tfds")
