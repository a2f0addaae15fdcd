"""Shorter histories: fixed rules (semantic ID and leaf category), the rewriter's prompt, and what a rewritten history must hold.

A compressed history is a list of tokens that stands in the prompt instead of the history (`render_prompt(..., history=...)`), whoever
made it. The original that it is measured against is the history as the prompt's style would show it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gr2_jax.data import schema
from gr2_jax.language.prompts import PromptContext, PromptStyle, history_items, history_room
from gr2_jax.language.vocabulary import Vocabulary

# How a history can be shortened: to semantic IDs alone, by fixed rules, by a trained language model, to vectors of its items.
VARIANTS = ("sids", "rules", "rewriter", "soft_tokens")
# What became of a history: it was compressed, there was none, or the rewriter's text cannot be used and why.
OUTCOMES = ("ok", "no_history", "overlong", "empty", "wrong_format", "unknown_item")
_ELLIPSIS = re.compile(r"\.{3,}|…")


class Facts(NamedTuple):
  """What a compressed history should keep of the original, and how much of it is there: `kept` of `total`."""

  kept: int
  total: int


def original_tokens(slate: schema.Slate, context: PromptContext, style: PromptStyle) -> list[int]:
  """The slate's history as the style shows it, oldest first; of more than `max_prompt_tokens` the oldest items go first."""
  items = history_items(context.catalogue.to_rows(slate.history), context, style, style.max_prompt_tokens)
  return [token for tokens in items for token in tokens]


def prompt_rows(slate: schema.Slate, context: PromptContext, style: PromptStyle) -> list[int]:
  """Catalogue rows of the history's latest `max_history` items, oldest first: what there is to compress."""
  return context.catalogue.to_rows(slate.history[-style.max_history :])


def compress_by_rules(
  rows: Sequence[int], context: PromptContext, style: PromptStyle, *, budget: int, categories: bool = True
) -> list[int]:
  """The latest items of a history that fit into `budget` tokens, oldest first: each one's semantic ID and its leaf category.

  Repeats are merged: an item that was bought again stands at its last place alone, and a category that several items in a row share
  stands once, after the last of them. The oldest item may stand without a category that no longer fits. Without `categories` semantic
  IDs alone are left. An empty history stays empty. Raises ValueError for a budget that holds no item.
  """
  check_budget(budget, context.vocabulary.num_levels + 2 * style.sid_markers)
  tokens: list[int] = []
  said = ""
  for row in dict.fromkeys(reversed(rows)):
    leaf = context.catalogue.items[row].leaf if categories else ""
    sid = context.sid_tokens(row, style.sid_markers)
    name = context.text(leaf) if leaf and leaf != said else []
    room = budget - len(tokens)
    if len(sid) > room:
      break
    if len(sid) + len(name) > room:
      return sid + tokens
    tokens, said = sid + name + tokens, leaf
  return tokens


def shorten_at_random(slate: schema.Slate, context: PromptContext, style: PromptStyle, rng: np.random.Generator) -> list[int]:
  """Any number of the latest items that the prompt shows, none and all included, at random, as the rules write them, in no more tokens."""
  rows = context.catalogue.to_rows(slate.history)
  items = history_items(rows, context, style, history_room(slate, context, style))
  number = int(rng.integers(len(items) + 1))
  if not number:
    return []
  return compress_by_rules(rows[-number:], context, style, budget=sum(map(len, items[-number:])))


def fit_soft_tokens(rows: Sequence[int], budget: int, per_item: int) -> list[int]:
  """The latest `rows` whose soft tokens, `per_item` each, fit into `budget` tokens, oldest first."""
  return list(rows[max(len(rows) - budget // per_item, 0) :])


def check_budget(budget: int, item_tokens: int) -> None:
  """Raises ValueError unless `budget` holds the `item_tokens` of one item at its shortest."""
  if budget < item_tokens:
    raise ValueError(f"budget: {budget} tokens hold no item, which takes {item_tokens}; raise it")


def rewriter_prompt(original: Sequence[int], vocabulary: Vocabulary) -> list[int]:
  """What the rewriter continues: `<bos> <system> <history> ... <assistant>`, frames alone, since it is fine-tuned to the task."""
  frame = vocabulary.frame
  return [*frame("bos"), *frame("system"), *frame("history"), *original, *frame("assistant")]


def read_rewrite(tokens: Sequence[int], rows: Sequence[int], context: PromptContext, style: PromptStyle) -> tuple[list[int], str]:
  """(the compressed history before eos, its outcome, one of OUTCOMES) of a rewriter's completion.

  overlong: no eos; empty: nothing before it; wrong_format: a frame, a candidate's name or an unused id; unknown_item: codes that are not
  those of the history's items, each copied whole. The first that applies; nothing is repaired.
  """
  tokens = [int(token) for token in tokens]
  vocabulary = context.vocabulary
  if vocabulary.eos_id not in tokens:
    return [], "overlong"
  tokens = tokens[: tokens.index(vocabulary.eos_id)]
  if not tokens:
    return [], "empty"
  allowed = {vocabulary.special("sid"), vocabulary.special("/sid")} if style.sid_markers else set()
  if any(not _is_content(token, vocabulary) and token not in allowed for token in tokens):
    return [], "wrong_format"
  known = {tuple(vocabulary.sid_tokens(context.codes[row])) for row in rows}
  if any(sid not in known for sid in _quoted_sids(tokens, vocabulary)):
    return [], "unknown_item"
  return tokens, "ok"


def kept_facts(tokens: Sequence[int], rows: Sequence[int], context: PromptContext) -> Facts:
  """How much of a history (catalogue `rows`, oldest first) its compressed `tokens` keep.

  The facts: every distinct semantic ID; every distinct leaf category, by its name in the text; and the recency order, for each two items
  that follow each other (by their last purchases): both are there, the later one later.
  """
  vocabulary = context.vocabulary
  sids = [tuple(vocabulary.sid_tokens(context.codes[row])) for row in rows]
  ordered = list(dict.fromkeys(reversed(sids)))[::-1]
  place = {sid: index for index, sid in enumerate(_quoted_sids(tokens, vocabulary))}
  names = {context.catalogue.items[row].leaf for row in rows} - {""}
  text = _plain(vocabulary.decode([token for token in tokens if 0 <= token < vocabulary.new_token_start]))
  kept = sum(sid in place for sid in ordered) + sum(_plain(name) in text for name in names)
  pairs = list(zip(ordered, ordered[1:], strict=False))
  kept += sum(place[a] < place[b] for a, b in pairs if a in place and b in place)
  return Facts(kept, len(ordered) + len(names) + len(pairs))


def count_ellipses(text: str) -> int:
  """How often a text breaks off: runs of three or more full stops, and the character for three."""
  return len(_ELLIPSIS.findall(text))


def _is_content(token: int, vocabulary: Vocabulary) -> bool:
  return 0 <= token < vocabulary.new_token_start or vocabulary.sid_start <= token < vocabulary.used_size


def _quoted_sids(tokens: Sequence[int], vocabulary: Vocabulary) -> list[tuple[int, ...]]:
  """Codes in runs, cut after each `num_levels`: whole semantic IDs where they were copied exactly. A soft token's id is no code."""
  sids: list[tuple[int, ...]] = []
  run: list[int] = []
  for token in [*tokens, None]:
    if token is not None and vocabulary.sid_start <= token < vocabulary.used_size:
      run.append(token)
      continue
    sids += [tuple(run[start : start + vocabulary.num_levels]) for start in range(0, len(run), vocabulary.num_levels)]
    run = []
  return sids


def _plain(text: str) -> str:
  return " ".join(text.casefold().split())
