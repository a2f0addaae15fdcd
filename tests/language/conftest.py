"""A small shop and its vocabulary, shared by the language tests."""

import numpy as np
import pytest

from gr2_jax.data import schema
from gr2_jax.evidence import counts, patterns
from gr2_jax.language import prompts, vocabulary

DAY = 86_400
NAMES = ("Shampoo", "Conditioner", "Toner", "Cleanser")


@pytest.fixture(scope="session")
def catalogue() -> schema.Catalogue:
  items = [
    schema.Item(f"i{n}", f"Velora Gentle {NAMES[n % 4]} No {n}", ("Velora", "Aquine")[n % 2], ("Care", NAMES[n % 4]), None, 5.0 + n)
    for n in range(16)
  ]
  return schema.Catalogue(tuple(items))


@pytest.fixture(scope="session")
def vocab(catalogue) -> vocabulary.Vocabulary:
  return vocabulary.Vocabulary.train(vocabulary.corpus_texts(catalogue), text_pieces=800, num_levels=3, codebook_size=8, num_candidates=12)


@pytest.fixture(scope="session")
def histories() -> tuple[schema.History, ...]:
  # i0 -> i1 on days 1 and 3 (ends of the pair), i0 -> i2 on day 2.
  return (
    schema.History("a", ("i0", "i1"), (0, 1 * DAY)),
    schema.History("b", ("i0", "i2"), (0, 2 * DAY)),
    schema.History("c", ("i0", "i1"), (0, 3 * DAY)),
  )


@pytest.fixture(scope="session")
def context(catalogue, vocab, histories) -> prompts.PromptContext:
  codes = np.array([[n // 8, n % 8, (3 * n) % 8] for n in range(16)])
  transitions = counts.TransitionCounts.fit(histories, catalogue)
  return prompts.PromptContext(catalogue, codes, vocab, transitions, patterns.mine_priming(histories, catalogue))


@pytest.fixture(scope="session")
def slate() -> schema.Slate:
  return schema.Slate("u", ("i3", "i0"), ("i1", "i2", "i5", "i6"), (0, 1, 0, 0), timestamp=3 * DAY)
