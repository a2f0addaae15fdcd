"""Item vectors, the input of the tokenizer: from the items' own text, or from a file of any encoder's vectors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from gr2_jax.data.schema import Catalogue, DataError, Item

EmbedFn = Callable[[Catalogue], np.ndarray]
"""Catalogue of N items -> float32 `[N, D]`, one unit-norm row for each item in catalogue order."""

DESCRIPTION_WORDS = 128


def item_text(item: Item) -> str:
  """`title | brand | category path | description`, missing parts left out; the description's first 128 words (GR2 2.3)."""
  description = " ".join((item.description or "").split()[:DESCRIPTION_WORDS])
  parts = (item.title, item.brand, " > ".join(item.categories), description)
  return " | ".join(part for part in parts if part)


class TextEncoder(NamedTuple):
  """TF-IDF of words and word pairs, reduced by truncated SVD (None: not reduced), as fitted on a catalogue."""

  vectorizer: TfidfVectorizer
  svd: TruncatedSVD | None

  def encode(self, items: Sequence[Item]) -> np.ndarray:
    """float32 `[n, D]`, unit rows in the space of the catalogue; a zero row for an item without any word that the catalogue has."""
    terms = self.vectorizer.transform([item_text(item) for item in items])
    return _to_unit_rows(terms.toarray() if self.svd is None else self.svd.transform(terms))


def fit_text_encoder(catalogue: Catalogue, dim: int = 256, seed: int = 0) -> tuple[TextEncoder, np.ndarray]:
  """The encoder of a catalogue's text and the vectors `[N, D]` of its items: needs no model and no network.

  The width is `dim`, or less where the catalogue has fewer items or terms. An item without any word gets a zero row.
  """
  texts = [item_text(item) for item in catalogue.items]
  # The pattern keeps one-character words: sizes ("3 oz") tell variants of a product apart.
  vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
  try:
    terms = vectorizer.fit_transform(texts)
  except ValueError:
    raise DataError(
      "items: no title, brand, category or description holds a word; fill them in, or bring your own vectors: "
      "--config.tokenize.vectors=FILE.npy"
    ) from None
  if terms.shape[1] <= dim:
    return TextEncoder(vectorizer, None), _to_unit_rows(terms.toarray())
  svd = TruncatedSVD(n_components=min(dim, terms.shape[0]), random_state=seed)
  vectors = svd.fit_transform(terms)
  return TextEncoder(vectorizer, svd), _to_unit_rows(vectors)


def tfidf_svd(dim: int = 256, seed: int = 0) -> EmbedFn:
  """The vectors of `fit_text_encoder`."""
  return lambda catalogue: fit_text_encoder(catalogue, dim, seed)[1]


def vectors_from_npy(path: str | Path) -> EmbedFn:
  """Vectors `[N, D]` of any float type from a `.npy` file, row i for the catalogue's row i.

  Raises DataError when the file is no such array, has another number of rows than the catalogue, or holds what 32 bits cannot (NaN too).
  """

  def embed(catalogue: Catalogue) -> np.ndarray:
    try:
      vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
      raise DataError(f"{path}: cannot be read as a .npy array ({error}); write it with numpy.save") from None
    if not isinstance(vectors, np.ndarray):
      raise DataError(f"{path}: holds several arrays; save the one of item vectors with numpy.save")
    check_vectors(vectors, source=str(path))
    if len(vectors) != len(catalogue):
      raise DataError(f"{path}: {len(vectors)} rows for {len(catalogue)} items; give one row for each line of the items file, in its order")
    return _to_unit_rows(vectors.astype(np.float32))

  return embed


def check_vectors(vectors: np.ndarray, source: str = "vectors") -> None:
  """Raises DataError unless `vectors` is a float array `[N, D]` with at least one row and column, whose rows have a length in 32 bits."""
  if vectors.ndim != 2 or 0 in vectors.shape:
    raise DataError(f"{source}: shape {vectors.shape}; item vectors are [items, dimensions]")
  if not np.issubdtype(vectors.dtype, np.floating):
    raise DataError(f"{source}: type {vectors.dtype}; item vectors are floats")
  with np.errstate(over="ignore"):
    # As they are used: a length that overflows or vanishes would make the row zeros.
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
  broken = np.flatnonzero(~np.isfinite(lengths) | ((lengths == 0) & vectors.any(axis=1)))
  if len(broken):
    raise DataError(
      f"{source}: {len(broken)} rows hold NaN, infinity, or values too large or too small for 32 bits, the first is row {broken[0]}; "
      "recompute or scale these items' vectors"
    )


def _to_unit_rows(vectors: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
