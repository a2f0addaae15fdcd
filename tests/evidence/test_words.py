"""Words of facts: every fact has some, they say its value in readable units, and a bucket is the bin that models read."""

import numpy as np
import pytest

from gr2_jax.evidence.codes import FactCodes
from gr2_jax.evidence.facts import FACTS
from gr2_jax.evidence.words import FACT_WORDS, fact_sentences, level_word
from gr2_jax.models.scorer import piecewise_linear


def test_every_fact_has_words_of_its_own():
  assert list(FACT_WORDS) == list(FACTS)
  shorts = [words.short for words in FACT_WORDS.values()]
  assert len(set(shorts)) == len(shorts) and all(short.isidentifier() for short in shorts)
  sentences = fact_sentences(tuple(FACTS))
  assert all("{" not in sentence and sentence.strip() == sentence for sentence in sentences)
  said = [[words.say(value) for value in (0.0, 0.7, 2.5)] for words in FACT_WORDS.values()]
  assert len({tuple(of) for of in said}) == len(FACTS) and all(len(set(of)) > 1 for of in said)


@pytest.mark.parametrize(
  ("fact", "value", "bucket", "sentence"),
  [
    ("next_count_last", np.log1p(41), 9, "bought after the last item 41 times, more than 90 % of candidates"),
    ("next_count_last", np.float32(np.log1p(np.float32(1))), 0, "bought after the last item 1 time"),
    ("popularity", np.float32(np.log1p(54321)), 5, "bought by anyone 54321 times, more than 50 % of candidates"),
    ("followers_decayed", np.log1p(2.64), 3, "bought soon after past items 2.6 times, the latest first, more than 30 % of candidates"),
    ("brand_share", 0.25, 4, "25 % of past items are of its brand, more than 40 % of candidates"),
    ("leaf_is_last", 1.0, 8, "of the last item's category, more than 80 % of candidates"),
    ("leaf_is_last", 0.0, 0, "not of the last item's category"),
    ("age", np.log1p(30), 2, "first bought 30 days ago, longer ago than 20 % of candidates"),
    ("age", -1.0, 0, "not known to have been bought"),
    ("upstream_rank", 2.0, 2, "upstream rank 3, behind 20 % of candidates"),
    ("price_difference", np.log(1.31), 6, "31 % dearer than past items, dearer than 60 % of candidates"),
    ("price_difference", np.log(0.75), 1, "25 % cheaper than past items, dearer than 10 % of candidates"),
    ("price_difference", 0.0, 5, "priced as past items are, dearer than 50 % of candidates"),
    ("history_length", np.log1p(12), 1, "a history of 12 items, longer than for 10 % of candidates"),
    ("brand_count", 1.0, 7, "1 item of its brand bought before, more than 70 % of candidates"),
    ("lift_last", np.log1p(3.5), 7, "bought after the last item 3.5 times as often as by chance, more than 70 % of candidates"),
    ("lm_score", -1.26, 1, "1.3 nats below the slate's mean by the model, likelier than 10 % of candidates"),
  ],
)
def test_a_sentence_says_the_value_and_its_quantile(fact, value, bucket, sentence):
  assert FACT_WORDS[fact].sentence(float(value), bucket, 10) == sentence


def test_a_level_is_the_share_of_candidates_below():
  assert [level_word("popular", bucket, 16) for bucket in (0, 8, 15)] == ["popular:0%", "popular:50%", "popular:93%"]


def test_a_bucket_is_the_last_bin_into_which_the_code_has_come():
  random = np.random.default_rng(0)
  table = np.stack([random.normal(size=(300, 4)), random.poisson(0.4, size=(300, 4)), random.integers(2, size=(300, 4))], axis=-1)
  codes = FactCodes.fit(table, np.ones((300, 4), bool), ("age", "popularity", "leaf_is_last"), bins=8)
  at_edges = codes.edges.T[:, None]  # every edge of every fact
  for values in (table, at_edges, np.full((1, 1, 3), 99.0), np.full((1, 1, 3), -99.0)):
    values = values.astype(np.float32)
    found = codes.buckets(codes.names, values)
    reached = np.asarray(piecewise_linear(values, codes.edges)) > 0
    np.testing.assert_array_equal(found, np.where(reached, np.arange(8), 0).max(axis=-1))
    share = (table.astype(np.float32)[:, :, None] < values.reshape(-1, 3)).mean(axis=(0, 1))
    assert (share.reshape(found.shape) >= found / 8 - 1e-3).all()  # what the words claim is so
  np.testing.assert_array_equal(codes.buckets(("popularity",), table[..., 1:2]), codes.buckets(codes.names, table)[..., 1:2])
