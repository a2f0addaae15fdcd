"""What each fact of `evidence.facts` says in words: one record each. Prompts and teachers write facts in these words alone."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

_MANY = 99  # in the sentences that a vocabulary is trained on


@dataclasses.dataclass(frozen=True)
class FactWords:
  """`short`: one word, with which the fact's added tokens are spelled. `say(value)`: a clause about a candidate, in readable units.

  `than`: how a candidate stands to those whose value is smaller.
  """

  short: str
  say: Callable[[float], str]
  than: str = "more than"

  def sentence(self, value: float, bucket: int, buckets: int) -> str:
    """The clause, and where the value is above the lowest of so many quantile buckets, above which share of all candidates it is."""
    clause, share = self.say(value), _share_below(bucket, buckets)
    return f"{clause}, {self.than} {share} % of candidates" if share else clause


def level_word(short: str, bucket: int, buckets: int) -> str:
  """How a quantile bucket of a fact is spelled: the share of all candidates that it is above."""
  return f"{short}:{_share_below(bucket, buckets)}%"


def _share_below(bucket: int, buckets: int) -> int:
  """Per cent of all candidates that a quantile bucket is above."""
  return 100 * bucket // buckets


def fact_sentences(names: Sequence[str]) -> list[str]:
  """Sentences of facts at some values, for a vocabulary to learn."""
  levels = [(-1.0, 0), (0.0, 0), (1.0, 1), (math.log1p(_MANY), 3)]
  return [FACT_WORDS[name].sentence(value, bucket, 4) for name in names for value, bucket in levels]


def _times(text: str, unit: str = "time", digits: int = 0) -> Callable[[float], str]:
  """Of log(1 + x): `text` with x and its unit."""
  return lambda value: text.format(_count(math.expm1(value), unit, digits))


def _number(text: str, unit: str) -> Callable[[float], str]:
  return lambda value: text.format(_count(value, unit))


def _percent(text: str) -> Callable[[float], str]:
  return lambda value: text.format(f"{100 * value:.0f} %")


def _decimal(text: str, digits: int = 2) -> Callable[[float], str]:
  return lambda value: text.format(f"{value:.{digits}f}")


def _whether(text: str) -> Callable[[float], str]:
  return lambda value: text if value > 0.5 else f"not {text}"


def _days(text: str, unknown: str) -> Callable[[float], str]:
  """Of log(1 + days), below 0 when unknown."""
  return lambda value: unknown if value < 0 else text.format(_count(math.expm1(value), "day"))


def _count(number: float, unit: str, digits: int = 0) -> str:
  text = f"{number:.{digits}f}"
  return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


def _price(value: float) -> str:
  """Of the log of a price ratio."""
  share = round(100 * math.expm1(abs(value)) if value > 0 else -100 * math.expm1(value))
  return f"{share} % {'dearer' if value > 0 else 'cheaper'} than past items" if share else "priced as past items are"


FACT_WORDS: Mapping[str, FactWords] = {
  "next_count_last": FactWords("after_last", _times("bought after the last item {}")),
  "next_share_last": FactWords("after_last_share", _percent("{} of what followed the last item here")),
  "next_count_second": FactWords("after_second", _times("bought after the second-last item {}")),
  "cooccurrence_sum": FactWords("near_past", _times("bought near past items {}")),
  "cooccurrence_max": FactWords("near_one", _times("bought near one past item {}")),
  "leaf_next_count": FactWords("category_next", _times("its category followed that of the last item {}")),
  "popularity": FactWords("popular", _times("bought by anyone {}")),
  "leaf_share": FactWords("category", _percent("{} of past items are of its category")),
  "broad_share": FactWords("department", _percent("{} of past items are of its department")),
  "leaf_is_last": FactWords("category_last", _whether("of the last item's category")),
  "broad_is_last": FactWords("department_last", _whether("of the last item's department")),
  "brand_share": FactWords("brand", _percent("{} of past items are of its brand")),
  "brand_is_last": FactWords("brand_last", _whether("of the last item's brand")),
  "text_history": FactWords("text_past", _decimal("text like that of past items by {}")),
  "text_last": FactWords("text_last", _decimal("text like that of the last item by {}")),
  "price_difference": FactWords("dearer", _price, "dearer than"),
  "price_distance": FactWords(
    "price_apart", lambda value: f"priced {100 * math.expm1(value):.0f} % apart from past items", "farther apart than"
  ),
  "upstream_rank": FactWords("rank", lambda value: f"upstream rank {value + 1:.0f}", "behind"),
  "upstream_score": FactWords("score", _decimal("upstream score {}")),
  "age": FactWords("age", _days("first bought {} ago", "not known to have been bought"), "longer ago than"),
  "since_last_taken": FactWords("idle", _days("last bought {} ago", "not known when last bought"), "longer ago than"),
  "popularity_30": FactWords("popular_30", _times("bought {} in 30 days")),
  "popularity_90": FactWords("popular_90", _times("bought {} in 90 days")),
  "popularity_365": FactWords("popular_365", _times("bought {} in 365 days")),
  "gap": FactWords("gap", _days("the last item bought {} ago", "not known when the last item was bought"), "longer ago than for"),
  "history_length": FactWords("history", _times("a history of {}", "item"), "longer than for"),
  "far_count": FactWords("with_past", _times("bought together with past items {}")),
  "far_cosine": FactWords("with_past_rate", _decimal("goes with past items by {}")),
  "far_decayed": FactWords("with_latest", _times("bought together with past items {}, the latest first", digits=1)),
  "followers_decayed": FactWords("after_latest", _times("bought soon after past items {}, the latest first", digits=1)),
  "lift_last": FactWords("lift", lambda value: f"bought after the last item {math.expm1(value):.1f} times as often as by chance"),
  "leaf_next_count_second": FactWords("category_next_second", _times("its category followed that of the second-last item {}")),
  "brand_count": FactWords("brand_items", _number("{} of its brand bought before", "item")),
  "words_shared": FactWords("words", _number("{} of its title in past titles", "word")),
  "rare_words_shared": FactWords("rare_words", _decimal("rare words of past titles in its own, weight {}", 1)),
  "text_max": FactWords("text_nearest", _decimal("text like that of the nearest past item by {}")),
  "text_decayed": FactWords("text_latest", _decimal("text like that of the latest items by {}")),
  "lm_score": FactWords(
    "model", lambda value: f"{abs(value):.1f} nats {'below' if value < 0 else 'above'} the slate's mean by the model", "likelier than"
  ),
}
