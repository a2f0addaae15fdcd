"""The records as TFDS features, and prepared `array_record` data sets as records again; needs no TensorFlow.

A field that may be unknown is stored as a list of at most one value. Floats are kept to 32 bits, which is what the record format has.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate

Example = dict[str, Any]


def _texts() -> tfds.features.Sequence:
  return tfds.features.Sequence(tfds.features.Text())


def item_features() -> tfds.features.FeaturesDict:
  """Features of one `Item`."""
  fields = {"id": tfds.features.Text(), "title": tfds.features.Text(), "brand": _texts(), "categories": _texts()}
  return tfds.features.FeaturesDict({**fields, "description": _texts(), "price": tfds.features.Sequence(np.float32)})


def history_features() -> tfds.features.FeaturesDict:
  """Features of one `History`."""
  fields = {"user": tfds.features.Text(), "items": _texts(), "timestamps": tfds.features.Sequence(np.int64)}
  return tfds.features.FeaturesDict(fields)


def slate_features() -> tfds.features.FeaturesDict:
  """Features of one `Slate`; unknown scores and propensities are empty."""
  texts = {"user": tfds.features.Text(), "history": _texts(), "candidates": _texts(), "segment": _texts()}
  integers = {name: tfds.features.Sequence(np.int64) for name in ("labels", "timestamp", "last_time")}
  floats = {name: tfds.features.Sequence(np.float32) for name in ("upstream_scores", "propensities")}
  return tfds.features.FeaturesDict({**texts, **integers, **floats, "weight": tfds.features.Scalar(np.float32)})


def _known(value: Any) -> list[Any]:
  return [] if value is None else [value]


def encode_item(item: Item) -> Example:
  """The example of `item_features`."""
  optional = {name: _known(getattr(item, name)) for name in ("brand", "description", "price")}
  return {"id": item.id, "title": item.title, "categories": list(item.categories), **optional}


def encode_history(history: History) -> Example:
  """The example of `history_features`."""
  return {"user": history.user, "items": list(history.items), "timestamps": list(history.timestamps)}


def encode_slate(slate: Slate) -> Example:
  """The example of `slate_features`."""
  lists = {name: list(getattr(slate, name) or ()) for name in ("history", "candidates", "labels", "upstream_scores", "propensities")}
  optional = {name: _known(getattr(slate, name)) for name in ("timestamp", "last_time", "segment")}
  return {"user": slate.user, "weight": slate.weight, **lists, **optional}


def _float(value: np.float32) -> float:
  return float(str(np.float32(value)))  # the shortest decimal: a price of 9.99 comes back as 9.99


def _decode_texts(values: list[bytes]) -> tuple[str, ...]:
  return tuple(value.decode("utf-8") for value in values)


def _only(values: tuple[Any, ...]) -> Any:
  return values[0] if values else None


def decode_item(example: Example) -> Item:
  """The item of one example of a prepared data source."""
  return Item(
    id=example["id"].decode("utf-8"),
    title=example["title"].decode("utf-8"),
    brand=_only(_decode_texts(example["brand"])),
    categories=_decode_texts(example["categories"]),
    description=_only(_decode_texts(example["description"])),
    price=_only(tuple(map(_float, example["price"]))),
  )


def decode_history(example: Example) -> History:
  """The history of one example of a prepared data source."""
  return History(example["user"].decode("utf-8"), _decode_texts(example["items"]), tuple(map(int, example["timestamps"])))


def decode_slate(example: Example) -> Slate:
  """The slate of one example of a prepared data source."""
  return Slate(
    user=example["user"].decode("utf-8"),
    history=_decode_texts(example["history"]),
    candidates=_decode_texts(example["candidates"]),
    labels=tuple(map(int, example["labels"])),
    upstream_scores=tuple(map(_float, example["upstream_scores"])) or None,
    propensities=tuple(map(_float, example["propensities"])) or None,
    weight=_float(example["weight"]),
    timestamp=_only(tuple(map(int, example["timestamp"]))),
    last_time=_only(tuple(map(int, example["last_time"]))),
    segment=_only(_decode_texts(example["segment"])),
  )


def prepare(builder: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike[str] | None = None) -> None:
  """Writes the builder's data set as `array_record`; one that lies in its `data_dir` already is left as it is."""
  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  builder.download_and_prepare(download_config=config, file_format="array_record")


def _examples(builder: tfds.core.DatasetBuilder, field: str) -> Iterator[tuple[str, Example]]:
  if field not in builder.info.features:
    raise DataError(f"{builder.info.full_name}: has no field {field!r}; load another config of this data set")
  if not builder.info.splits:
    raise DataError(f"{builder.info.full_name}: not prepared in {builder.data_path}; prepare it first")
  for split in builder.info.splits:
    for example in builder.as_data_source(split=split):
      yield split, example


def prepared_catalogue(builder: tfds.core.DatasetBuilder) -> Catalogue:
  """The catalogue of a prepared items config, rows in the order they were written."""
  return Catalogue(tuple(decode_item(example) for _, example in _examples(builder, "title")))


def prepared_histories(builder: tfds.core.DatasetBuilder) -> tuple[History, ...]:
  """The histories of a prepared interactions config, in the order they were written."""
  return tuple(decode_history(example) for _, example in _examples(builder, "items"))


def prepared_slates(builder: tfds.core.DatasetBuilder) -> dict[str, tuple[Slate, ...]]:
  """Split name → slates of a prepared slates config, in the order they were written."""
  slates: dict[str, list[Slate]] = {}
  for split, example in _examples(builder, "candidates"):
    slates.setdefault(split, []).append(decode_slate(example))
  return {split: tuple(of_split) for split, of_split in slates.items()}
