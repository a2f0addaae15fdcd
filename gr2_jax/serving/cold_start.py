"""Items that came after training: semantic IDs from their text, by the run's own text encoder and RQ-VAE, or from items like them."""

import contextlib
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.language.prompts import PromptContext
from gr2_jax.runs.run import Run
from gr2_jax.semantic_ids.embed import TextEncoder, fit_text_encoder
from gr2_jax.semantic_ids.export import assign_codes
from gr2_jax.semantic_ids.rqvae import RqVae, RqVaeConfig, load_rqvae, read_rqvae_config

GUESSES = ("category", "brand", "centre")
"""By what an item is placed whose text says nothing, the first that applies."""

_ROWS = 32  # items that are encoded at once
_SAME_SPACE = 0.99  # cosine of an item's vector, encoded again, with the one that the tokenizer was trained on


class _Tokenizer(NamedTuple):
  """The run's tokenizer; `encoder` None: its vectors `[N, D]` came from a file, so it reads no text."""

  encoder: TextEncoder | None
  rqvae: RqVae
  config: RqVaeConfig
  vectors: np.ndarray


class ColdStart:
  """Assigns codes to items outside the catalogue. The text encoder is fitted again when the first such item comes."""

  def __init__(self, run: Run, context: PromptContext):
    self._run, self._context = run, context

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
    encoder, rqvae, config, trained = self._tokenizer
    # Of the learned levels export gives away the last one, and where that was not enough it has added others.
    kept = config.levels - (self._run.config.tokenize.last_level != "nearest")
    vectors = np.zeros((len(items), trained.shape[1]), np.float32) if encoder is None else encoder.encode(items)
    padded = np.zeros((-(-len(items) // _ROWS) * _ROWS, vectors.shape[1]), np.float32)  # one shape, compiled once
    padded[: len(items)] = vectors
    prefixes = assign_codes(rqvae, padded, config, _ROWS)[0][: len(items), :kept]
    guessed = {}
    for place in np.flatnonzero(~vectors.any(axis=1)).tolist():
      guessed[items[place].id], row = self._guess(items[place])
      prefixes[place] = self._context.codes[row, :kept]
    return prefixes, guessed

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

  def _guess(self, item: Item) -> tuple[str, int]:
    """(one of GUESSES, row of the item in the middle of those that share it): of categories, the longest common start of the path."""
    known = [item.categories[:depth] for depth in range(len(item.categories), 0, -1)]
    keys = [*(("category", path) for path in known), ("brand", (item.brand or "",)), ("centre", ())]
    kind, rows = next((key[0], rows) for key in keys if (rows := self._alike.get(key)))
    vectors = self._tokenizer.vectors[rows]
    return kind, rows[int((vectors @ vectors.mean(axis=0)).argmax())]

  @functools.cached_property
  def _alike(self) -> dict[tuple[str, tuple[str, ...]], list[int]]:
    """Rows of the catalogue by each start of their category path, by brand, and all."""
    alike: dict[tuple[str, tuple[str, ...]], list[int]] = {("centre", ()): list(range(len(self._context.catalogue)))}
    for row, item in enumerate(self._context.catalogue.items):
      keys = [("category", item.categories[: depth + 1]) for depth in range(len(item.categories))]
      for key in [*keys, ("brand", (item.brand,))] if item.brand else keys:
        alike.setdefault(key, []).append(row)
    return alike

  @functools.cached_property
  def _tokenizer(self) -> _Tokenizer:
    run, catalogue = self._run, self._context.catalogue
    options, path = run.config.tokenize, run.path("tokenize", "rqvae.msgpack")
    if not path.exists():
      raise DataError(f"{path}: not there; a run of this version keeps its tokenizer, which gives new items their semantic IDs")
    rqvae, vectors = load_rqvae(path), np.load(run.path("tokenize", "vectors.npy"), mmap_mode="r")
    config = read_rqvae_config(options.rqvae, *rqvae.codebooks.counts.shape)
    if options.vectors:
      return _Tokenizer(None, rqvae, config, vectors)
    encoder, _ = fit_text_encoder(catalogue, options.dim, run.config.seed)
    probes = slice(None, None, max(len(catalogue) // 64, 1))
    again, trained = encoder.encode(catalogue.items[probes]), vectors[probes]
    known = trained.any(axis=1)
    if again.shape != trained.shape or ((again * trained).sum(axis=1)[known] < _SAME_SPACE).any():
      raise DataError("the text encoder, fitted again, gives other vectors than the run has; serve with the versions of versions.json")
    return _Tokenizer(encoder, rqvae, config, vectors)
