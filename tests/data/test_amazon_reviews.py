"""The Amazon builder on small files: parsing of lines, grouping, and preparation without TensorFlow or a network."""

import gzip
import json
import sys

import pytest

from gr2_jax.data import prepared
from gr2_jax.data.amazon_reviews import (
  AmazonReviews2014,
  Review,
  collect_items,
  group_reviews,
  parse_metadata_line,
  parse_review_line,
)
from gr2_jax.data.schema import DataError, History, Item

DAY = 86_400
REVIEW = b'{"reviewerID": "U1", "asin": "B2", "reviewerName": "x", "helpful": [0, 1], "overall": 5.0, "unixReviewTime": 1391040000}'


def test_review_line():
  assert parse_review_line(REVIEW) == Review("U1", "B2", 1391040000)
  with pytest.raises(DataError, match="asin: missing"):
    parse_review_line(b'{"reviewerID": "U1", "unixReviewTime": 1}')
  for time in ('"1"', "-1", "1391040000000"):
    with pytest.raises(DataError, match=f"unixReviewTime: {time.replace(chr(34), chr(39))} .*Unix seconds"):
      parse_review_line(b'{"reviewerID": "U1", "asin": "B", "unixReviewTime": ' + time.encode() + b"}")


def test_metadata_line():
  line = (
    b"{'asin': 'B1', 'title': 'Rock &amp; Roll\\n  \"Red\"', 'price': 9.99, 'brand': 'L\\'Or', 'description': 'it\\'s good', "
    b"'salesRank': {'Beauty': 3}, 'related': {'also_bought': ['B2']}, 'categories': [['Baby', 'Care'], ['Beauty', 'Hair Care', 'Oils']]}"
  )
  expected = Item("B1", 'Rock & Roll "Red"', "L'Or", ("Hair Care", "Oils"), "it's good", 9.99)
  assert parse_metadata_line(line, "Beauty") == expected
  assert parse_metadata_line(line, "Sports & Outdoors").categories == ("Baby", "Care")
  assert parse_metadata_line(b"{'asin': 'B1', 'brand': 'Unknown', 'title': '', 'price': -1, 'categories': [[]]}") == Item("B1", "")
  assert parse_metadata_line(b"{'asin': 'B1', 'price': 1e999}\n") == Item("B1", "")


@pytest.mark.parametrize("line", [b"{'asin': open('x')}", b"{'asin': ", b"{[]: 1}", b"(" * 5000, b"{'asin': 'B\x00'}"])
def test_metadata_that_is_no_literal_is_refused_not_run(line):
  with pytest.raises(DataError, match="not a Python literal"):
    parse_metadata_line(line)


def test_metadata_without_an_id_or_not_a_dict():
  with pytest.raises(DataError, match="asin: missing"):
    parse_metadata_line(b"{'title': 'x'}")
  with pytest.raises(DataError, match="byte 12: not UTF-8"):
    parse_metadata_line(b"{'title': '\xff'}")
  with pytest.raises(DataError, match="a list, not a dict"):
    parse_metadata_line(b"['asin']")


def test_grouping_is_chronological_and_keeps_file_order_within_a_day():
  reviews = [Review("v", "b", DAY), Review("u", "c", 2 * DAY), Review("u", "a", DAY), Review("v", "a", DAY), Review("u", "b", DAY)]
  assert group_reviews(reviews) == (
    History("v", ("b", "a"), (DAY, DAY)),
    History("u", ("a", "b", "c"), (DAY, DAY, 2 * DAY)),
  )


def test_only_wanted_metadata_is_evaluated(tmp_path):
  path = tmp_path / "meta.json"
  path.write_bytes(b"{'asin': 'OTHER', this is never looked at}\n{'asin': '\xff'}\n{'asin': 'B1', 'title': 'one'}\n")
  assert collect_items(["B2", "B1", "B2"], path, "Beauty") == (Item("B2", ""), Item("B1", "one"))
  path.write_bytes(b"{'asin': 'B1', 'title': 'one'}\n{'asin': 'B2', broken}\n")
  with pytest.raises(DataError, match=r"meta\.json:2: line: not a Python literal"):
    collect_items(["B2", "B1"], path, "Beauty")


def _reviews(*triples):
  lines = (json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t}) for u, i, t in triples)
  return gzip.compress("\n".join(lines).encode())


def test_prepared_from_manual_dir(tmp_path):
  had_tensorflow = "tensorflow" in sys.modules
  manual = tmp_path / "manual"
  manual.mkdir()
  reviews = (("U1", "B2", 2 * DAY), ("U2", "B1", DAY), ("U1", "B3", DAY), ("U1", "B1", DAY))
  (manual / "reviews_Toys_and_Games_5.json.gz").write_bytes(_reviews(*reviews))
  metadata = b"{'asin': 'B9'}\n{'asin': 'B1', 'title': 'T\xc3\xb6y', 'price': 4.99, 'categories': [['Toys & Games', 'Cars']]}\n"
  (manual / "meta_Toys_and_Games.json.gz").write_bytes(gzip.compress(metadata))

  histories, items = (AmazonReviews2014(config=name, data_dir=tmp_path / "data") for name in ("toys", "toys_items"))
  with pytest.raises(DataError, match="not prepared"):
    prepared.prepared_histories(histories)
  for builder in (histories, items):
    prepared.prepare(builder, manual)
  assert prepared.prepared_histories(histories) == (
    History("U1", ("B3", "B1", "B2"), (DAY, DAY, 2 * DAY)),
    History("U2", ("B1",), (DAY,)),
  )
  assert prepared.prepared_catalogue(items).items == (Item("B3", ""), Item("B1", "Töy", None, ("Cars",), None, 4.99), Item("B2", ""))
  with pytest.raises(DataError, match="no field 'items'"):
    prepared.prepared_histories(items)
  assert list((tmp_path / "data").rglob("*.array_record*"))
  assert ("tensorflow" in sys.modules) == had_tensorflow  # neither writing nor reading asks for it


def test_files_that_are_not_there_are_downloaded(tmp_path, monkeypatch):
  asked = []

  def download(_, urls):
    asked.append(urls)
    path = tmp_path / "fetched.json.gz"
    path.write_bytes(_reviews(("U1", "B2", DAY)))
    return dict.fromkeys(urls, path)

  builder = AmazonReviews2014(config="beauty", data_dir=tmp_path / "data")
  monkeypatch.setattr("tensorflow_datasets.download.DownloadManager.download", download)
  prepared.prepare(builder)
  assert asked == [{"reviews": "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_Beauty_5.json.gz"}]
  assert prepared.prepared_histories(builder) == (History("U1", ("B2",), (DAY,)),)


def test_a_bad_review_names_its_line_and_leaves_nothing_prepared(tmp_path):
  manual = tmp_path / "manual"
  manual.mkdir()
  (manual / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(REVIEW + b"\n{}\n"))
  builder = AmazonReviews2014(config="beauty", data_dir=tmp_path / "data")
  with pytest.raises(DataError, match=r"reviews_Beauty_5\.json\.gz:2: reviewerID: missing") as refused:
    prepared.prepare(builder, manual)
  assert "on_error" not in str(refused.value)  # TFDS sources skip nothing
  assert not list((tmp_path / "data").rglob("*.array_record*"))
