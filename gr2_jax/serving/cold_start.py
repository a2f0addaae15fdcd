"""Items that came after training: semantic IDs from their text, by the run's own text encoder and RQ-VAE."""

import contextlib
import functools
import zlib
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.language.prompts import PromptContext
from gr2_jax.runs.run import Run
from gr2_jax.semantic_ids.embed import TextEncoder, fit_text_encoder
from gr2_jax.semantic_ids.export import assign_codes
from gr2_jax.semantic_ids.rqvae import RqVae, RqVaeConfig, load_rqvae

_ROWS = 32  # items that are encoded at once
_SAME_SPACE = 0.99  # cosine of an item's vector, encoded again, with the one that the tokenizer was trained on


class ColdStart:
  """Assigns codes to items outside the catalogue. The text encoder is fitted again when the first such item comes."""

  def __init__(self, run: Run, context: PromptContext):
    self._run, self._context = run, context

  def warm_up(self) -> None:
    """Fits and compiles what the first new item would wait for; where text gives no codes, requests will be told."""
    first = self._context.catalogue.items[0]
    with contextlib.suppress(DataError):
      self._assign([first])

  def extend(self, items: Sequence[Item]) -> PromptContext:
    """The context with the items behind those of its catalogue; raises DataError where text cannot give them codes.

    The first codes are those of the item's text, as trained. The last one, which export draws at random, is the first that no item
    with the same prefix has, counted from a place that the item's id decides; where all are taken, two items share a semantic ID.
    """
    base = self._context
    codes = self._assign(items)
    catalogue = Catalogue(base.catalogue.items + tuple(items))
    extended = np.concatenate([base.codes, codes])
    return PromptContext(catalogue, extended, base.vocabulary, base.transitions, base.priming)

  def _assign(self, items: Sequence[Item]) -> np.ndarray:
    encoder, rqvae, config = self._tokenizer
    vectors = encoder.encode(items)
    empty = [item.id for item, vector in zip(items, vectors, strict=True) if not vector.any()]
    if empty:
      raise DataError(f"item {empty[0]!r}: no word of its text is known; give its title, brand or categories")
    padded = np.zeros((-(-len(items) // _ROWS) * _ROWS, vectors.shape[1]), np.float32)  # one shape, compiled once
    padded[: len(items)] = vectors
    nearest = assign_codes(rqvae, padded, config, _ROWS)[0][: len(items)]
    if self._run.config.tokenize.last_level == "nearest":
      return nearest
    taken: dict[tuple[int, ...], set[int]] = {}
    for item, codes in zip(items, nearest, strict=True):
      prefix = tuple(codes[:-1].tolist())
      if prefix not in taken:
        same = (self._context.codes[:, :-1] == codes[:-1]).all(axis=1)
        taken[prefix] = set(self._context.codes[same, -1].tolist())
      first = zlib.crc32(item.id.encode("utf-8", "replace"))
      drawn = [(first + step) % config.codebook_size for step in range(config.codebook_size)]
      codes[-1] = next((code for code in drawn if code not in taken[prefix]), drawn[0])
      taken[prefix].add(int(codes[-1]))
    return nearest

  @functools.cached_property
  def _tokenizer(self) -> tuple[TextEncoder, RqVae, RqVaeConfig]:
    options = self._run.config.tokenize
    if options.vectors:
      raise DataError("this run took its item vectors from a file, so text alone gives an item no semantic ID; add it to the catalogue")
    path = self._run.path("tokenize", "rqvae.msgpack")
    if not path.exists():
      raise DataError(f"{path}: not there; a run of this version keeps its tokenizer, which gives new items their semantic IDs")
    encoder, _ = fit_text_encoder(self._context.catalogue, options.dim, self._run.config.seed)
    probes = self._context.catalogue.items[:: max(len(self._context.catalogue) // 64, 1)]
    trained = np.load(self._run.path("tokenize", "vectors.npy"))[:: max(len(self._context.catalogue) // 64, 1)]
    again = encoder.encode(probes)
    known = trained.any(axis=1)
    if again.shape != trained.shape or ((again * trained).sum(axis=1)[known] < _SAME_SPACE).any():
      raise DataError("the text encoder, fitted again, gives other vectors than the run has; serve with the versions of versions.json")
    return encoder, load_rqvae(path), RqVaeConfig(**options.rqvae.to_dict() | {"hidden": tuple(options.rqvae.hidden)})
