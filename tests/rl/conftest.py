"""A small market, as slates and prompts."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts


@pytest.fixture(scope="session")
def market():
  return make_market(MarketConfig(num_items=120, slate_size=4, train_slates=40, validation_slates=10, test_slates=10), seed=0)


@pytest.fixture(scope="session")
def context(market):
  vocabulary = Vocabulary.train(corpus_texts(market.catalogue), text_pieces=400, num_levels=2, codebook_size=16, num_candidates=4)
  codes = np.stack(np.divmod(np.arange(120), 16), axis=1)  # unique, as an export makes them
  return PromptContext(market.catalogue, codes, vocabulary)


@pytest.fixture(scope="session")
def style():
  return PromptStyle(item_fields=(), max_prompt_tokens=96)


@pytest.fixture(scope="session")
def slates(market):
  """Six, one shorter than the others, with weights 1, 2, ..; the first candidate is never the best."""
  chosen = [slate for slate in market.slates["train"] if not slate.labels[0] and not slate.labels[-1]][:6]
  chosen[2] = dataclasses.replace(chosen[2], candidates=chosen[2].candidates[:-1], labels=chosen[2].labels[:-1], upstream_scores=None)
  return [dataclasses.replace(slate, weight=1.0 + place, propensities=None) for place, slate in enumerate(chosen)]
