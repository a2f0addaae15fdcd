"""A vocabulary as the files that Hugging Face's tokenizers are read from, with a chat template that makes our prompts."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from gr2_jax.language.vocabulary import Vocabulary

_SPACE = "▁"
# What sentencepiece's rules nmt_nfkc do besides NFKC: these become spaces, and those go.
_SPACES = r"[\x{0}\t\n\f\r\x{61c}\x{1680}\x{200b}\x{200c}\x{200e}\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"
_DELETED = r"[\x{1}-\x{8}\x{b}\x{e}-\x{1f}\x{7f}\x{8f}\x{9f}]"
# The tilde of Japanese titles stays, which NFKC makes a narrow one: meanwhile a character stands for it that no text has.
_WIDE_TILDE, _STAND_IN = "～", "\U0010ffff"
_NEVER = -1e6  # the score of what no text is read as
_FRAMES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad"}

_TEMPLATE = """\
{{{{ bos_token }}}}
{{%- for message in messages -%}}
{{%- if message.role == 'system' -%}}<system>{{{{ message.content }}}}
{{%- elif message.role == 'user' -%}}<user>{{{{ message.content }}}}
{{%- else -%}}<assistant>{{{{ message.content }}}}{{{{ eos_token }}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}<assistant>{opening}{{%- endif -%}}
"""


def tokenizer_files(vocabulary: Vocabulary, opening: Sequence[int], max_length: int) -> dict[str, str]:
  """File name -> text. `opening`: tokens that the assistant's turn begins with, see `prompts.direct_opening`; `max_length` in tokens."""
  special = {name: vocabulary.surface(vocabulary.special(of)) for name, of in _FRAMES.items()} | {"unk_token": _pieces(vocabulary)[0][0]}
  about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": max_length}
  begins = f"{{{{ {json.dumps(vocabulary.decode(opening), ensure_ascii=False)} }}}}" if opening else ""
  return {
    "tokenizer.json": make_tokenizer(vocabulary).to_str(pretty=True) + "\n",
    "tokenizer_config.json": json.dumps(special | about, indent=2, ensure_ascii=False) + "\n",
    "special_tokens_map.json": json.dumps(special, indent=2, ensure_ascii=False) + "\n",
    "chat_template.jinja": _TEMPLATE.format(opening=begins),
  }


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
  """The vocabulary as a tokenizer of the library `tokenizers`: its pieces, then all other tokens by their surface forms, up to its size.

  Ids are those of `Vocabulary.encode`, with two exceptions: marks that stand on one letter in another order than Unicode's are put in that
  order here, and letters that came to Unicode after sentencepiece's tables are read by their compatible forms there alone.
  Surface forms in a text are read as their tokens; with `encode_special_tokens` set they are text, as they are to `encode`.
  """
  pieces = _pieces(vocabulary)
  tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
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
  taken = {piece for piece, _ in pieces}
  added = []
  for token in range(vocabulary.new_token_start, vocabulary.size):
    surface = vocabulary.surface(token) if token < vocabulary.used_size else f"<unused_{token - vocabulary.used_size}>"
    while surface in taken:  # a piece of the text looks like it, or the word of another fact
      surface = f"{surface[:-1]}_>"
    taken.add(surface)
    added.append(AddedToken(surface, normalized=False, special=True))
  tokenizer.add_special_tokens(added)
  assert tokenizer.get_vocab_size() == vocabulary.size
  return tokenizer


def chat_messages(vocabulary: Vocabulary, prompt: Sequence[int]) -> list[dict[str, str]]:
  """A prompt's instructions and what stands behind them, as the messages of which the chat template makes that prompt."""
  tokens = list(map(int, prompt))
  begin, middle = tokens.index(vocabulary.special("system")), tokens.index(vocabulary.special("user"))
  end = tokens.index(vocabulary.special("assistant"))
  parts = {"system": tokens[begin + 1 : middle], "user": tokens[middle + 1 : end]}
  return [{"role": role, "content": vocabulary.decode(part)} for role, part in parts.items()]


def _pieces(vocabulary: Vocabulary) -> list[tuple[str, float]]:
  """Pieces and their scores, of which those that are no text, single bytes among them, can't be read from a text."""
  of = vocabulary._processor
  never = lambda token: of.is_byte(token) or of.is_unknown(token) or of.is_control(token)
  return [(of.id_to_piece(token), _NEVER if never(token) else of.get_score(token)) for token in range(vocabulary.new_token_start)]
