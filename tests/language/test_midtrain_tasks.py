"""What each task asks for, where its loss lies, and that the corpus is a function of (seed, index)."""

import numpy as np
import pytest

from gr2_jax.data import schema
from gr2_jax.language import midtrain_tasks as tasks
from gr2_jax.language import prompts


def learnt(example, vocab):
  return vocab.decode(example.tokens[example.loss_weights > 0])


def test_next_item_prompt_is_the_training_sequence_up_to_the_target(context):
  rows = [3, 0, 1, 2]
  prompt = tasks.next_item_prompt(rows[:-1], context, max_history=50)
  example = tasks.next_item(rows, context, max_history=50)
  np.testing.assert_array_equal(example.tokens, prompt + context.vocabulary.sid_tokens(context.codes[2]))
  np.testing.assert_array_equal(example.loss_weights, [0, 0] + [1] * 12)  # bos and history, then 4 items of 3 codes
  # Cut to the last two items, with the target as a third in training.
  assert tasks.next_item(rows, context, 2).tokens[:-3].tolist() == tasks.next_item_prompt(rows[:-1], context, 2)


def test_captions_learn_only_what_was_asked_for(context, vocab):
  assert learnt(tasks.item_to_text(2, context), vocab) == "Velora Gentle Toner No 2 | Velora | Care > Toner <eos>"
  assert learnt(tasks.text_to_item(2, context), vocab) == "<s_a_0> <s_b_2> <s_c_6> <eos>"
  assert vocab.decode(tasks.text_to_item(2, context).tokens).startswith("<bos> <user> find the item Velora Gentle Toner No 2")


def test_persona_alternates_codes_and_names_and_ends_with_the_taste_in_quotes(context, vocab):
  text = vocab.decode(tasks.persona([0, 1, 4], context, 50).tokens)
  assert text.startswith("<bos> <history> <s_a_0> <s_b_0> <s_c_0> Shampoo Velora <s_a_0> <s_b_1> <s_c_3> Conditioner Aquine")
  # Items 0 and 4 are shampoos, 1 a conditioner.
  assert text.endswith(
    "<assistant> this user likes Shampoo <s_a_0> <s_b_0> <s_c_0> <s_a_0> <s_b_4> <s_c_4> "
    "and Conditioner <s_a_0> <s_b_1> <s_c_3> by Velora and Aquine <eos>"
  )


def test_taste_without_category_or_brand(context, vocab):
  bare = prompts.PromptContext(schema.Catalogue((schema.Item("x", "t"),)), context.codes[:1], vocab)
  assert vocab.decode(tasks.taste_summary([0], bare)) == "this user likes other <s_a_0> <s_b_0> <s_c_0>"


def test_corpus_is_random_access_and_depends_on_seed_and_index_alone(context, histories):
  corpus = tasks.MidtrainCorpus(histories, context, tasks.Mixture(), seed=3, max_history=50, epochs=20)
  assert len(corpus) == 60
  backwards = [corpus[index] for index in reversed(range(60))][::-1]
  again = tasks.MidtrainCorpus(histories, context, tasks.Mixture(), seed=3, max_history=50, epochs=20)
  for left, right in zip(backwards, (again[index] for index in range(60)), strict=True):
    np.testing.assert_array_equal(left.tokens, right.tokens)
    assert left.tokens.shape == left.loss_weights.shape and left.tokens.dtype == np.int32
  other = tasks.MidtrainCorpus(histories, context, tasks.Mixture(), seed=4, max_history=50, epochs=20)
  assert any(not np.array_equal(corpus[index].tokens, other[index].tokens) for index in range(60))
  with pytest.raises(IndexError):
    corpus[60]


def test_single_task_is_every_users_next_items(context, histories):
  corpus = tasks.MidtrainCorpus(histories, context, tasks.SINGLE_TASK, seed=0, max_history=50, epochs=2)
  for index in range(6):
    expected = tasks.next_item(context.catalogue.to_rows(histories[index % 3].items), context, 50)
    np.testing.assert_array_equal(corpus[index].tokens, expected.tokens)


def test_the_mixture_is_drawn_in_its_shares(context, histories):
  corpus = tasks.MidtrainCorpus(histories, context, tasks.Mixture(0.5, 0, 0, 0.5), seed=0, max_history=50, epochs=200)
  user = context.vocabulary.special("user")
  share = np.mean([corpus[index].tokens[1] == user for index in range(600)])
  assert abs(share - 0.5) < 0.08  # 600 draws: four standard errors


def test_windows_of_a_long_history_reach_its_oldest_items(context):
  long = schema.History("u", tuple(f"i{n}" for n in range(16)))
  corpus = tasks.MidtrainCorpus([long], context, tasks.SINGLE_TASK, seed=0, max_history=3, epochs=80)
  windows = {tuple(corpus[index].tokens) for index in range(80)}
  assert all(len(window) == 2 + 4 * 3 for window in windows)
  assert len(windows) == 13  # ends after item 4, 5, ..., 16


def test_bad_mixtures_and_histories_are_named(context):
  with pytest.raises(ValueError, match=r"^next_item: "):
    tasks.Mixture(0, 0, 0, 0)
  with pytest.raises(schema.DataError, match="histories"):
    tasks.MidtrainCorpus([], context, tasks.Mixture(), 0, 5)
  with pytest.raises(schema.DataError, match="nobody"):
    tasks.MidtrainCorpus([schema.History("u", ("nobody",))], context, tasks.Mixture(), 0, 5)
