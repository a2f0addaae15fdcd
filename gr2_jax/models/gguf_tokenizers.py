"""The tokenizer in a GGUF file's metadata, as the files that Hugging Face's tokenizers are read from."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gr2_jax.models.gguf_files import open_reader
from gr2_jax.models.published import PublishedError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPACE = "▁"


def read_tokenizer(path: str | os.PathLike[str], vocab_size: int) -> tuple[dict[str, str], dict[str, Any]]:
  """(file name -> text, the ids that config.json names) of what goes along with a GGUF file's model of `vocab_size` tokens.

  The files are `tokenizer.json`, `tokenizer_config.json` with the special tokens and the chat template, `special_tokens_map.json` and
  `generation_config.json`. Raises PublishedError for a tokenizer that is not read, and for another model's.
  """
  path = pathlib.Path(path)
  fields = _Fields(path)
  pieces: list[str] = fields.need("ggml.tokens")
  if len(pieces) != vocab_size:
    raise PublishedError(f"{path}: its tokenizer has {len(pieces)} tokens and its model {vocab_size}; they are of different models")
  if len(set(pieces)) < len(pieces):
    raise PublishedError(f"{path}: a token stands twice in tokenizer.ggml.tokens; take the file from where it was published")
  for name in ("ggml.token_type", "ggml.scores"):
    if (of := fields.get(name)) is not None and len(of) != len(pieces):
      raise PublishedError(f"{path}: tokenizer.{name} has {len(of)} entries for {len(pieces)} tokens; fetch the file again")
  kind = fields.need("ggml.model")
  if kind not in _KINDS:
    raise PublishedError(f"{path}: its tokenizer is of the type {kind!r}, which is not read; there are {', '.join(_KINDS)}")
  tokenizer = _KINDS[kind](fields, pieces)
  own = [(piece, of) for piece, of in zip(pieces, fields.types or [_NORMAL] * len(pieces), strict=True) if of in (_CONTROL, _USER_DEFINED)]
  tokenizer.add_tokens([AddedToken(piece, normalized=False, special=of == _CONTROL) for piece, of in own])
  ids: dict[str, int | None] = {name: fields.get(f"ggml.{key}_token_id") for name, key in _SPECIAL.items()}
  for name, place in ids.items():
    if place is not None and not 0 <= place < len(pieces):
      raise PublishedError(f"{path}: its {name} is token {place} of {len(pieces)}; take the file from where it was published")
  _add_ends(fields, tokenizer, pieces, ids)

  special = {name: pieces[place] for name, place in ids.items() if place is not None}
  about = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_max_length": fields.context_length,
    "chat_template": fields.get("chat_template"),
  }
  ends = list(dict.fromkeys(place for place in (ids["eos_token"], fields.get("ggml.eot_token_id")) if place is not None))
  numbers = {
    "bos_token_id": ids["bos_token"],
    "eos_token_id": ends if len(ends) > 1 else ids["eos_token"],
    "pad_token_id": ids["pad_token"],
  }
  numbers = {name: value for name, value in numbers.items() if value is not None}
  texts = {
    "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
    "tokenizer_config.json": _dump(special | about),
    "special_tokens_map.json": _dump(special),
    "generation_config.json": _dump(numbers),
  }
  return texts, numbers


def _dump(values: Mapping[str, Any]) -> str:
  return json.dumps({name: value for name, value in values.items() if value is not None}, indent=2, ensure_ascii=False) + "\n"


class _Fields:
  """The metadata of a file that are about its tokenizer."""

  def __init__(self, path: pathlib.Path) -> None:
    self.path = path
    self._fields = open_reader(path).fields
    architecture = self._fields["general.architecture"].contents()
    length = self._fields.get(f"{architecture}.context_length")
    self.context_length: int | None = None if length is None else int(length.contents())
    self.types: Sequence[int] = self.get("ggml.token_type") or []

  def get(self, name: str, default: Any = None) -> Any:
    """A value of the metadata, as Python has it."""
    field = self._fields.get(f"tokenizer.{name}")
    return default if field is None else field.contents()

  def need(self, name: str) -> Any:
    """A value that must be there."""
    if (found := self.get(name)) is None:
      raise PublishedError(f"{self.path}: tokenizer.{name} is missing; give a file that holds its tokenizer")
    return found


def _byte_level(fields: _Fields, pieces: Sequence[str]) -> Tokenizer:
  """Merges of bytes, after a split into words that `tokenizer.ggml.pre` names."""
  pre = fields.get("ggml.pre", "(none)")
  if pre not in _SPLITS:
    raise PublishedError(
      f"{fields.path}: its tokenizer splits words as {pre!r} does (tokenizer.ggml.pre), which is not read, only {', '.join(_SPLITS)}; "
      "give the model as a folder with its tokenizer.json"
    )
  merges = _split_merges(fields, set(pieces))
  # Llama 3 takes a word that is a token whole, whatever its merges would make of it.
  model = models.BPE(_numbered(pieces), merges, ignore_merges=pre == "llama-bpe")
  tokenizer = Tokenizer(model)
  if pre == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = _SPLITS[pre]
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _words(digits: int) -> pre_tokenizers.PreTokenizer:
  """Words, and numbers of at most so many digits."""
  split = pre_tokenizers.Split(Regex(_WORDS % digits), "isolated")
  return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_SPLITS: dict[str, pre_tokenizers.PreTokenizer] = {
  "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
  "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
  "qwen2": _words(1),
  "llama-bpe": _words(3),
}


def _split_merges(fields: _Fields, pieces: set[str]) -> list[tuple[str, str]]:
  found = []
  for merge in fields.need("ggml.merges"):
    left, _, right = merge.partition(" ")
    if not {left, right, left + right} <= pieces:
      raise PublishedError(f"{fields.path}: tokenizer.ggml.merges joins {merge!r}, which are no tokens of it; fetch the file again")
    found.append((left, right))
  return found


def _sentencepiece(fields: _Fields, pieces: Sequence[str]) -> Tokenizer:
  """Merges of characters, best score first, and bytes for those that are in no piece."""
  scores: Sequence[float] = fields.need("ggml.scores")
  unknown = fields.get("ggml.unknown_token_id")
  plain = set(pieces) if not fields.types else {p for p, of in zip(pieces, fields.types, strict=True) if of in (_NORMAL, _USER_DEFINED)}
  model = models.BPE(
    _numbered(pieces),
    list(_merges_by_score({piece: score for piece, score in zip(pieces, scores, strict=True) if piece in plain})),
    unk_token=None if unknown is None else pieces[unknown],
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer = Tokenizer(model)
  replaced: list[Any] = [normalizers.Replace(" ", _SPACE)]
  back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  if fields.get("ggml.add_space_prefix", True):
    replaced, back = [normalizers.Prepend(_SPACE), *replaced], [*back, decoders.Strip(" ", 1, 0)]
  tokenizer.normalizer = normalizers.Sequence(replaced)
  tokenizer.decoder = decoders.Sequence(back)
  return tokenizer


def _merges_by_score(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
  """Every two pieces that join to a third, those of the better third first."""
  places = {piece: place for place, piece in enumerate(scores)}
  found = []
  for piece, score in scores.items():
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in places and right in places:
        found.append((-score, places[piece], places[left], places[right], left, right))
  for *_, left, right in sorted(found):
    yield left, right


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _numbered(pieces: Sequence[str]) -> dict[str, int]:
  return {piece: place for place, piece in enumerate(pieces)}


def _adds_bos(fields: _Fields) -> bool:
  """Whether texts begin with the token bos, where the file does not say as its type does."""
  usual = fields.get("ggml.model") == "llama" or fields.get("ggml.pre") == "llama-bpe"
  return bool(fields.get("ggml.add_bos_token", usual))


def _add_ends(fields: _Fields, tokenizer: Tokenizer, pieces: Sequence[str], ids: Mapping[str, int | None]) -> None:
  """Lets the tokenizer put bos before a text and eos behind it, where the file says so."""
  before = [ids["bos_token"]] if _adds_bos(fields) else []
  behind = [ids["eos_token"]] if fields.get("ggml.add_eos_token", False) else []
  ends = [(pieces[place], place) for place in (*before, *behind) if place is not None]
  if ends:
    names = [[pieces[place] for place in side if place is not None] for side in (before, behind)]
    processor = processors.TemplateProcessing(single=[*names[0], "$A", *names[1]], special_tokens=ends)
    tokenizer.post_processor = processor
