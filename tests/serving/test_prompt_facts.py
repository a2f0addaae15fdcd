"""Facts in prompts: a request is put to the model as the run's own slate was, and what has no facts is refused."""

import jax
import numpy as np
import pytest

from gr2_jax.data.schema import DataError, Item
from gr2_jax.language.prompts import render_prompt
from gr2_jax.runs.load import load_catalogue, load_context, load_log, load_slates, prompt_style
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run
from gr2_jax.serving.request import Request, RequestError
from gr2_jax.serving.reranker import Reranker, open_policies

FACTS = ("popularity", "upstream_score", "gap", "far_cosine", "text_history", "upstream_rank")


@pytest.fixture(scope="module")
def run(tiny_run):
  """The finished run, as if its prompts had shown facts in sentences, for which its vocabulary has letters."""
  config = Run.open(tiny_run).config.copy_and_resolve_references()
  with config.unlocked():
    config.prompt.update({"facts": FACTS, "fact_form": "sentences", "max_prompt_tokens": 4000})
  return Run(tiny_run, config, main=False)


@pytest.fixture(scope="module")
def trained(run):
  """What the run's stages make prompts of."""
  catalogue = load_catalogue(run)
  return load_context(run, catalogue, load_log(run, catalogue))


@pytest.fixture(scope="module")
def policy(run):
  return Reranker.of_policy(open_policies(run)(find_policy(run, "rl"))).policy


def to_request(slate, **fields):
  given = {"upstream_scores": slate.upstream_scores, "timestamp": slate.timestamp, "last_time": slate.last_time}
  return Request(slate.history, slate.candidates, **given | fields)


def test_a_request_is_put_as_the_slate_was(run, trained, policy):
  style, texts = prompt_style(run), set()
  for split in ("train", "test"):
    for slate in load_slates(run, trained.catalogue, split)[:12]:
      served = policy.read(to_request(slate), "reason", 1)[0][0].tokens
      assert served == render_prompt(slate, np.arange(len(slate.candidates)), trained, style).tokens
      texts.add(trained.vocabulary.decode(served))
  assert all(text.count("bought by anyone") == text.count("upstream score") == 8 for text in texts)
  bare = policy.read(to_request(slate, upstream_scores=None, last_time=None), "reason", 1)[0][0].tokens
  assert bare != served and "not known when the last item was bought" in trained.vocabulary.decode(bare)


def test_a_new_candidate_has_no_facts_and_is_refused(policy, run, trained):
  slate = load_slates(run, trained.catalogue, "test")[0]
  new = Item("new", "Rose Toner", "Velora")
  with pytest.raises(RequestError, match="unknown item 'new'; this re-ranker places no new items"):
    policy.read(Request(slate.history, (new, *slate.candidates)), "reason", 1)
  rows, fields = policy.read(Request((new, *slate.history), slate.candidates), "reason", 1)
  assert fields["unknown_history"] == 1 and jax.numpy.ndim(rows[0].tokens) == 1


def test_a_slate_of_another_run_has_no_facts_in_its_tables(trained, run):
  slate = load_slates(run, trained.catalogue, "test")[0]
  with pytest.raises(DataError, match="evidence: the tables hold the facts of the run's own slates"):
    trained.fact_tokens(to_request(slate).to_slate(slate.history), prompt_style(run))
