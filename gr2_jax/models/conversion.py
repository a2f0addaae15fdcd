"""Published models from one layout to another: tensors one after the other, all else as it is."""

import functools
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gr2_jax.files import replacing_folder, write_json
from gr2_jax.models.gguf_files import open_gguf
from gr2_jax.models.gguf_tokenizers import read_tokenizer
from gr2_jax.models.hf_folders import Unwritten, open_folder, write_tensors
from gr2_jax.models.published import PublishedError
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

# What goes along with the weights, as it is.
_COPIED = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "generation_config.json",
  "LICENSE",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_SPARE_BYTES = 100 << 20  # that a disk keeps beside the weights: tokenizers have up to 40 MB


def convert_model(
  source: str | os.PathLike[str], to: str | os.PathLike[str], dtype: str | None, progress: Progress, stop: StopSignal
) -> None:
  """Writes the model in `source`, a folder or a GGUF file, as a folder; `dtype`: of all tensors, None for the types that they have.

  Raises PublishedError, before anything is written, for a model that cannot be read, a folder that is taken and a disk that is too small.
  """
  source, to = pathlib.Path(source), pathlib.Path(to)
  check_free(to)
  published = open_folder(source) if source.is_dir() else open_gguf(source)
  raw, texts, copied = dict(published.raw), dict[str, str](), list[pathlib.Path]()
  if source.is_dir():
    copied = [path for name in _COPIED if (path := source / name).is_file()]
    if not any(path.name in _TOKENIZERS for path in copied):
      raise PublishedError(f"{source}: has no tokenizer; fetch {' or '.join(_TOKENIZERS)} of the model too")
    if (path := source / _TOKENIZERS[0]) in copied:
      _check_tokenizer(path, published.config.vocab_size)
  else:
    texts, ids = read_tokenizer(source, published.config.vocab_size)
    raw |= ids
  tensors = {
    name: Unwritten(tensor.shape, tensor.dtype, functools.partial(published.read, name, ())) for name, tensor in published.tensors.items()
  }
  if dtype or not source.is_dir():
    raw["dtype" if "dtype" in raw else "torch_dtype"] = dtype or "float32"
  with write_model(to, source, tensors, dtype, raw, texts, progress, stop) as partial:
    for path in copied:
      shutil.copyfile(path, partial / path.name)


@contextmanager
def write_model(
  to: pathlib.Path,
  source: pathlib.Path,
  tensors: Mapping[str, Unwritten],
  dtype: str | None,
  raw: Mapping[str, Any],
  texts: Mapping[str, str],
  progress: Progress,
  stop: StopSignal,
) -> Iterator[pathlib.Path]:
  """Writes a model from `source`: its tensors, in another type where one is given, config.json, and the files `texts`.

  Yields the folder, for what else belongs there; it becomes `to` when the body ends. Raises PublishedError where the disk is too small,
  and for numbers that the type does not hold.
  """
  tensors = {name: _cast(tensor, np.dtype(dtype or tensor.dtype), f"{source}: {name}") for name, tensor in tensors.items()}
  size = sum(tensor.nbytes for tensor in tensors.values())
  _check_room(to, size)
  with replacing_folder(to) as partial, progress.task(f"convert {source.name}", math.ceil(size / 1e6), "MB") as task:
    done = 0

    def written(amount: int) -> None:
      nonlocal done
      done += amount
      task.update(math.ceil(done / 1e6))
      stop.check()

    write_tensors(partial, tensors, written)
    for name, text in texts.items():
      (partial / name).write_text(text, encoding="utf-8")
    write_json(partial / "config.json", raw)
    yield partial


def _check_tokenizer(path: pathlib.Path, vocab_size: int) -> None:
  try:
    found = Tokenizer.from_file(str(path)).get_vocab_size()
  except Exception as error:  # the library raises nothing narrower
    raise PublishedError(f"{path}: is damaged or no tokenizer ({error}); fetch that file again") from None
  if found > vocab_size:
    raise PublishedError(f"{path}: has {found} tokens and the model beside it {vocab_size}; take the tokenizer of the same model")


def check_free(to: pathlib.Path) -> None:
  """Raises PublishedError where a folder to write is there already with something in it, or is a file."""
  if to.exists() and (not to.is_dir() or any(to.iterdir())):
    raise PublishedError(f"--to: {to} is there already; remove it, or name another folder")


def _check_room(to: pathlib.Path, size: int) -> None:
  """Raises PublishedError where the disk has no room for so many bytes of weights."""
  place = next(folder for folder in (to, *to.absolute().parents) if folder.exists())
  if (free := shutil.disk_usage(place).free) < size + _SPARE_BYTES:
    raise PublishedError(f"--to: {to} takes {size / 1e9:.1f} GB and its disk has {free / 1e9:.1f}; free some, or name a folder on another")


def _cast(tensor: Unwritten, dtype: np.dtype, named: str) -> Unwritten:
  """A tensor in another type."""

  def read() -> np.ndarray:
    with np.errstate(over="ignore"):  # what is found below
      array = tensor.read().astype(dtype, copy=False)
    if not np.isfinite(array).all():
      raise PublishedError(f"{named} holds numbers that {dtype.name} does not; choose --dtype=float32, or fetch it again")
    return array

  return Unwritten(tensor.shape, dtype, read)
