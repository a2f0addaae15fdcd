"""TFDS builder of the Amazon review data of 2014 (5-core): Beauty, Sports and Toys as histories and items."""

import ast
import dataclasses
import html
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import tensorflow_datasets as tfds

from gr2_jax.data import prepared
from gr2_jax.data.jsonl import as_id, as_time, decode_line, parse_object, read_lines, required
from gr2_jax.data.schema import DataError, History, Item, check_item
from gr2_jax.data.slate_logs import Splits, numbered

ADDRESS = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CITATION = """
@inproceedings{mcauley2015image,
  title={Image-based recommendations on styles and substitutes},
  author={McAuley, Julian and Targett, Christopher and Shi, Qinfeng and van den Hengel, Anton},
  booktitle={SIGIR}, year={2015}}
@inproceedings{he2016ups,
  title={Ups and downs: Modeling the visual evolution of fashion trends with one-class collaborative filtering},
  author={He, Ruining and McAuley, Julian}, booktitle={WWW}, year={2016}}
"""
# The item id of a metadata line, found without evaluating the line: the file has twenty times the items that are kept.
_ITEM_ID = re.compile(rb"'asin': '([^'\\]*)'")


@dataclasses.dataclass(frozen=True)
class Review:
  """Who reviewed what, and when (Unix seconds at day resolution)."""

  user: str
  item: str
  timestamp: int


def parse_review_line(line: bytes) -> Review:
  """One line of a reviews file, which is JSON; raises DataError naming the field."""
  record = parse_object(line)
  return Review(required(record, "reviewerID", as_id), required(record, "asin", as_id), required(record, "unixReviewTime", as_time))


def _clean(record: Mapping[str, object], name: str) -> str:
  value = record.get(name)
  return " ".join(html.unescape(value).split()) if isinstance(value, str) else ""


def _category_path(paths: object, department: str) -> tuple[str, ...]:
  """The first path inside the department, without the department's own name; any first path when there is none."""
  if not isinstance(paths, list) or not all(isinstance(path, list) and path for path in paths):
    return ()
  paths = [tuple(html.unescape(str(name)) for name in path) for path in paths]
  inside = next((path[1:] for path in paths if path[0] == department), None)
  return inside if inside is not None else next(iter(paths), ())


def parse_metadata_line(line: bytes, department: str = "") -> Item:
  """One line of a metadata file, which is a Python literal; raises DataError naming what is wrong.

  HTML entities are decoded, an empty brand or `Unknown` and an unusable price become None, and of several category paths the first inside
  `department` is taken (see `_category_path`).
  """
  text = decode_line(line).strip()
  try:
    record = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
    raise DataError(f"line: not a Python literal ({type(error).__name__}); fetch the metadata file again") from None
  if not isinstance(record, dict):
    raise DataError(f"line: a {type(record).__name__}, not a dict; fetch the metadata file again")
  brand = _clean(record, "brand")
  price = record.get("price")
  item = Item(
    id=required(record, "asin", as_id),
    title=_clean(record, "title"),
    brand=None if brand in ("", "Unknown") else brand,
    categories=_category_path(record.get("categories"), department),
    description=_clean(record, "description") or None,
    price=float(price) if isinstance(price, int | float) and 0 <= price < 1e9 else None,
  )
  check_item(item)
  return item


def group_reviews(reviews: Iterable[Review]) -> tuple[History, ...]:
  """Histories in chronological order, reviews of one time in file order; users in the order of their first review."""
  by_user: dict[str, list[Review]] = {}
  for review in reviews:
    by_user.setdefault(review.user, []).append(review)
  histories = []
  for user, of_user in by_user.items():
    of_user.sort(key=lambda review: review.timestamp)  # stable
    histories.append(History(user, tuple(review.item for review in of_user), tuple(review.timestamp for review in of_user)))
  return tuple(histories)


def collect_items(ids: Iterable[str], path: pathlib.Path, department: str) -> tuple[Item, ...]:
  """An item for each of the distinct `ids`, in their order; one without a metadata line has an empty title."""
  items = {item_id: Item(item_id, "") for item_id in ids}
  wanted = {item_id.encode() for item_id in items}

  def parse(line: bytes) -> Item | None:
    found = _ITEM_ID.search(line)
    if found and found[1] not in wanted:
      return None
    return parse_metadata_line(line, department)

  for _, item in read_lines(path, parse):
    if item is not None and item.id in items:
      items[item.id] = item
  return tuple(items.values())


@dataclasses.dataclass
class AmazonConfig(tfds.core.BuilderConfig):
  """`dataset`: a key of `CATEGORIES`; `department` is the root of its category paths; `of_items` chooses the records."""

  dataset: str = ""
  department: str = ""
  of_items: bool = False


CATEGORIES = {
  "beauty": ("Beauty", "Beauty"),
  "sports": ("Sports_and_Outdoors", "Sports & Outdoors"),
  "toys": ("Toys_and_Games", "Toys & Games"),
}  # by the name of the config: the category as the file names spell it, and the department


def raw_files(name: str) -> dict[str, str]:
  """The names of the files that the data set `beauty`, `sports` or `toys` is made of: its `reviews` and its `metadata`."""
  category, _ = CATEGORIES[name]
  return {"reviews": f"reviews_{category}_5.json.gz", "metadata": f"meta_{category}.json.gz"}


def _configs() -> list[AmazonConfig]:
  kinds = (("", "one example a user", False), ("_items", "one example an item", True))
  return [
    AmazonConfig(name=name + suffix, description=description, dataset=name, department=department, of_items=of_items)
    for name, (_, department) in CATEGORIES.items()
    for suffix, description, of_items in kinds
  ]


class AmazonReviews2014(tfds.core.GeneratorBasedBuilder):
  """Amazon reviews of 2014, 5-core: configs `beauty`, `sports`, `toys` hold the histories, `beauty_items` and so on the items.

  Each config has the single split `all_records`. Users stand in the order of their first review in the file, items in the order
  in which the histories name them. The files are downloaded from the authors' address, or taken from `manual_dir` when they
  lie there (`reviews_Beauty_5.json.gz`, `meta_Beauty.json.gz`). For research use; cite the two papers.
  """

  VERSION = tfds.core.Version("1.0.1")
  RELEASE_NOTES = {"1.0.1": "What is prepared from files of a manual_dir no longer lies in TFDS's own folder."}  # noqa: RUF012
  BUILDER_CONFIGS = _configs()
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: put reviews_CATEGORY_5.json.gz and meta_CATEGORY.json.gz from {ADDRESS} into manual_dir."

  def _info(self) -> tfds.core.DatasetInfo:
    features = prepared.item_features() if self.builder_config.of_items else prepared.history_features()
    return tfds.core.DatasetInfo(
      builder=self,
      features=features,
      homepage="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
      citation=CITATION,
      disable_shuffling=True,
    )

  def _files(self, dl_manager: tfds.download.DownloadManager, names: Mapping[str, str]) -> dict[str, pathlib.Path]:
    try:
      folder = pathlib.Path(dl_manager.manual_dir)
    except AssertionError:  # how TFDS says that the folder is not there or is empty
      folder = None
    manual = {kind: folder / name for kind, name in names.items() if folder and (folder / name).is_file()}
    missing = {kind: ADDRESS + name for kind, name in names.items() if kind not in manual}
    try:
      fetched = dl_manager.download(missing)
    except (OSError, tfds.core.download.DownloadError) as error:
      raise DataError(
        f"{', '.join(missing.values())}: cannot be downloaded ({error}); fetch by other means, and give the folder as "
        "--config.data.manual_dir"
      ) from error
    return manual | {kind: pathlib.Path(path) for kind, path in fetched.items()}

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Splits:
    names = raw_files(self.builder_config.dataset)
    if not self.builder_config.of_items:
      del names["metadata"]
    return {"all_records": self._generate_examples(self._files(dl_manager, names))}

  def _generate_examples(self, files: Mapping[str, pathlib.Path]) -> Iterator[tuple[int, prepared.Example]]:
    histories = group_reviews(review for _, review in read_lines(files["reviews"], parse_review_line))
    if not histories:
      raise DataError(f"{files['reviews']}: holds no review; fetch the file again")
    if not self.builder_config.of_items:
      return numbered(prepared.encode_history, histories)
    ids = (item for history in histories for item in history.items)
    return numbered(prepared.encode_item, collect_items(ids, files["metadata"], self.builder_config.department))
