"""Mid-training tasks: sequences in which semantic IDs and text alternate (OneRec-Think's four tasks without general text).

Each task is a pure function of rows; `MidtrainCorpus` draws task and rows from (seed, index) alone, so any index can be read at random.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gr2_jax.data import schema
from gr2_jax.language import templates
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.settings import check_settings, setting

_PERSONA_STYLE = PromptStyle()  # items look as in the compact re-ranking prompt, which later stages train on
_NAMES_IN_SUMMARY = 2


@dataclasses.dataclass(frozen=True)
class Example:
  """`tokens [T]` int32 and `loss_weights [T]` float32: the weight of predicting that very token (the first is never predicted)."""

  tokens: np.ndarray
  loss_weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Shares of the tasks; they are normalised. The defaults are OneRec-Think's, its general text left out. Raises ValueError."""

  next_item: float = setting(0.66, "share of examples that are histories as semantic IDs alone", low=0)
  persona: float = setting(0.24, "share of examples that are histories with their items' names, summed up in a sentence", low=0)
  item_to_text: float = setting(0.05, "share of examples that describe an item from its semantic ID", low=0)
  text_to_item: float = setting(0.05, "share of examples that find an item's semantic ID from its text", low=0)

  def __post_init__(self) -> None:
    check_settings(self)
    if not any(dataclasses.astuple(self)):
      raise ValueError("next_item: the shares of all tasks are 0; give one of them more")

  @property
  def probabilities(self) -> np.ndarray:
    """Normalised shares in the order of the fields."""
    shares = np.asarray(dataclasses.astuple(self))
    return np.asarray(shares / shares.sum())


SINGLE_TASK = Mixture(next_item=1.0, persona=0.0, item_to_text=0.0, text_to_item=0.0)
_TASKS = tuple(field.name for field in dataclasses.fields(Mixture))


def next_item_prompt(history_rows: Sequence[int] | np.ndarray, context: PromptContext, max_history: int) -> list[int]:
  """What the constrained beam search continues with the target's codes: bos, history, and the codes of the last `max_history` items."""
  vocabulary = context.vocabulary
  codes = [token for row in history_rows[-max_history:] for token in context.sid_tokens(row, markers=False)]
  return [*vocabulary.frame("bos"), vocabulary.special("history"), *codes]


def next_item(rows: Sequence[int] | np.ndarray, context: PromptContext, max_history: int) -> Example:
  """Histories as codes alone: every item is predicted from those before it, so the last one is the next item of the prompt before."""
  opening = next_item_prompt((), context, 0)
  return _example(opening, next_item_prompt(rows, context, max_history + 1)[len(opening) :])


def item_to_text(row: int, context: PromptContext) -> Example:
  """Codes → title, brand and categories (dense captioning)."""
  prompt = _ask(context, templates.DESCRIBE, context.sid_tokens(row, markers=False))
  return _example(prompt, [*_item_text(row, context), context.vocabulary.eos_id])


def text_to_item(row: int, context: PromptContext) -> Example:
  """Title, brand and categories → codes."""
  prompt = _ask(context, templates.FIND, _item_text(row, context))
  return _example(prompt, [*context.sid_tokens(row, markers=False), context.vocabulary.eos_id])


def _ask(context: PromptContext, question: str, about: Sequence[int]) -> list[int]:
  vocabulary = context.vocabulary
  return [*vocabulary.first_turn(), *context.text(question), *about, *vocabulary.frame("assistant")]


def persona(rows: Sequence[int] | np.ndarray, context: PromptContext, max_history: int) -> Example:
  """A history whose codes alternate with the items' categories and brands, then one sentence about the user's taste that quotes items.

  Quotes teach to copy an item from the context, which no history does: nobody buys an item twice.
  """
  frame = context.vocabulary.frame
  rows = rows[-max_history:]
  items = [token for row in rows for token in context.item_tokens(row, _PERSONA_STYLE.history_fields, _PERSONA_STYLE)]
  summary = [*frame("assistant"), *taste_summary(rows, context), *frame("eos")]
  return _example([*frame("bos"), *frame("history")], items + summary)


def taste_summary(rows: Sequence[int] | np.ndarray, context: PromptContext) -> list[int]:
  """One sentence: the most frequent categories, each with its items quoted, and the most frequent brands; ties by what was bought first."""
  items = context.catalogue.items
  category_of = {row: items[row].leaf or templates.UNKNOWN_CATEGORY for row in rows}
  top = [name for name, _ in Counter(category_of[row] for row in rows).most_common(_NAMES_IN_SUMMARY)]
  tokens = context.text(templates.TASTE)
  for place, name in enumerate(top):
    tokens = tokens + (context.text(templates.AND) if place else []) + context.text(name)
    tokens += [token for row in rows if category_of[row] == name for token in context.sid_tokens(row, markers=False)]
  named = [brand for row in rows if (brand := items[row].brand)]
  brands = [name for name, _ in Counter(named).most_common(_NAMES_IN_SUMMARY)]
  return tokens + (context.text(templates.BY.format(brands=f" {templates.AND} ".join(brands))) if brands else [])


def _item_text(row: int, context: PromptContext) -> list[int]:
  item = context.catalogue.items[row]
  return context.vocabulary.encode(" | ".join(text for text in (item.title, item.brand, " > ".join(item.categories)) if text))


def _example(prompt: list[int], target: list[int]) -> Example:
  tokens = np.asarray(prompt + target, np.int32)
  return Example(tokens, np.repeat(np.asarray([0, 1], np.float32), [len(prompt), len(target)]))


def make_example(
  task: str, rows: Sequence[np.ndarray], context: PromptContext, max_history: int, generator: np.random.Generator, index: int
) -> Example:
  """One example of `task` for user `index`, or, for the two caption tasks, for an item that `generator` draws.

  A history that is longer than a prompt gives a window that ends anywhere in it, so that its older items are learnt too.
  """
  if task in ("item_to_text", "text_to_item"):
    row = int(generator.integers(len(context.catalogue)))
    return (item_to_text if task == "item_to_text" else text_to_item)(row, context)
  history = rows[index]
  if len(history) > max_history + 1:
    history = history[: generator.integers(max_history + 1, len(history) + 1)]
  return (next_item if task == "next_item" else persona)(history, context, max_history)


@dataclasses.dataclass(frozen=True, eq=False)
class MidtrainCorpus:
  """A random-access source for Grain: `epochs` passes over the users of `histories`, each index with its own task and draws.

  Raises DataError for an item that the catalogue lacks and for a corpus without users.
  """

  histories: Sequence[schema.History]
  context: PromptContext
  mixture: Mixture
  seed: int
  max_history: int
  epochs: int = 1
  rows: tuple[np.ndarray, ...] = dataclasses.field(init=False, repr=False)

  def __post_init__(self) -> None:
    if not self.histories:
      raise schema.DataError("histories: none to train on; check the interactions file and the splits")
    rows = tuple(np.asarray(self.context.catalogue.to_rows(history.items)) for history in self.histories)
    object.__setattr__(self, "rows", rows)

  def __len__(self) -> int:
    return len(self.rows) * self.epochs

  def __getitem__(self, index: int) -> Example:
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of {len(self)}")
    generator = np.random.default_rng((self.seed, index))
    task = _TASKS[generator.choice(len(_TASKS), p=self.mixture.probabilities)]
    return make_example(task, self.rows, self.context, self.max_history, generator, index % len(self.rows))
