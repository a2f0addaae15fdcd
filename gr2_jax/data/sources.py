"""The sources of records that TFDS prepares, by the name that follows `tfds:` in `config.data.source`."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping

import tensorflow_datasets as tfds

from gr2_jax.data.amazon_reviews import AmazonReviews2014
from gr2_jax.data.prepared import prepare, prepared_catalogue, prepared_histories, prepared_slates
from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.slate_logs import InteractionLog, SlateLog, has_slates

BuilderFn = Callable[..., tfds.core.DatasetBuilder]  # takes `data_dir`, None for TFDS's own folder


@dataclasses.dataclass(frozen=True)
class Source:
  """The builders of one source; `slates` is None where it never has any, `own_files` says that it reads the user's `manual_dir`."""

  items: BuilderFn
  histories: BuilderFn
  slates: BuilderFn | None = None
  own_files: bool = False


def _amazon(name: str) -> Source:
  return Source(
    items=functools.partial(AmazonReviews2014, config=f"{name}_items"),
    histories=functools.partial(AmazonReviews2014, config=name),
  )


SOURCES: Mapping[str, Source] = {
  "beauty": _amazon("beauty"),
  "sports": _amazon("sports"),
  "toys": _amazon("toys"),
  "own_log": Source(
    items=functools.partial(InteractionLog, config="items"),
    histories=functools.partial(InteractionLog, config="interactions"),
    slates=functools.partial(SlateLog, config="slates"),
    own_files=True,
  ),
}


def load_source(
  name: str, *, manual_dir: pathlib.Path | None, own_dir: pathlib.Path
) -> tuple[Catalogue, tuple[History, ...], dict[str, tuple[Slate, ...]]]:
  """(catalogue, histories, split name -> slates) of a source, prepared where they are not yet.

  Public data is prepared once per machine, in TFDS's own folder; files that lie in `manual_dir` are not downloaded. The user's own files
  are read from `manual_dir` and prepared in `own_dir`, which is emptied first: TFDS never looks again at the files of what it has
  prepared, so a folder that another log was prepared in would give that log. Floats are kept to 32 bits.

  Raises DataError for a name that is not in `SOURCES`, for own files without a folder, and for a file that cannot be used.
  """
  source = SOURCES.get(name)
  if source is None:
    known = ", ".join(f"tfds:{known}" for known in SOURCES)
    raise DataError(f"config.data.source: 'tfds:{name}' is not known; choose one of {known}")
  if source.own_files:
    if manual_dir is None or not manual_dir.is_dir() or not any(manual_dir.iterdir()):
      raise DataError(f"config.data.manual_dir: {str(manual_dir or '')!r} is no folder with files; give that of the JSONL files")
    shutil.rmtree(own_dir, ignore_errors=True)

  def prepare_with(builder_fn: BuilderFn) -> tfds.core.DatasetBuilder:
    builder = builder_fn(data_dir=own_dir if source.own_files else None)
    prepare(builder, manual_dir)
    return builder

  catalogue = prepared_catalogue(prepare_with(source.items))
  histories = prepared_histories(prepare_with(source.histories))
  if source.slates is None or manual_dir is None or not has_slates(manual_dir):
    return catalogue, histories, {}
  return catalogue, histories, prepared_slates(prepare_with(source.slates))
