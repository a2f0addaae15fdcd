"""Text as token ids: sentencepiece pieces that a run trains itself, or the tokenizer of a published model with its chat template."""

import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import jinja2
import sentencepiece
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gr2_jax.data.schema import DataError

TOKENIZER_FILE, SPM_FILE, SETTINGS_FILE, TEMPLATE_FILE, CONFIG_FILE = (
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "chat_template.jinja",
  "config.json",
)
OWN_FILE = "sentencepiece.model"
# Frames of which the parsers of answers ask that each is one token; `bos`, `system`, `user` and `assistant` may be several, or none.
_THOUGHTS = {"think": "<think>", "/think": "</think>"}
_SYSTEM, _USER = "SYSTEMCONTENT", "USERCONTENT"


class TextPieces(Protocol):
  """Ids 0 to `size` - 1. Those `reserved` among them are frames, which no text gives.

  `rows`: of the token table that a published model brings; 0 where there is none.
  """

  size: int
  rows: int
  reserved: frozenset[int]

  @property
  def frames(self) -> Mapping[str, tuple[int, ...]]:
    """Ids of the frames of prompts that the tokenizer has of its own, by their names in `vocabulary.SPECIALS`."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text that stands by itself, as a word in a sentence would."""

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of ids."""

  def files(self) -> Mapping[str, bytes]:
    """What `read_pieces` reads it back from, by file name."""


def find_pieces_file(folder: pathlib.Path) -> str:
  """The name of the file that holds the pieces in a folder; where there is none, that of a run's own."""
  return next((name for name in (TOKENIZER_FILE, SPM_FILE) if (folder / name).exists()), OWN_FILE)


def read_pieces(folder: pathlib.Path) -> TextPieces:
  """The pieces that lie in a folder of a run, or of a published model; raises DataError for one that holds none, or is damaged."""
  if (folder / OWN_FILE).exists():
    return OwnPieces((folder / OWN_FILE).read_bytes())
  names = (TOKENIZER_FILE, SPM_FILE, SETTINGS_FILE, TEMPLATE_FILE, CONFIG_FILE)
  files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
  if TOKENIZER_FILE in files:
    files.pop(SPM_FILE, None)  # some folders hold both; they say the same
  return PublishedPieces(files, str(folder))


class _SpmTokenizer:
  """A sentencepiece model, of `processor`, with control symbols."""

  def __init__(self, model: bytes) -> None:
    self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.size = self.processor.get_piece_size()

  @functools.cached_property
  def controls(self) -> Mapping[str, int]:
    """Piece -> id of control symbols and frames."""
    odd = (i for i in range(self.size) if self.processor.is_control(i) or _is_frame(self.processor.id_to_piece(i)))
    return {self.processor.id_to_piece(i): i for i in odd}

  @functools.cached_property
  def outside(self) -> frozenset[int]:
    """Ids that no text may give."""
    return frozenset(self.controls.values())

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    tokens: list[int] = self.processor.encode(text)
    return tokens

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of ids."""
    text: str = self.processor.decode(list(tokens))
    return text


class OwnPieces(_SpmTokenizer):
  """A sentencepiece model, all of whose ids are text (`TextPieces`)."""

  rows = 0
  reserved: frozenset[int] = frozenset()

  @property
  def frames(self) -> Mapping[str, tuple[int, ...]]:
    """None."""
    return {}

  def __init__(self, model: bytes) -> None:
    super().__init__(model)
    self._model = model
    if not self.size:
      raise ValueError("the sentencepiece model is empty")

  def __reduce__(self) -> tuple[type["OwnPieces"], tuple[bytes]]:
    return OwnPieces, (self._model,)

  def files(self) -> Mapping[str, bytes]:
    """The model."""
    return {OWN_FILE: self._model}


class PublishedPieces:
  """The tokenizer of a published model, as its folder holds it, and the frames of its chat template.

  What text never gives are its control tokens, those of the chat template and those beside its vocabulary of pieces. Without a template
  there are no frames of turns, and the prompts' own stand in for them. Raises DataError, with `origin`, for files that do not go together.
  """

  def __init__(self, files: Mapping[str, bytes], origin: str) -> None:
    self._files, self._origin = dict(files), origin
    if CONFIG_FILE not in files:
      raise DataError(f"{origin}: has no {CONFIG_FILE}, which says how many rows the token table has; give the folder of a published model")
    self.rows = int(self._json(CONFIG_FILE).get("vocab_size") or 0)
    self._read = _HfTokenizer(files[TOKENIZER_FILE], origin) if TOKENIZER_FILE in files else _spm_tokenizer(files, origin)
    self.size = self._read.size
    if self.size > self.rows:
      raise DataError(
        f"{origin}: the tokenizer has {self.size} tokens and the model {self.rows} rows for them; they are of different models"
      )
    settings = self._json(SETTINGS_FILE)
    named = {kind: _content(settings.get(f"{kind}_token")) for kind in ("bos", "eos", "pad")}
    self._frames = self._find_frames(named, _template_of(files, settings))
    self.reserved = self._read.outside
    # Else the same word reads differently at the beginning of a text and inside one.
    self._space = "" if self.encode_bare("x y") == self.encode_bare("x") + self.encode_bare("y") else " "

  @property
  def frames(self) -> Mapping[str, tuple[int, ...]]:
    """Those of the chat template, and control tokens."""
    return self._frames

  def __reduce__(self) -> tuple[type["PublishedPieces"], tuple[dict[str, bytes], str]]:
    return PublishedPieces, (self._files, self._origin)

  def encode(self, text: str) -> list[int]:
    """Ids of a text as it stands behind another word."""
    if not text:
      return []
    return self.encode_bare(text if text[0].isspace() else self._space + text)

  def encode_bare(self, text: str) -> list[int]:
    """Ids of exactly these characters."""
    tokens = self._read.encode(text)
    return [token for token in tokens if token not in self._read.outside]

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of ids, frames as they are written."""
    return self._read.decode(tokens).removeprefix(self._space)

  def files(self) -> Mapping[str, bytes]:
    """The tokenizer's files and config.json."""
    return self._files

  def _json(self, name: str) -> dict[str, Any]:
    try:
      value = json.loads(self._files.get(name, b"{}"))
    except ValueError as error:
      raise DataError(f"{self._origin}/{name}: is no JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
      raise DataError(f"{self._origin}/{name}: holds no JSON object; fetch it again")
    return value

  def _find_frames(self, named: Mapping[str, str], template: str) -> dict[str, tuple[int, ...]]:
    controls = self._read.controls
    of: dict[str, tuple[int, ...]] = {kind: (controls[text],) for kind, text in named.items() if text in controls}
    of |= {name: (controls[text],) for name, text in _THOUGHTS.items() if text in controls}
    if template:
      before, between, behind = _split_template(template, named, self._origin)
      bos, turns = of.get("bos", ()), [self._with_controls(text) for text in (before, between, behind)]
      if bos and turns[0][:1] == bos and bos[0] not in turns[1]:
        turns[0] = turns[0][1:]
      else:
        bos = ()  # the template begins without it, or every turn does
      of |= {"bos": bos} | dict(zip(("system", "user", "assistant"), turns, strict=True))
      # A turn ends with the first frame behind it, which need not be the end of a document.
      of["eos"] = next(((token,) for token in of["assistant"] if token in controls.values()), of.get("eos", ()))
      if not of["eos"]:
        raise DataError(f"{self._origin}: the chat template ends a turn with no token of its own, so an answer would have no end")
    else:
      of.setdefault("bos", ())
    if of.get("pad") == of.get("eos"):
      of.pop("pad", None)  # a padded answer would end before it is read
    return {name: tokens for name, tokens in of.items() if tokens or name in ("bos", "system", "user", "assistant")}

  def _with_controls(self, text: str) -> tuple[int, ...]:
    """Ids of a text of the chat template, in which control tokens are written out."""
    controls = self._read.controls
    pattern = "|".join(re.escape(name) for name in sorted(controls, key=len, reverse=True))
    tokens: list[int] = []
    for part in re.split(f"({pattern})", text) if pattern else [text]:
      if part in controls:
        tokens.append(controls[part])
      elif part:
        tokens += self._read.encode(part)
    return tuple(tokens)


class _HfTokenizer:
  """A tokenizer.json. `controls`: text -> id of its added tokens; `outside`: ids that no text may give."""

  def __init__(self, file: bytes, origin: str) -> None:
    try:
      self._whole = tokenizers.Tokenizer.from_buffer(file)
      spec = json.loads(file)
      pieces = self._whole.get_vocab(with_added_tokens=False)
      added = {token["content"]: token for token in spec.get("added_tokens", ())}
      # Of a text they would be taken for what they stand for: it is read by the rules for words alone. Others, such as runs of line
      # breaks, are pieces like any.
      kept = [
        token for token in added.values() if not token.get("special") and token["content"] in pieces and not _is_frame(token["content"])
      ]
      self._words = tokenizers.Tokenizer.from_buffer(json.dumps(spec | {"added_tokens": kept}).encode())
    except Exception as error:  # the library raises this class itself
      raise DataError(f"{origin}/{TOKENIZER_FILE}: is no tokenizer ({error}); fetch it again") from None
    for tokenizer in (self._whole, self._words):
      tokenizer.no_truncation()
      tokenizer.no_padding()
    self.controls = {content: int(token["id"]) for content, token in added.items() if token not in kept}
    self.outside = frozenset(self.controls.values())
    self.size = max(self._whole.get_vocab(with_added_tokens=True).values()) + 1

  def encode(self, text: str) -> list[int]:
    tokens: list[int] = self._words.encode(text, add_special_tokens=False).ids
    return tokens

  def decode(self, tokens: Sequence[int]) -> str:
    text: str = self._whole.decode(list(tokens), skip_special_tokens=False)
    return text


def _spm_tokenizer(files: Mapping[str, bytes], origin: str) -> _SpmTokenizer:
  if SPM_FILE not in files:
    raise DataError(f"{origin}: has neither {TOKENIZER_FILE} nor {SPM_FILE}; give a folder with the model's tokenizer")
  try:
    return _SpmTokenizer(files[SPM_FILE])
  except (RuntimeError, OSError) as error:
    raise DataError(f"{origin}/{SPM_FILE}: is no sentencepiece model ({error}); fetch it again") from None


def _is_frame(content: str) -> bool:
  """Whether an added piece marks turns, thoughts or tools, and is not a piece of text as html tags and runs of spaces are."""
  return bool(re.fullmatch(r"<\|.*\|>|</?(think|tool\w*|s|bos|eos|pad|unk|mask|start_of_\w+|end_of_\w+)>|\[/?[A-Z_]+\]", content))


def _content(token: Any) -> str:
  """A token of tokenizer_config.json: its text, or a record that has it."""
  return str((token.get("content") if isinstance(token, Mapping) else token) or "")


def _template_of(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str:
  if TEMPLATE_FILE in files:
    return files[TEMPLATE_FILE].decode("utf-8")
  template: Any = settings.get("chat_template") or ""
  if isinstance(template, Iterable) and not isinstance(template, str):  # several by name
    template = next((of["template"] for of in template if of.get("name") == "default"), "")
  return str(template)


def _split_template(template: str, named: Mapping[str, str], origin: str) -> tuple[str, str, str]:
  """What a chat template writes before the system's words, between them and the user's, and behind those up to the answer."""
  messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
  tokens = {f"{kind}_token": text for kind, text in named.items()}
  try:
    text = _compile(template).render(messages=messages, add_generation_prompt=True, **tokens)
  except (jinja2.TemplateError, TypeError) as error:
    raise DataError(
      f"{origin}: the chat template takes no system and user turn ({error}); put one that does into {TEMPLATE_FILE}"
    ) from None
  if text.count(_SYSTEM) != 1 or text.count(_USER) != 1 or text.index(_SYSTEM) > text.index(_USER):
    raise DataError(
      f"{origin}: the chat template does not write the system's words and then the user's; put one that does into {TEMPLATE_FILE}"
    )
  before, rest = text.split(_SYSTEM)
  between, behind = rest.split(_USER)
  return before, between, behind


def _fail(message: str) -> None:
  raise jinja2.TemplateError(message)


@functools.cache
def _compile(template: str) -> jinja2.Template:
  environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  environment.globals["raise_exception"] = _fail
  return environment.from_string(template)
