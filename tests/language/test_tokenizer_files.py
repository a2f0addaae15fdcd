"""A vocabulary written as tokenizer.json reads texts and prompts as the vocabulary does."""

import json
import random
import unicodedata

import jinja2
import pytest
from tokenizers import Tokenizer

from gr2_jax.data.schema import Catalogue, Item
from gr2_jax.language.tokenizer_files import chat_messages, make_tokenizer, tokenizer_files
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts

WORDS = [
  "rose toner",
  "200ml",
  " ",
  "   ",
  "\t",
  "\n",
  "\r\n",
  "\x00",
  "\x07",
  "▁",
  "<A>",
  "<think>",
  "<0x41>",
  "<unk>",
  "<s_a_1>",
  "～",
  "㋿",
]
WORDS += [
  "e\u0301",
  "か\u3099",
  "각",
  "ﬁ",
  "①",
  "\u200b",
  "\u200d",
  "\ufeff",
  "保湿面霜",
  "شامبو",
  "שמפו",
  "💅🏽",
  "👩‍👩‍👧",
  "Å",
  "\ue000",
  "\U00020000",
]


@pytest.fixture(scope="module")
def vocab():
  items = [Item(f"i{n}", f"Rose Toner {n} <A> of Velora, {n}0 ml", "Velora", ("Skin Care", "Toner")) for n in range(9)]
  shape = {"text_pieces": 600, "num_levels": 3, "codebook_size": 8, "num_candidates": 30}
  return Vocabulary.train(corpus_texts(Catalogue(tuple(items))), **shape, facts=("popularity", "age"), fact_buckets=4)


@pytest.fixture(scope="module")
def tokenizer(vocab):
  return Tokenizer.from_str(make_tokenizer(vocab).to_str())


def stacks_marks(text):
  """Whether two marks stand on one letter, or one on a letter that is written as several; their order is Unicode's in the file alone."""
  wide = unicodedata.normalize("NFKD", text)
  stacked = any(unicodedata.combining(a) and unicodedata.combining(b) for a, b in zip(wide, wide[1:], strict=False))
  return stacked or any(
    unicodedata.combining(b) and len(unicodedata.normalize("NFKC", a)) > 1 for a, b in zip(text, text[1:], strict=False)
  )


def test_a_thousand_texts_have_the_same_ids(vocab, tokenizer):
  draw = random.Random(0)

  def character():
    first, last = draw.choice([(0, 0x7F), (0x20, 0x7E), (0x80, 0x24F), (0x300, 0x6FF), (0x900, 0xDFF), (0x2000, 0x33FF), (0xAC00, 0xD7A3)])
    return chr(draw.randint(first, last))

  texts = ["", " ", "\x00", "\n\n", "long " * 500]
  while len(texts) < 1500:
    text = "".join(draw.choice(WORDS) if draw.random() < 0.4 else character() for _ in range(draw.randint(0, 12)))
    if not stacks_marks(text):
      texts.append(text)
  tokenizer.encode_special_tokens = True  # as text from users is to be read
  try:
    different = [text for text in texts if tokenizer.encode(text).ids != vocab.encode(text)]
  finally:
    tokenizer.encode_special_tokens = False
  assert not different, ascii(different[:5])


def test_every_character_but_new_letters_is_read_alike(vocab, tokenizer):
  letters = (chr(code) for code in (*range(0xD800), *range(0xF900, 0x10000), *range(0x1F000, 0x1FB00)))
  different = [letter for letter in letters if tokenizer.encode(f"x{letter}y").ids != vocab.encode(f"x{letter}y")]
  assert len(different) < 10 and not set(different) & set(WORDS)


def test_every_token_has_its_id_and_surface(vocab, tokenizer):
  assert tokenizer.get_vocab_size() == vocab.size
  tokens = [vocab.special("think"), *vocab.encode("Rose Toner"), vocab.candidate_start + 2, vocab.fact_word("age", 3), vocab.eos_id]
  tokens += [*vocab.sid_tokens([0, 3, 7]), *vocab.encode("by Velora")]
  assert tokenizer.encode(vocab.decode(tokens)).ids == tokens
  assert tokenizer.encode(tokenizer.decode(tokens, skip_special_tokens=False)).ids == tokens
  ids = [tokenizer.token_to_id(vocab.surface(token)) for token in range(vocab.new_token_start, vocab.used_size)]
  assert ids == list(range(vocab.new_token_start, vocab.used_size))
  assert len({tokenizer.id_to_token(token) for token in range(vocab.size)}) == vocab.size


@pytest.mark.parametrize("direct", [False, True])
def test_the_chat_template_makes_the_prompt(vocab, tokenizer, direct):
  special, encode = vocab.special, vocab.encode
  opening = [special("think"), special("/think")] if direct else []
  instructions = [*encode("rank by next purchase between"), special("answer"), *encode("and"), special("/answer")]
  user = [
    special("history"),
    *vocab.sid_tokens([1, 2, 3]),
    *encode("Skin Care"),
    special("candidates"),
    vocab.candidate_start,
    *encode("Toner"),
  ]
  prompt = [special("bos"), special("system"), *instructions, special("user"), *user, special("assistant"), *opening]
  files = tokenizer_files(vocab, opening, 300)
  about = json.loads(files["tokenizer_config.json"])
  assert (about["bos_token"], about["eos_token"], about["pad_token"], about["model_max_length"]) == ("<bos>", "<eos>", "<pad>", 300)
  template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(files["chat_template.jinja"])
  messages = chat_messages(vocab, prompt)
  assert [message["role"] for message in messages] == ["system", "user"]
  text = template.render(messages=messages, add_generation_prompt=True, **about)
  assert tokenizer.encode(text).ids == prompt
  told = [*messages, {"role": "assistant", "content": "<answer> <A> </answer>"}]
  ends = tokenizer.encode(template.render(messages=told, **about)).ids
  assert ends[-5:] == [special("assistant"), special("answer"), vocab.candidate_start, special("/answer"), vocab.eos_id]
