"""Ids, round trips in every script, and that data never yields anything but text."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data import schema
from gr2_jax.evidence.words import fact_sentences
from gr2_jax.language import templates, vocabulary

FORGERIES = ["<think>", "</answer><eos>", "<s_a_1> <s_b_2>", "<A>", "<0x41>", "<pad>", "▁<bos>", "<|im_end|>", "\x00<user>\x00"]


def test_layout_is_text_then_frames_then_candidates_then_codes(vocab):
  text, frames = vocab.new_token_start, len(vocabulary.SPECIALS)
  assert vocab.pad_id == text and vocab.special("bos") == text + 1 and vocab.eos_id == text + 2
  np.testing.assert_array_equal(vocab.candidate_tokens, text + frames + np.arange(12))
  assert vocab.sid_token_ids.shape == (3, 8)
  # Level-major: code c of level l stands at start + 8 l + c.
  assert vocab.sid_tokens([1, 0, 7]) == [text + frames + 12 + 1, text + frames + 12 + 8, text + frames + 12 + 23]
  assert vocab.sid_tokens([1, 0, 7]) == [vocab.sid_token_ids[level, code] for level, code in enumerate([1, 0, 7])]
  assert vocab.size % 128 == 0 and 0 <= vocab.size - vocab.used_size < 128


def test_candidate_names_are_like_columns_of_a_spreadsheet():
  assert [vocabulary.candidate_name(slot) for slot in (0, 25, 26, 27, 51, 52, 701, 702)] == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]


def test_names_and_template_words_are_single_pieces(vocab, catalogue):
  words = {name for item in catalogue.items for name in (item.brand, *item.categories)}
  words |= {templates.THEN, templates.SO, templates.BEST, templates.NEW, *templates.AFTER_SHORT, *map(str, range(1, 11))}
  assert {word: len(vocab.encode(word)) for word in words} == dict.fromkeys(words, 1)


@pytest.mark.parametrize(
  "text", ["crème brûlée", "护发素 洗发水", "شامبو للشعر", "化粧水", "😀 🧴", "Ω≈ç", "тоник", "ไทย", "a{}[]<>|\\\"'b"]
)
def test_every_script_comes_back(vocab, text):
  assert vocab.decode(vocab.encode(text)) == text


@given(st.text(st.characters(), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_text_pieces_only_and_settles_after_one_round(vocab, text):
  tokens = vocab.encode(text)
  assert all(0 <= token < vocab.new_token_start for token in tokens)
  once = vocab.decode(tokens)
  assert vocab.decode(vocab.encode(once)) == once


@pytest.mark.parametrize("text", [*FORGERIES, "\ud800 lone surrogate", "\x07\x1b[31m"])
def test_prompt_like_text_never_yields_a_special_token(vocab, text):
  assert max(vocab.encode(text)) < vocab.new_token_start


def test_decode_shows_surface_forms_and_takes_any_id(vocab):
  tokens = [vocab.special("think"), *vocab.encode("Toner then Shampoo"), vocab.candidate_start + 2, vocab.special("/think")]
  assert vocab.decode([*tokens, *vocab.sid_tokens([0, 3, 7])]) == "<think> Toner then Shampoo <C> </think> <s_a_0> <s_b_3> <s_c_7>"
  assert vocab.decode([-1, vocab.used_size, 10**9]) == "<unused> <unused> <unused>"


def test_save_load_and_pickle_keep_every_id(vocab, tmp_path):
  vocab.save(tmp_path)
  for other in (vocabulary.Vocabulary.load(tmp_path), pickle.loads(pickle.dumps(vocab))):
    assert (other.size, other.eos_id, other.sid_start) == (vocab.size, vocab.eos_id, vocab.sid_start)
    assert other.encode("Velora Gentle Toner 护") == vocab.encode("Velora Gentle Toner 护")
  with pytest.raises(schema.DataError, match=r"sentencepiece\.model: not there"):
    vocabulary.Vocabulary.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["sentencepiece.model", "vocabulary.json"])
@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_damaged_vocabulary_is_an_error_that_names_it(vocab, tmp_path, name, kept):
  vocab.save(tmp_path)
  path = tmp_path / name
  path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
  with pytest.raises(schema.DataError, match=f"{tmp_path}: is no vocabulary"):
    vocabulary.Vocabulary.load(tmp_path)


def test_vocabulary_of_other_fields_is_none(vocab, tmp_path):
  vocab.save(tmp_path)
  (tmp_path / "vocabulary.json").write_text('{"levels": 3}')
  with pytest.raises(schema.DataError, match="is no vocabulary"):
    vocabulary.Vocabulary.load(tmp_path)


def test_words_for_facts_stand_between_frames_and_candidates_and_come_back(catalogue, vocab, tmp_path):
  texts = vocabulary.corpus_texts(catalogue)
  shape = {"text_pieces": 800, "num_levels": 3, "codebook_size": 8, "num_candidates": 12}
  made = vocabulary.Vocabulary.train(texts, **shape, facts=("popularity", "age"), fact_buckets=4)
  words = [made.fact_word(fact, bucket) for fact in ("popularity", "age") for bucket in range(4)]
  assert words == list(range(vocab.candidate_start, vocab.candidate_start + 8)) and made.candidate_start == words[-1] + 1
  assert made.decode([words[0], words[7], made.candidate_start]) == "<popular:0%> <age:75%> <A>"
  assert made.forbidden_ids.isdisjoint(words) and max(made.encode("<popular:0%>")) < made.new_token_start
  made.save(tmp_path)
  for other in (vocabulary.Vocabulary.load(tmp_path), pickle.loads(pickle.dumps(made))):
    assert [other.fact_word("age", bucket) for bucket in range(4)] == words[4:] and other.size == made.size
    assert other.decode(words) == made.decode(words)
  with pytest.raises(schema.DataError, match=r"prompt\.facts: the vocabulary has no words for 'gap'; run the tokenize stage again"):
    made.fact_word("gap", 0)


def test_sentences_about_facts_become_whole_words(catalogue, vocab):
  sentence = "bought by anyone 41 times, more than 50 % of candidates"
  texts = vocabulary.corpus_texts(catalogue, fact_sentences(("popularity",)))
  made = vocabulary.Vocabulary.train(texts, text_pieces=800, num_levels=3, codebook_size=8, num_candidates=12)
  assert len(made.encode(sentence)) < len(vocab.encode(sentence))


def test_training_is_deterministic(catalogue, vocab, tmp_path):
  again = vocabulary.Vocabulary.train(vocabulary.corpus_texts(catalogue), text_pieces=800, num_levels=3, codebook_size=8, num_candidates=12)
  assert pickle.dumps(again) == pickle.dumps(vocab)


@pytest.mark.parametrize(("texts", "pieces"), [([], 600), (["a b"], 100)])
def test_a_corpus_that_cannot_work_names_the_field(texts, pieces):
  with pytest.raises(schema.DataError, match="text_pieces"):
    vocabulary.Vocabulary.train(texts, text_pieces=pieces, num_levels=3, codebook_size=8, num_candidates=4)


def test_items_without_any_text_still_give_a_vocabulary():
  bare = schema.Catalogue((schema.Item("x", ""), schema.Item("y", "")))
  vocab = vocabulary.Vocabulary.train(vocabulary.corpus_texts(bare), text_pieces=600, num_levels=1, codebook_size=2, num_candidates=2)
  assert vocab.decode(vocab.encode("best")) == "best"
