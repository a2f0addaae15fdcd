"""Tokenizers rebuilt from GGUF metadata against those that the metadata were taken from."""

import dataclasses
import io
import json

import pytest
import sentencepiece
from small_families import CONFIGS
from small_gguf import write_gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gr2_jax.models.gguf_tokenizers import read_tokenizer
from gr2_jax.models.published import PublishedError

LINES = [
  "Rose water toner, 200 ml (pack of 2)",
  "don't they'LL it's  two   spaces\tand\n\nlines \r\n",
  "保湿面霜 五十毫升 شامبو ٢٠٠ 💅🏽 Zͫ",
  "",
  " ",
  "a<|end|>b <s> <0x41> ▁",
  "x1234567 9,000",
]


def byte_level():
  """A small tokenizer of merged bytes."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet))
  return tokenizer


def add_byte_level(tokenizer, **changes):
  """What writes a tokenizer of merged bytes into GGUF metadata, with changes of them."""
  model = json.loads(tokenizer.to_str())["model"]
  pieces = sorted(model["vocab"], key=model["vocab"].get)
  values = {
    "tokenizer_model": "gpt2",
    "tokenizer_pre": "gpt-2",
    "token_list": pieces,
    "token_types": [3 if piece == "<|end|>" else 1 for piece in pieces],
    "token_merges": [" ".join(pair) for pair in model["merges"]],
    "eos_token_id": pieces.index("<|end|>"),
  }

  def add(writer):
    for name, value in (values | changes).items():
      getattr(writer, f"add_{name}")(value)

  return len(pieces), add


def read(tmp_path, size, add):
  write_gguf(tmp_path / "model.gguf", "qwen3", dataclasses.replace(CONFIGS["qwen3"], vocab_size=size), add=add)
  texts, ids = read_tokenizer(tmp_path / "model.gguf", size)
  return Tokenizer.from_str(texts["tokenizer.json"]), {name: json.loads(text) for name, text in texts.items()}, ids


def test_merged_bytes_give_the_same_ids_and_text(tmp_path):
  trained = byte_level()
  found, files, ids = read(tmp_path, *add_byte_level(trained, chat_template="{{ messages }}", context_length=64))
  for line in LINES:
    assert found.encode(line).ids == trained.encode(line).ids, line
    assert found.decode(found.encode(line).ids, skip_special_tokens=False) == line
  assert ids == {"eos_token_id": 0} == files["generation_config.json"]
  assert files["special_tokens_map.json"] == {"eos_token": "<|end|>"}
  about = files["tokenizer_config.json"]
  assert (about["chat_template"], about["model_max_length"], about["eos_token"]) == ("{{ messages }}", 64, "<|end|>")


@pytest.mark.parametrize(
  "pre, words",
  [
    ("gpt-2", ["it", "'s", "Ġ12345", "Ġ", "Ġok", "'", "LL", "Ċ", "Ċ", "x"]),
    ("smollm", ["it", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġok", "'", "LL", "Ċ", "Ċ", "x"]),
    ("qwen2", ["it", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġok", "'LL", "ĊĊ", "x"]),
    ("llama-bpe", ["it", "'s", "Ġ", "123", "45", "Ġ", "Ġok", "'LL", "ĊĊ", "x"]),
  ],
)
def test_words_are_split_as_the_file_names(tmp_path, pre, words):
  found, _, _ = read(tmp_path, *add_byte_level(byte_level(), tokenizer_pre=pre))
  assert [word for word, _ in found.pre_tokenizer.pre_tokenize_str("it's 12345  ok'LL\n\nx")] == words


def test_texts_begin_with_bos_where_the_file_says_so(tmp_path):
  trained = byte_level()
  plain = trained.encode("rose water").ids
  found, _, ids = read(tmp_path, *add_byte_level(trained, tokenizer_pre="llama-bpe", bos_token_id=0, eot_token_id=7))
  assert found.encode("rose water").ids == [0, *plain]
  assert ids == {"bos_token_id": 0, "eos_token_id": [0, 7]}
  found, _, _ = read(tmp_path, *add_byte_level(trained, bos_token_id=0, add_bos_token=False, add_eos_token=True))
  assert found.encode("rose water").ids == [*plain, 0]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepieces_give_the_same_ids_and_text(tmp_path, prefix):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES * 3),
    model_writer=model,
    vocab_size=330,
    model_type="bpe",
    byte_fallback=True,
    add_dummy_prefix=prefix,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  size = pieces.get_piece_size()
  kinds = [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1 for i in range(size)]

  def add(writer):
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([pieces.get_score(i) for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(prefix)

  found, _, _ = read(tmp_path, size, add)
  for line in LINES:
    if "<s>" not in line:  # from a text sentencepiece never takes a control token
      assert found.encode(line).ids == pieces.encode(line), line
      assert found.decode(found.encode(line).ids) == pieces.decode(pieces.encode(line))


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"tokenizer_pre": "tekken"}, r"splits words as 'tekken' does \(tokenizer\.ggml\.pre\).* only gpt-2, smollm, qwen2, llama-bpe"),
    ({"tokenizer_model": "t5"}, r"of the type 't5', which is not read; there are gpt2, llama"),
    ({"token_merges": ["rose water"]}, r"joins 'rose water', which are no tokens"),
    ({"token_types": [1]}, r"token_type has 1 entries for \d+ tokens"),
    ({"eos_token_id": 9999}, r"its eos_token is token 9999 of"),
    ({"token_list": ["a", "b"]}, r"has 2 tokens and its model \d+; they are of different models"),
  ],
)
def test_a_tokenizer_that_is_not_read_is_said_in_a_sentence(tmp_path, changes, words):
  with pytest.raises(PublishedError, match=words):
    read(tmp_path, *add_byte_level(byte_level(), **changes))
