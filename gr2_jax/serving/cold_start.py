"""Items that came after training: places and semantic IDs from their text, by the run's own encoder and RQ-VAE, or from items like them."""

import contextlib
import functools
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.language.prompts import PromptContext
from gr2_jax.runs.run import Run
from gr2_jax.semantic_ids.embed import TextEncoder, fit_text_encoder
from gr2_jax.semantic_ids.export import assign_codes
from gr2_jax.semantic_ids.rqvae import RqVae, RqVaeConfig, load_rqvae, read_rqvae_config
from gr2_jax.serving.request import Request, RequestError, item_id

GUESSES = ("category", "brand", "centre")
"""By what an item is placed whose text says nothing, the first that applies."""

_Known = TypeVar("_Known")
_ROWS = 32  # items that are encoded at once
_SAME_SPACE = 0.99  # cosine of an item's vector, encoded again, with the one that the tokenizer was trained on


class ItemPlaces:
  """Where items outside a run's catalogue stand among its own. The text encoder is fitted again when the first such item comes."""

  def __init__(self, run: Run, catalogue: Catalogue):
    self._run, self._catalogue = run, catalogue

  def place(self, items: Sequence[Item]) -> tuple[np.ndarray, dict[int, tuple[str, int]]]:
    """(text vectors `[n, D]`, zeros for a text without a known word; for these, by place in `items`, (one of GUESSES, a row)).

    The row is that of the item in the middle of the item's category, of its brand, or of the whole catalogue. Raises DataError where the
    run's tokenizer reads text otherwise than it did.
    """
    encoder, trained = self._encoder
    vectors = np.zeros((len(items), trained.shape[1]), np.float32) if encoder is None else encoder.encode(items)
    return vectors, {place: self._guess(items[place]) for place in np.flatnonzero(~vectors.any(axis=1)).tolist()}

  def _guess(self, item: Item) -> tuple[str, int]:
    """Of categories, the longest common start of the path."""
    known = [item.categories[:depth] for depth in range(len(item.categories), 0, -1)]
    keys = [*(("category", path) for path in known), ("brand", (item.brand or "",)), ("centre", ())]
    kind, rows = next((key[0], rows) for key in keys if (rows := self._alike.get(key)))
    vectors = self._encoder[1][rows]
    return kind, rows[int((vectors @ vectors.mean(axis=0)).argmax())]

  @functools.cached_property
  def _alike(self) -> dict[tuple[str, tuple[str, ...]], list[int]]:
    """Rows of the catalogue by each start of their category path, by brand, and all."""
    alike: dict[tuple[str, tuple[str, ...]], list[int]] = {("centre", ()): list(range(len(self._catalogue)))}
    for row, item in enumerate(self._catalogue.items):
      keys = [("category", item.categories[: depth + 1]) for depth in range(len(item.categories))]
      for key in [*keys, ("brand", (item.brand,))] if item.brand else keys:
        alike.setdefault(key, []).append(row)
    return alike

  @functools.cached_property
  def _encoder(self) -> tuple[TextEncoder | None, np.ndarray]:
    """(what reads text, None where the vectors came from a file; the catalogue's vectors `[N, D]`)."""
    run, catalogue, options = self._run, self._catalogue, self._run.config.tokenize
    vectors = np.load(run.path("tokenize", "vectors.npy"), mmap_mode="r")
    if options.vectors:
      return None, vectors
    encoder, _ = fit_text_encoder(catalogue, options.dim, run.config.seed)
    probes = slice(None, None, max(len(catalogue) // 64, 1))
    again, trained = encoder.encode(catalogue.items[probes]), vectors[probes]
    known = trained.any(axis=1)
    if again.shape != trained.shape or ((again * trained).sum(axis=1)[known] < _SAME_SPACE).any():
      raise DataError("the text encoder, fitted again, gives other vectors than the run has; serve with the versions of versions.json")
    return encoder, vectors


class ColdStart:
  """Assigns codes to items outside the catalogue."""

  def __init__(self, run: Run, context: PromptContext):
    self._run, self._context, self._places = run, context, ItemPlaces(run, context.catalogue)

  def warm_up(self) -> None:
    """Fits and compiles what the first new item would wait for; where nothing can be given codes, requests will be told."""
    first = self._context.catalogue.items[0]
    with contextlib.suppress(DataError):
      self._prefixes([first])

  def extend(self, items: Sequence[Item]) -> tuple[PromptContext, Mapping[str, str]]:
    """The context with the items behind those of its catalogue, and id -> one of GUESSES for those whose text has no known word.

    The first codes are those of the item's text, as trained; where the text says nothing, those of the item in the middle of its
    category, of its brand, or of the whole catalogue. What export draws at random is here the first that no item with the same prefix
    has, counted from a place that the item's id decides; where all are taken, two items share a semantic ID. Raises DataError where the
    run's tokenizer is not there or reads text otherwise than it did.
    """
    base = self._context
    prefixes, guessed = self._prefixes(items)
    codes = self._draw_the_rest(items, prefixes)
    catalogue = Catalogue(base.catalogue.items + tuple(items))
    return PromptContext(catalogue, np.concatenate([base.codes, codes]), base.vocabulary, base.transitions, base.priming), guessed

  def _prefixes(self, items: Sequence[Item]) -> tuple[np.ndarray, dict[str, str]]:
    """The learned codes `[n, P]` of items, and the guesses of `extend`."""
    rqvae, config = self._tokenizer
    vectors, guesses = self._places.place(items)
    # Of the learned levels export gives away the last one, and where that was not enough it has added others.
    kept = config.levels - (self._run.config.tokenize.last_level != "nearest")
    padded = np.zeros((-(-len(items) // _ROWS) * _ROWS, vectors.shape[1]), np.float32)  # one shape, compiled once
    padded[: len(items)] = vectors
    prefixes = assign_codes(rqvae, padded, config, _ROWS)[0][: len(items), :kept]
    for place, (_, row) in guesses.items():
      prefixes[place] = self._context.codes[row, :kept]
    return prefixes, {items[place].id: kind for place, (kind, _) in guesses.items()}

  def _draw_the_rest(self, items: Sequence[Item], prefixes: np.ndarray) -> np.ndarray:
    """Codes `[n, L]` that begin as `prefixes [n, P]`: the other levels, read as digits, are a number that is free behind its prefix."""
    table, size, kept = self._context.codes, self._context.vocabulary.codebook_size, prefixes.shape[1]
    digits = size ** np.arange(table.shape[1] - kept)[::-1]
    room = size ** len(digits)
    taken: dict[tuple[int, ...], set[int]] = {}
    numbers = []
    for item, prefix in zip(items, prefixes, strict=True):
      numbers_behind = taken.get(key := tuple(prefix.tolist()))
      if numbers_behind is None:
        same = (table[:, :kept] == prefix).all(axis=1)
        numbers_behind = taken[key] = set((table[same, kept:] @ digits).tolist())
      first = zlib.crc32(item.id.encode("utf-8", "replace"))
      drawn = ((first + step) % room for step in range(room))
      numbers.append(next((number for number in drawn if number not in numbers_behind), first % room))
      numbers_behind.add(numbers[-1])
    rest = np.array(numbers)[:, None] // digits % size
    return np.concatenate([prefixes, rest], axis=1).astype(np.int32)

  @functools.cached_property
  def _tokenizer(self) -> tuple[RqVae, RqVaeConfig]:
    if self._run.config.tokenize.code_vectors:
      raise DataError("its semantic ID would be made of a vector that mid-training learns, and a new item has none")
    path = self._run.path("tokenize", "rqvae.msgpack")
    if not path.exists():
      raise DataError(f"{path}: not there; a run of this version keeps its tokenizer, which gives new items their semantic IDs")
    rqvae = load_rqvae(path)
    return rqvae, read_rqvae_config(self._run.config.tokenize.rqvae, *rqvae.codebooks.counts.shape)


def read_items(
  request: Request, known: Container[str], own: _Known, extend: Callable[[list[Item]], tuple[_Known, Mapping[str, str]]]
) -> tuple[_Known, tuple[str, ...], dict[str, Any]]:
  """What is known of a request's items, its history without the others, and the ranking's fields that tell of both.

  `own` where all are `known`, else what `extend(new items) -> (of it, their guesses)` gives. Known items keep their own text. Raises
  RequestError for a candidate of which nothing is known, since none may be left out.
  """
  given = reversed((*request.history, *request.candidates))
  new = {item.id: item for item in given if isinstance(item, Item) and item.id not in known}
  asked = list(map(item_id, request.candidates))
  lost = next((item for item in asked if item not in known and item not in new), None)
  if lost is not None:
    raise RequestError("unknown_item", f"unknown item {lost!r}; give its title, brand or categories beside its id, or leave it out")
  guessed: Mapping[str, str] = {}
  try:
    if new:
      own, guessed = extend(list(new.values()))
  except DataError as error:
    if not new.keys().isdisjoint(asked):
      raise RequestError("unknown_item", str(error)) from None
    new = {}  # past items alone
  past = tuple(item for item in map(item_id, request.history) if item in known or item in new)
  return own, past, {"unknown_history": len(request.history) - len(past), "assigned": tuple(new), "guessed": guessed}
