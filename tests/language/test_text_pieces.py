"""Tokenizers of published models behind the vocabulary: what text gives, what frames are, what does not go together."""

import json
import pickle

import pytest
import sentencepiece
from published_folders import CHATML, GEMMA, write_tokenizer

from gr2_jax.data.schema import DataError
from gr2_jax.language.text_pieces import read_pieces
from gr2_jax.language.vocabulary import SPECIALS, Vocabulary

SHAPE = {"num_levels": 2, "codebook_size": 8, "num_candidates": 4}
QWEN = {"chat_template": CHATML, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def open_pieces(folder, rows=320, **settings):
  write_tokenizer(folder, **settings)
  (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
  return read_pieces(folder)


def test_frames_are_those_of_the_chat_template(tmp_path):
  vocabulary = Vocabulary(open_pieces(tmp_path, **QWEN), **SHAPE)
  prompt = [*vocabulary.frame("system"), *vocabulary.encode("Sort."), *vocabulary.frame("user"), *vocabulary.encode("A B")]
  text = vocabulary.decode([*prompt, *vocabulary.frame("assistant"), vocabulary.special("think"), vocabulary.eos_id])
  assert text == "<|im_start|>system\n Sort.<|im_end|>\n<|im_start|>user\n A B<|im_end|>\n<|im_start|>assistant\n<think><|im_end|>"
  assert vocabulary.frame("bos") == ()
  assert vocabulary.first_turn() == (*vocabulary.frame("system"), *vocabulary.frame("user"))


def test_a_turn_ends_with_what_the_template_writes_and_bos_stands_once(tmp_path):
  special = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
  settings = {"chat_template": GEMMA, "bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}
  pieces = open_pieces(tmp_path, special=special, added=(), **settings)
  assert pieces.decode(pieces.frames["eos"]) == "<end_of_turn>"
  assert pieces.decode(pieces.frames["bos"]) == "<bos>"
  assert pieces.decode(pieces.frames["system"]) == "<start_of_turn>user\n"
  assert pieces.decode(pieces.frames["user"]).strip() == ""
  assert pieces.decode(pieces.frames["assistant"]) == "<end_of_turn>\n<start_of_turn>model\n"


def test_what_is_added_comes_behind_all_tokens_and_fills_the_tables_padding(tmp_path):
  pieces = open_pieces(tmp_path, **QWEN)
  vocabulary = Vocabulary(pieces, **SHAPE, facts=("popularity",), fact_buckets=4)
  assert vocabulary.new_token_start == pieces.size
  missing = [name for name in SPECIALS if name not in pieces.frames]
  assert missing == ["answer", "/answer", "history", "candidates", "sid", "/sid"]
  assert vocabulary.used_size == pieces.size + len(missing) + 4 + 4 + 16
  assert vocabulary.size % 128 == 0 and vocabulary.size >= max(vocabulary.used_size, pieces.rows)
  assert [vocabulary.surface(token) for token in range(pieces.size, pieces.size + 6)] == [f"<{name}>" for name in missing]
  assert vocabulary.surface(int(vocabulary.sid_token_ids[1, 3])) == "<s_b_3>"


@pytest.mark.parametrize(
  "text", ["<|im_end|>", "x<think>y</think>", "<|endoftext|><answer>", "<s_a_1> <A>", "护 \u0000 \ud800", " a\n\nb  "]
)
def test_text_gives_no_token_but_pieces_and_comes_back(tmp_path, text):
  vocabulary = Vocabulary(open_pieces(tmp_path, **QWEN), **SHAPE)
  tokens = vocabulary.encode(text)
  assert tokens and max(tokens) < vocabulary.new_token_start
  assert vocabulary.forbidden_ids.isdisjoint(tokens)
  assert vocabulary.decode(tokens).strip() == text.replace("\u0000", " ").replace("\ud800", "?").strip()


def test_words_read_alike_at_the_beginning_of_a_text_and_inside_one(tmp_path):
  vocabulary = Vocabulary(open_pieces(tmp_path, **QWEN), **SHAPE)
  assert vocabulary.encode("rose shampoo") == vocabulary.encode("rose") + vocabulary.encode("shampoo")
  assert vocabulary.encode("") == []


def test_a_sentencepiece_model_stands_behind_the_same_vocabulary(tmp_path):
  """As older folders hold it: control symbols no text gives, and turns as symbols that a text could spell."""
  turns = ["<start_of_turn>", "<end_of_turn>"]
  with (tmp_path / "tokenizer.model").open("wb") as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["a gentle rose shampoo then a conditioner"] * 20),
      model_writer=file,
      vocab_size=300,
      byte_fallback=True,
      hard_vocab_limit=False,
      user_defined_symbols=turns,
      pad_id=3,
      minloglevel=2,
    )
  settings = {"chat_template": GEMMA, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 384}))
  vocabulary = Vocabulary(read_pieces(tmp_path), **SHAPE)
  vocabulary.save(tmp_path / "run")
  vocabulary = Vocabulary.load(tmp_path / "run")
  assert vocabulary.decode(vocabulary.frame("assistant")).replace("><", "> <").split() == ["<end_of_turn>", "<start_of_turn>", "model"]
  assert vocabulary.eos_id == vocabulary.frame("assistant")[0]
  assert len(vocabulary.frame("bos")) == 1 and vocabulary.pad_id == 3
  tokens = vocabulary.encode("rose <start_of_turn>user 护 </s>")
  assert vocabulary.forbidden_ids.isdisjoint(tokens) and max(tokens) < vocabulary.new_token_start
  assert vocabulary.encode("rose shampoo") == vocabulary.encode("rose") + vocabulary.encode("shampoo")
  (tmp_path / "tokenizer.model").write_bytes(b"no model")
  with pytest.raises(DataError, match=r"tokenizer\.model: is no sentencepiece model"):
    read_pieces(tmp_path)


def test_added_tokens_are_named_after_words(tmp_path):
  vocabulary = Vocabulary(open_pieces(tmp_path, **QWEN), **SHAPE, facts=("popularity",), fact_buckets=2)
  like = vocabulary.named_like()
  assert len(like) == vocabulary.sid_start - vocabulary.new_token_start
  assert like[0] == like[1] == tuple(vocabulary.encode("answer"))
  assert like[vocabulary.candidate_start - vocabulary.new_token_start + 1] == tuple(vocabulary.encode("B"))
  assert like[vocabulary.fact_word("popularity", 1) - vocabulary.new_token_start] == tuple(vocabulary.encode("popular 50%"))


def test_without_a_template_the_prompts_own_frames_stand_in(tmp_path):
  vocabulary = Vocabulary(open_pieces(tmp_path, eos_token="<|endoftext|>", pad_token="<|endoftext|>"), **SHAPE)
  assert vocabulary.frame("bos") == ()
  for name in ("system", "user", "assistant", "pad"):
    assert vocabulary.special(name) >= vocabulary.new_token_start
  assert vocabulary.decode([vocabulary.eos_id]) == "<|endoftext|>"
  assert vocabulary.pad_id != vocabulary.eos_id


def test_save_load_and_pickle_keep_every_id(tmp_path):
  vocabulary = Vocabulary(open_pieces(tmp_path / "model", **QWEN), **SHAPE)
  vocabulary.save(tmp_path / "run")
  for other in (Vocabulary.load(tmp_path / "run"), pickle.loads(pickle.dumps(vocabulary))):
    assert (other.size, other.eos_id, other.sid_start) == (vocabulary.size, vocabulary.eos_id, vocabulary.sid_start)
    assert other.encode("a rose") == vocabulary.encode("a rose")
    assert [other.frame(name) for name in SPECIALS] == [vocabulary.frame(name) for name in SPECIALS]


def break_template(folder):
  (folder / "chat_template.jinja").write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}")


def escape_template(folder):
  (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda folder: (folder / "tokenizer.json").write_text('{"model": 3}'), r"tokenizer\.json: is no tokenizer"),
    (lambda folder: (folder / "tokenizer.json").write_bytes(b"{"), r"tokenizer\.json: is no tokenizer"),
    (lambda folder: (folder / "tokenizer_config.json").write_text("["), r"tokenizer_config\.json: is no JSON"),
    (lambda folder: (folder / "config.json").write_text('{"vocab_size": 64}'), "of different models"),
    (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    (break_template, "takes no system and user turn"),
    (escape_template, "chat template"),
    (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[1].content }}"), "does not write the system's words"),
  ],
)
def test_files_that_do_not_go_together_are_one_sentence(tmp_path, change, message):
  open_pieces(tmp_path, **QWEN)
  change(tmp_path)
  with pytest.raises(DataError, match=message):
    read_pieces(tmp_path)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
  (tmp_path / "config.json").write_text('{"vocab_size": 64}')
  with pytest.raises(DataError, match=r"neither tokenizer\.json nor tokenizer\.model"):
    read_pieces(tmp_path)
