"""What the shapes of a config's steps depend on besides the config: counts of its data, and a vocabulary of the size that it asks for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from sentencepiece import sentencepiece_model_pb2

from gr2_jax.language.text_pieces import OwnPieces
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.runs.starts import read_tokenizer

_FIELD = 13  # tokens of an item's field in a history, as they are in configs/ablations/compressor.py


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a run's data: `items`, `users`, their `interactions` (all of the log), `slates` by split, of at most `candidates`; `levels` and
  `codebook_size` of semantic IDs; `vector_dim` of the items' text vectors.
  """

  items: int
  users: int
  interactions: int
  slates: Mapping[str, int]
  candidates: int
  levels: int
  codebook_size: int
  vector_dim: int


def make_vocabulary(config: ConfigDict, sizes: Sizes) -> Vocabulary:
  """A vocabulary in which every kind of token is as many as the config asks for, and so has the place that it will have: placeholders,
  behind the tokens of a published model where the run begins with one.
  """
  words = config.prompt.facts if config.prompt.fact_form == "words" else ()
  shape: dict[str, Any] = {
    "num_levels": sizes.levels,
    "codebook_size": sizes.codebook_size,
    "num_candidates": config.tokenize.num_candidates,
    "facts": words,
    "fact_buckets": config.evidence.bins if words else 0,
  }
  published = read_tokenizer(config, **shape)
  if published is not None:
    return published
  model = sentencepiece_model_pb2.ModelProto()
  for number in range(config.tokenize.text_pieces):
    model.pieces.add(piece=f"piece{number}" if number else "<unk>", score=-float(number), type=1 if number else 2)
  return Vocabulary(OwnPieces(model.SerializeToString()), **shape)


def item_length(config: ConfigDict, sizes: Sizes) -> int:
  """Tokens of an item in a history, about."""
  return sizes.levels + 2 * config.prompt.sid_markers + _FIELD * len(config.prompt.history_fields)


def history_length(config: ConfigDict, sizes: Sizes) -> int:
  """Tokens of a whole history in a prompt, about: of as many items as it may have, and at most three quarters of the prompt."""
  return min(config.prompt.max_history * item_length(config, sizes), 3 * config.prompt.max_prompt_tokens // 4)


def shortened_prompt(config: ConfigDict, sizes: Sizes) -> int:
  """Tokens of a prompt with a history within the budget of the stage compress, about."""
  whole = history_length(config, sizes)
  return config.prompt.max_prompt_tokens - whole + min(config.compress.budget, whole)
