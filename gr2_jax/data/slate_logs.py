"""TFDS builders of a user's own logs: interactions and slates from the JSONL files of a folder.

A bad line stops the preparation with its file, line and reason. TFDS keeps what is prepared: after a change of the files use
another `data_dir`, or a download mode that overwrites. A run reads both builders through `data.source="tfds:own_log"` (see
`sources.load_source`).
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from gr2_jax.data import prepared
from gr2_jax.data.folders import find_file, find_slates
from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.schema import DataError

Splits = dict[str, Iterator[tuple[int, prepared.Example]]]  # split name -> its numbered examples, as a builder gives them


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path:
  path = find_file(folder, name)
  if path is None:
    raise DataError(f"{folder / name}.jsonl[.gz]: not found; put the file there, or give its folder as manual_dir")
  return path


def numbered(encode: Callable[[Any], prepared.Example], records: Iterable[Any]) -> Iterator[tuple[int, prepared.Example]]:
  """(position, example) pairs, as a builder yields them; positions keep the order of the records."""
  return ((position, encode(record)) for position, record in enumerate(records))


class InteractionLog(tfds.core.GeneratorBasedBuilder):
  """Histories and items of a user's own log: `manual_dir/interactions.jsonl[.gz]` and `manual_dir/items.jsonl[.gz]`.

  Config `interactions` holds one example a user, its items looked up in the items file; config `items` one example an item.
  Each has the single split `all_records`, in the order of the file.
  """

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a class attribute)
    tfds.core.BuilderConfig(name="interactions", description="one example a user"),
    tfds.core.BuilderConfig(name="items", description="one example an item"),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put interactions.jsonl[.gz] and items.jsonl[.gz] into manual_dir."

  def _info(self) -> tfds.core.DatasetInfo:
    of_items = self.builder_config.name == "items"
    features = prepared.item_features() if of_items else prepared.history_features()
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Splits:
    folder = pathlib.Path(dl_manager.manual_dir)
    return {"all_records": self._generate_examples(folder)}

  def _generate_examples(self, folder: pathlib.Path) -> Iterator[tuple[int, prepared.Example]]:
    catalogue = read_items(_existing(folder, "items"))
    if self.builder_config.name == "items":
      return numbered(prepared.encode_item, catalogue.items)
    return numbered(prepared.encode_history, read_interactions(_existing(folder, "interactions"), catalogue))


class SlateLog(tfds.core.GeneratorBasedBuilder):
  """Slates and items of a user's own log: `slates_{train,validation,test}.jsonl[.gz]` and `items.jsonl[.gz]` in `manual_dir`.

  Config `slates` holds one example a request, with a split for each of the three files that is there; a single `slates.jsonl[.gz]`
  becomes the split `train`. Items are looked up in the items file. Config `items` holds one example an item, split `all_records`.
  """

  VERSION = tfds.core.Version("1.1.0")
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name="slates", description="one example a request"),
    tfds.core.BuilderConfig(name="items", description="one example an item"),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put items.jsonl[.gz] and slates_train.jsonl[.gz], slates_validation.jsonl[.gz], slates_test.jsonl[.gz] (those you have), "
    "or one slates.jsonl[.gz], into manual_dir."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    of_items = self.builder_config.name == "items"
    features = prepared.item_features() if of_items else prepared.slate_features()
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Splits:
    folder = pathlib.Path(dl_manager.manual_dir)
    if self.builder_config.name == "items":
      return {"all_records": self._generate_examples(folder, None)}
    files = find_slates(folder) or {"train": _existing(folder, "slates")}
    return {split: self._generate_examples(folder, path) for split, path in files.items()}

  def _generate_examples(self, folder: pathlib.Path, slates: pathlib.Path | None) -> Iterator[tuple[int, prepared.Example]]:
    catalogue = read_items(_existing(folder, "items"))
    if slates is None:
      return numbered(prepared.encode_item, catalogue.items)
    records = read_slates(slates, catalogue)
    if not records:
      raise DataError(f"{slates}: holds no slate; give at least one, or remove the file")
    return numbered(prepared.encode_slate, records)
