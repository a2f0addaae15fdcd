"""One vocabulary of text pieces, frames, words for facts, candidate names and semantic-ID codes."""

import functools
import io
import json
import pathlib
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from gr2_jax.data import schema
from gr2_jax.evidence.words import FACT_WORDS, level_word
from gr2_jax.language import templates
from gr2_jax.language.text_pieces import OwnPieces, TextPieces, find_pieces_file, read_pieces

SPECIALS = (
  "pad",
  "bos",
  "eos",
  "system",
  "user",
  "assistant",
  "think",
  "/think",
  "answer",
  "/answer",
  "history",
  "candidates",
  "sid",
  "/sid",
)
_REQUIRED = string.ascii_letters + string.digits + string.punctuation
FEWEST_PIECES = 256 + len(_REQUIRED) + 2  # bytes, the space and the unknown piece: a vocabulary has room for no less
_SHAPE_FILE = "vocabulary.json"
_LONGEST_SENTENCE = 1000  # characters; sentencepiece leaves out lines above 4,192 bytes without a word
_NAME_REPEATS = 4  # names stand in every prompt, so they count more than in the catalogue and become whole pieces
_TEMPLATE_SHARE = 200  # each fixed sentence stands once in this many lines, at least 50 times, so its words become whole pieces too


def corpus_texts(catalogue: schema.Catalogue, sentences: Sequence[str] = ()) -> list[str]:
  """Texts to train a vocabulary on: titles, brands and categories of all items, then fixed sentences: those of templates, and others."""
  texts: list[str] = []
  for item in catalogue.items:
    names = [name for name in (item.brand, *item.categories) if name]
    texts += [text for text in (item.title, item.description) if text] + _twice(names) * _NAME_REPEATS
  fixed = [*templates.template_texts(), *sentences]
  return texts + (fixed + _twice(fixed)) * max(50, len(texts) // _TEMPLATE_SHARE)


def _twice(texts: list[str]) -> list[str]:
  # sentencepiece takes a string for a candidate piece only where it stands before different characters, so a word that always ends
  # a line, or always stands before the same word, would never become a piece: here each stands before itself and at the end.
  return [f"{word} {word}" for text in texts for word in text.split()]


def candidate_name(slot: int) -> str:
  """Name of the candidate shown at `slot`: A..Z, AA, AB, ... as in a spreadsheet."""
  name = ""
  slot += 1
  while slot:
    slot, letter = divmod(slot - 1, 26)
    name = chr(ord("A") + letter) + name
  return name


class Vocabulary:
  """Token ids: pieces of text, then frames, words for facts, candidate names and SID codes (level by level), padded to a multiple of 128.

  Each of `facts` has a word for each of `fact_buckets` quantile buckets. Frames that the pieces of a published model have of their own stay
  where they are, and only the others come behind.
  Data reaches the model through `encode` alone, which yields text pieces only, so no title can forge a frame, a candidate or a SID.
  `candidate_tokens [Kmax]` and `sid_token_ids [levels, codebook]` are int32 arrays; `new_token_start` is the first id that no published
  model knows, or that is not text.
  """

  def __init__(
    self, pieces: TextPieces, num_levels: int, codebook_size: int, num_candidates: int, facts: Sequence[str] = (), fact_buckets: int = 0
  ) -> None:
    if not 1 <= num_levels <= 26:
      raise ValueError(f"num_levels: {num_levels} must be 1 to 26; levels are written as letters")
    self.pieces = pieces
    self.num_levels, self.codebook_size, self.num_candidates = num_levels, codebook_size, num_candidates
    self.new_token_start = pieces.size
    self._added = tuple(name for name in SPECIALS if name not in pieces.frames)
    self._frames = {name: (self.new_token_start + i,) for i, name in enumerate(self._added)} | dict(pieces.frames)
    self.facts, self.fact_buckets = tuple(facts), fact_buckets
    self.fact_start = self.new_token_start + len(self._added)
    self.candidate_start = self.fact_start + len(self.facts) * fact_buckets
    self.sid_start = self.candidate_start + num_candidates
    self.used_size = self.sid_start + num_levels * codebook_size
    self.size = -(-max(self.used_size, pieces.rows) // 128) * 128
    self.candidate_tokens = np.arange(self.candidate_start, self.sid_start, dtype=np.int32)
    self.sid_token_ids = np.arange(self.sid_start, self.used_size, dtype=np.int32).reshape(num_levels, codebook_size)
    self.pad_id, self.eos_id = (self.special(name) for name in ("pad", "eos"))

  def __reduce__(self) -> tuple[type["Vocabulary"], tuple[Any, ...]]:
    return Vocabulary, (self.pieces, self.num_levels, self.codebook_size, self.num_candidates, self.facts, self.fact_buckets)

  @classmethod
  def train(
    cls,
    texts: Iterable[str],
    *,
    text_pieces: int,
    num_levels: int,
    codebook_size: int,
    num_candidates: int,
    facts: Sequence[str] = (),
    fact_buckets: int = 0,
  ) -> "Vocabulary":
    """Fits the text pieces on `texts` (see `corpus_texts`) and lays the other tokens behind them.

    `text_pieces` is an upper bound: a small corpus gives fewer. 256 of them are single bytes, so every script can be written.
    Raises DataError when the corpus is empty or `text_pieces` can't hold its characters. The result depends on nothing else.
    """
    model = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences(texts)),
        model_writer=model,
        vocab_size=text_pieces,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        required_chars=_REQUIRED,
        num_threads=1,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
      )
    except (RuntimeError, OSError) as error:
      raise schema.DataError(f"text_pieces: {text_pieces} did not work for this corpus ({error}); raise it or give more text") from None
    return cls(OwnPieces(model.getvalue()), num_levels, codebook_size, num_candidates, facts, fact_buckets)

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes the files of the text pieces and the shape of the other tokens into `directory`."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self.pieces.files().items():
      (directory / name).write_bytes(content)
    shape: dict[str, Any] = {"num_levels": self.num_levels, "codebook_size": self.codebook_size, "num_candidates": self.num_candidates}
    if self.facts:
      shape |= {"facts": self.facts, "fact_buckets": self.fact_buckets}
    (directory / _SHAPE_FILE).write_text(json.dumps(shape) + "\n", encoding="utf-8")

  @classmethod
  def load(cls, directory: str | pathlib.Path) -> "Vocabulary":
    """Reads what `save` wrote; raises DataError when a file is missing or damaged."""
    directory = pathlib.Path(directory)
    if missing := [name for name in (find_pieces_file(directory), _SHAPE_FILE) if not (directory / name).exists()]:
      raise schema.DataError(f"{directory / missing[0]}: not there; run the tokenize stage, which writes it")
    try:
      return cls(read_pieces(directory), **json.loads((directory / _SHAPE_FILE).read_bytes()))
    except (ValueError, TypeError, RuntimeError) as error:  # of JSON, of its keys, of sentencepiece
      raise schema.DataError(f"{directory}: is no vocabulary ({error}); run the tokenize stage again") from None

  def encode(self, text: str) -> list[int]:
    """Text pieces of `text` (NFKC, control characters dropped); never a frame, candidate or SID token."""
    return self.pieces.encode(_clean(text))

  def decode(self, tokens: Sequence[int]) -> str:
    """Readable text of any ids: text pieces, and the surface forms of other tokens (`<think>`, `<A>`, `<s_a_12>`) between spaces."""
    parts: list[str] = []
    run: list[int] = []
    for token in map(int, tokens):
      if 0 <= token < self.new_token_start:
        run.append(token)
        continue
      if run:
        parts.append(self.pieces.decode(run))
        run = []
      parts.append(self.surface(token))
    if run:
      parts.append(self.pieces.decode(run))
    return " ".join(parts)

  def surface(self, token: int) -> str:
    """Surface form of one token that is not text; ids that nothing uses read `<unused>`."""
    if self.new_token_start <= token < self.fact_start:
      return f"<{self._added[token - self.new_token_start]}>"
    if self.fact_start <= token < self.candidate_start:
      fact, bucket = divmod(token - self.fact_start, self.fact_buckets)
      return f"<{level_word(FACT_WORDS[self.facts[fact]].short, bucket, self.fact_buckets)}>"
    if self.candidate_start <= token < self.sid_start:
      return f"<{candidate_name(token - self.candidate_start)}>"
    if self.sid_start <= token < self.used_size:
      level, code = divmod(token - self.sid_start, self.codebook_size)
      return f"<s_{chr(ord('a') + level)}_{code}>"
    return "<unused>"

  def named_like(self) -> tuple[tuple[int, ...], ...]:
    """Of the added frames, words for facts and candidate names the pieces that say the same: `A` of `<A>`, `answer` of `</answer>`."""
    named = range(self.new_token_start, self.sid_start)
    return tuple(tuple(self.encode(self.surface(token).strip("</>").replace(":", " "))) for token in named)

  def special(self, name: str) -> int:
    """Id of the frame `name`, one of SPECIALS, where it is a single token: all but those that open turns (see `frame`)."""
    (token,) = self._frames[name]
    return token

  def frame(self, name: str) -> tuple[int, ...]:
    """Ids of the frame `name`, one of SPECIALS; a published model's chat template may open a turn with several tokens, or with none."""
    return self._frames[name]

  def first_turn(self) -> tuple[int, ...]:
    """What opens a prompt that begins with the user's words; a published model's chat template then has its system turn empty."""
    system = self.frame("system") if "system" in self.pieces.frames else ()
    return (*self.frame("bos"), *system, *self.frame("user"))

  def fact_word(self, fact: str, bucket: int) -> int:
    """Id of the word for a quantile bucket of a fact; raises DataError for a fact that has none."""
    if fact not in self.facts:
      raise schema.DataError(f"prompt.facts: the vocabulary has no words for {fact!r}; run the tokenize stage again, which adds them")
    return self.fact_start + self.facts.index(fact) * self.fact_buckets + bucket

  def sid_tokens(self, codes: Sequence[int]) -> list[int]:
    """Tokens of one item's codes `[levels]`, without begin and end markers."""
    return [self.sid_start + level * self.codebook_size + int(code) for level, code in enumerate(codes)]

  @functools.cached_property
  def forbidden_ids(self) -> frozenset[int]:
    """Frame tokens that reasoning can't hold: all but the markers of a SID."""
    added = range(self.new_token_start, self.fact_start)
    return (self.pieces.reserved | frozenset(added)) - {self.special("sid"), self.special("/sid")}


def _clean(text: str) -> str:
  # JSON may carry lone surrogates, which UTF-8 can't: they become question marks. NUL is the one control character that NFKC rules keep.
  return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", " ")


def _sentences(texts: Iterable[str]) -> Iterable[str]:
  for text in texts:
    text = _clean(text)
    for start in range(0, len(text), _LONGEST_SENTENCE):
      yield text[start : start + _LONGEST_SENTENCE]
