"""A vocabulary as the files that Hugging Face's tokenizers are read from, with a chat template that makes our prompts."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from gr2_jax.data.schema import DataError
from gr2_jax.language.text_pieces import TOKENIZER_FILE, OwnPieces, TextPieces
from gr2_jax.language.vocabulary import Vocabulary

_SPACE = "▁"
# What sentencepiece's rules nmt_nfkc do besides NFKC: these become spaces, and those go.
_SPACES = r"[\x{0}\t\n\f\r\x{61c}\x{1680}\x{200b}\x{200c}\x{200e}\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"
_DELETED = r"[\x{1}-\x{8}\x{b}\x{e}-\x{1f}\x{7f}\x{8f}\x{9f}]"
# The tilde of Japanese titles stays, which NFKC makes a narrow one: meanwhile a character stands for it that no text has.
_WIDE_TILDE, _STAND_IN = "～", "\U0010ffff"
_NEVER = -1e6  # the score of what no text is read as
_FRAMES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad"}

# Frames as they are written; an assistant's turn that is not the last ends with the frame of eos.
_TEMPLATE = """\
{{%- for message in messages -%}}
{{%- if message.role == 'system' -%}}{{{{ {system} }}}}{{{{ message.content }}}}
{{%- elif message.role == 'user' -%}}{{{{ {first} if loop.first else {user} }}}}{{{{ message.content }}}}
{{%- else -%}}{{{{ {assistant} }}}}{{{{ message.content }}}}{{{{ {eos} }}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ {opening} }}}}{{%- endif -%}}
"""


def tokenizer_files(vocabulary: Vocabulary, opening: Sequence[int], max_length: int) -> dict[str, str]:
  """File name -> text. `opening`: tokens that the assistant's turn begins with, see `prompts.direct_opening`; `max_length` in tokens.

  Raises DataError for a vocabulary over a published sentencepiece model, which stands in no tokenizer.json.
  """
  tokenizer, frame = make_tokenizer(vocabulary), vocabulary.frame
  special = {name: _write(tokenizer, frame(of)) for name, of in _FRAMES.items() if len(frame(of)) == 1}
  if isinstance(vocabulary.pieces, OwnPieces):
    special["unk_token"] = _pieces(vocabulary.pieces)[0][0]
  about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": max_length}
  written = {
    "system": (*frame("bos"), *frame("system")),
    "first": vocabulary.first_turn(),
    "user": frame("user"),
    "assistant": frame("assistant"),
    "eos": frame("eos"),
    "opening": (*frame("assistant"), *opening),
  }
  texts = {name: json.dumps(_write(tokenizer, tokens), ensure_ascii=False) for name, tokens in written.items()}
  return {
    "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
    "tokenizer_config.json": json.dumps(special | about, indent=2, ensure_ascii=False) + "\n",
    "special_tokens_map.json": json.dumps(special, indent=2, ensure_ascii=False) + "\n",
    "chat_template.jinja": _TEMPLATE.format(**texts),
  }


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
  """The vocabulary as a tokenizer of the library `tokenizers`: its pieces, then all other tokens by their surface forms, up to its size.

  Of a published model's tokenizer texts have the ids that they have there. Of own pieces ids are those of `Vocabulary.encode`, with two
  exceptions: marks that stand on one letter in another order than Unicode's are put in that order here, and letters that came to Unicode
  after sentencepiece's tables are read by their compatible forms there alone.
  Surface forms in a text are read as their tokens; with `encode_special_tokens` set they are text, as they are to `encode`.
  Raises DataError, see `tokenizer_files`.
  """
  pieces = vocabulary.pieces
  tokenizer = _own_tokenizer(pieces) if isinstance(pieces, OwnPieces) else _published_tokenizer(pieces)
  taken = {*tokenizer.get_vocab(with_added_tokens=True)}
  added = []
  for token in range(vocabulary.new_token_start, vocabulary.size):
    surface = vocabulary.surface(token) if token < vocabulary.used_size else f"<unused_{token - vocabulary.used_size}>"
    while surface in taken:  # a piece of the text looks like it, or the word of another fact
      surface = f"{surface[:-1]}_>"
    taken.add(surface)
    added.append(AddedToken(surface, normalized=False, special=True))
  tokenizer.add_special_tokens(added)
  assert tokenizer.token_to_id(added[-1].content) == vocabulary.size - 1
  return tokenizer


def _published_tokenizer(pieces: TextPieces) -> Tokenizer:
  files = pieces.files()
  if TOKENIZER_FILE not in files:
    raise DataError("its tokenizer is a published sentencepiece model, which is not written; begin at a folder that has tokenizer.json")
  return Tokenizer.from_buffer(files[TOKENIZER_FILE])


def _own_tokenizer(pieces: OwnPieces) -> Tokenizer:
  tokenizer = Tokenizer(models.Unigram(_pieces(pieces), unk_id=0, byte_fallback=True))
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.Replace(_WIDE_TILDE, _STAND_IN),
      normalizers.NFKC(),
      normalizers.Replace(_STAND_IN, _WIDE_TILDE),
      normalizers.Replace("\u32ff", "令和"),  # an era that NFKC's older tables lack
      normalizers.Replace(Regex(_DELETED), ""),
      normalizers.Replace(Regex(_SPACES), " "),
      normalizers.Replace(Regex(" {2,}"), " "),
      normalizers.Replace(Regex("^ | $"), ""),
      normalizers.Replace(" ", _SPACE),
      normalizers.Prepend(_SPACE),
    ]
  )
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  return tokenizer


def chat_messages(vocabulary: Vocabulary, prompt: Sequence[int]) -> list[dict[str, str]]:
  """A prompt's instructions and what stands behind them, as the messages of which the chat template makes that prompt."""
  tokenizer, tokens, frame = make_tokenizer(vocabulary), list(map(int, prompt)), vocabulary.frame
  head, user = len(frame("bos")) + len(frame("system")), frame("user")
  middle = _find(tokens, user, head)
  behind = middle + len(user)
  parts = {"system": tokens[head:middle], "user": tokens[behind : _find(tokens, frame("assistant"), behind)]}
  return [{"role": role, "content": _write(tokenizer, part)} for role, part in parts.items()]


def _find(tokens: Sequence[int], frame: Sequence[int], start: int) -> int:
  """Where a frame first stands from `start` on."""
  return next(place for place in range(start, len(tokens)) if tuple(tokens[place : place + len(frame)]) == tuple(frame))


def _write(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
  """The text that the tokenizer reads as these tokens."""
  text: str = tokenizer.decode(list(tokens), skip_special_tokens=False)
  return text


def _pieces(own: OwnPieces) -> list[tuple[str, float]]:
  """Pieces and their scores, of which those that are no text, single bytes among them, can't be read from a text."""
  of = own.processor
  never = lambda token: of.is_byte(token) or of.is_unknown(token) or of.is_control(token)
  return [(of.id_to_piece(token), _NEVER if never(token) else of.get_score(token)) for token in range(own.size)]
