"""Grain input pipelines: seeded, cut by process, packed, and resumable at any batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from gr2_jax.data.schema import DataError

Example = Mapping[str, Any]


class Source(Protocol):
  """Records that can be read in any order."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Any: ...


MapFn = Callable[[Any, np.random.Generator], Example]


def make_pipeline(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  map_fn: MapFn,
  pack_length: int | None = None,
  cut: bool = False,
  pad_id: int = 0,
  shuffle: bool = True,
  repeat: bool = True,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """An iterator of batches (dicts of numpy arrays) that saves its place with `get_state` and returns to it with `set_state`.

  `source`: any random-access sequence of records. Each epoch is shuffled anew from `seed`.
  `map_fn(record, rng) -> example`: `rng` depends only on the seed and the place in the stream, never on the process or the past.
  `batch_size`: rows of all processes together; each gets an equal share, and equally many batches.
  `pack_length` T: examples are dicts of 1-D sequences of one length (`tokens` and, say, `parts` or `weights`), laid behind each other
  in rows `[B, T]`, int32 or float32 as the field is, 0 behind them (`pad_id` for tokens), with `segment_ids` (1, 2.. in a row, 0
  padding) and `positions` (restarting at 0 in each segment). Without it, examples of equal shapes are stacked.
  `cut`: keep the first T tokens of a longer example instead of raising.
  `repeat=False` ends after one pass; a last batch that is not full is left out.

  Raises DataError for an empty source, and while iterating for an example that is too long, naming its index in `source`.
  """
  if len(source) == 0:
    raise DataError("source: no examples; check the input files and filters")
  if batch_size % process_count:
    raise DataError(f"batch_size: {batch_size} rows do not divide over {process_count} processes; use a multiple of it")
  if not repeat and pack_length and process_count > 1:
    raise DataError("repeat: one packed pass gives processes unequal numbers of batches; repeat, or leave out pack_length")

  dataset = grain.MapDataset.source(_Indexed(source)).seed(seed)
  if shuffle:
    dataset = dataset.shuffle(seed)
  if repeat:
    dataset = dataset.repeat()
  elif len(dataset) % process_count:
    dataset = dataset[: len(dataset) - len(dataset) % process_count]
  # The random map stands before the slice: its generator then depends on the place in the whole stream.
  dataset = dataset.random_map(_make_map(map_fn, pack_length, cut), seed=seed)
  dataset = dataset[process_index::process_count]
  rows = batch_size // process_count
  # A short read-ahead: the position is exact with any, but a packed group is built again from its first example on resume.
  stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * rows))
  if pack_length:
    names = tuple(map_fn(source[0], np.random.default_rng(seed)))
    stream = _pack(stream, names, rows=rows, length=pack_length, pad_id=pad_id)
  return iter(stream.batch(rows, drop_remainder=True))


class _Indexed:
  """Records with their index, so that an error can name it."""

  def __init__(self, records: Source) -> None:
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> tuple[int, Any]:
    return index, self._records[index]


def _make_map(map_fn: MapFn, length: int | None, cut: bool) -> Callable[[tuple[int, Any], np.random.Generator], Example]:
  def apply(indexed: tuple[int, Any], rng: np.random.Generator) -> Example:
    index, record = indexed
    example = map_fn(record, rng)
    return example if length is None else _to_arrays(index, example, length, cut)

  return apply


def _to_arrays(index: int, example: Example, length: int, cut: bool) -> dict[str, np.ndarray]:
  arrays = {name: np.asarray(value) for name, value in example.items()}
  # Python numbers arrive as 64-bit, which the device would not take.
  arrays = {name: value.astype(np.float32 if value.dtype.kind == "f" else np.int32) for name, value in arrays.items()}
  size = len(arrays["tokens"])
  if size == 0:
    raise DataError(f"example {index}: no tokens; leave such records out of the source")
  if any(value.shape != (size,) for value in arrays.values()):
    shapes = {name: value.shape for name, value in arrays.items()}
    raise DataError(f"example {index}: its fields differ in length {shapes}; give one value for each token")
  if size > length and not cut:
    raise DataError(
      f"example {index}: {size} tokens do not fit a row of {length}; raise the row length, shorten the history, or ask for a cut"
    )
  return {name: value[:length] for name, value in arrays.items()}


def _pack(stream: grain.IterDataset, names: Sequence[str], *, rows: int, length: int, pad_id: int) -> grain.IterDataset:
  """Rows of whole examples (first fit into the rows of one batch), each `{names..., segment_ids, positions} [length]`."""
  packed = grain.experimental.FirstFitPackIterDataset(
    stream,
    length_struct=dict.fromkeys(names, length),
    padding_struct=dict.fromkeys(names, 0) | {"tokens": pad_id},
    num_packing_bins=rows,
    shuffle_bins=False,
  )

  def rename(row: Example) -> Example:
    segments = {"segment_ids": row["tokens_segment_ids"], "positions": row["tokens_positions"]}
    return {name: row[name] for name in names} | segments

  return packed.map(rename)
