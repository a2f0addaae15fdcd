"""Text and semantic-ID tokens, prompts along GR2's five principles, and answers that are read strictly.

>>> import numpy as np
>>> from gr2_jax.data import Catalogue, Item, Slate
>>> from gr2_jax.language import PromptContext, PromptStyle, Vocabulary, corpus_texts, parse_answer, render_answer, render_prompt
>>> catalogue = Catalogue(tuple(Item(f"i{n}", f"rose toner {n}", "Aquine", ("Skin Care", "Toner")) for n in range(4)))
>>> vocabulary = Vocabulary.train(corpus_texts(catalogue), text_pieces=400, num_levels=2, codebook_size=4, num_candidates=3)
>>> context = PromptContext(catalogue, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), vocabulary)
>>> style = PromptStyle(max_prompt_tokens=96)
>>> slate = Slate("u", ("i0",), ("i1", "i2", "i3"), (0, 1, 0))
>>> prompt = render_prompt(slate, [0, 1, 2], context, style)
>>> vocabulary.decode(prompt.tokens).startswith("<bos> <system>")
True
>>> completion = render_answer((1, 0, 2), [0, 1, 2], None, vocabulary, style)
>>> parse_answer(completion.tokens, [0, 1, 2], vocabulary, style).ranking
(1, 0, 2)
"""

from gr2_jax.language.answers import Answer, parse_answer, render_answer
from gr2_jax.language.midtrain_tasks import Mixture
from gr2_jax.language.prompts import Prompt, PromptContext, PromptStyle, present, render_prompt
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts

__all__ = [
  "Answer",
  "Mixture",
  "Prompt",
  "PromptContext",
  "PromptStyle",
  "Vocabulary",
  "corpus_texts",
  "parse_answer",
  "present",
  "render_answer",
  "render_prompt",
]
