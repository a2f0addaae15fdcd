"""A small shop of sixteen items with texts, codes of three levels, and a slate of it."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.prompts import PromptContext
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts

NAMES = ("Shampoo", "Conditioner", "Toner", "Cleanser")


@pytest.fixture(scope="session")
def context():
  items = [
    Item(f"i{n}", f"Velora Gentle {NAMES[n % 4]} No {n}", ("Velora", "Aquine")[n % 2], ("Care", NAMES[n % 4]), None, 5.0 + n)
    for n in range(16)
  ]
  catalogue = Catalogue(tuple(items))
  vocabulary = Vocabulary.train(corpus_texts(catalogue), text_pieces=800, num_levels=3, codebook_size=8, num_candidates=12)
  return PromptContext(catalogue, np.array([[n // 8, n % 8, (3 * n) % 8] for n in range(16)]), vocabulary)


@pytest.fixture(scope="session")
def slate():
  return Slate("u", ("i3", "i0"), ("i1", "i2", "i5", "i6"), (0, 1, 0, 0), timestamp=3 * 86_400)
