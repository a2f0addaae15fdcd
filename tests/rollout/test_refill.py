"""A queue of prompts through a few lanes gives the completions of all prompts at once, and its rows stand idle less."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.language.prompts import PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.refill import make_generate_queue
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.training.mesh import batch_sharding, make_mesh, replicated

VOCAB, EOS, PAD, LIMIT = 24, 1, 0, 20
DECODER = Decoder(preset("test", VOCAB))
FIELDS = ("completions", "completion_mask", "finished")


def _config(**changes):
  return RolloutConfig(**{"decoder": DECODER, "group": 3, "max_new_tokens": LIMIT, "eos_id": EOS, "pad_id": PAD} | changes)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))


def _prompts(number=10, width=5, seed=0):
  random = np.random.default_rng(seed)
  mask = np.arange(width) < random.integers(1, width + 1, number)[:, None]
  return jnp.asarray(np.where(mask, random.integers(2, VOCAB, mask.shape), PAD), jnp.int32), jnp.asarray(mask)


@functools.cache
def _at_once(group):
  return make_generate(_config(group=group))


def _assert_same(found, expected):
  for name in FIELDS:
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
  for name in ("behaviour_logps", "entropy"):
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5, err_msg=name)


# Temperature 3 flattens the distribution: completions of every length, among them some of the limit and some of one token.
@pytest.mark.parametrize(
  ("group", "lanes", "rows", "temperature"),
  [
    (3, 4, None, 3.0),
    (3, 1, 2, 3.0),
    (3, 3, None, 0.0),
    *(pytest.param(*of, marks=pytest.mark.slow) for of in ((3, 8, 1, 3.0), (3, None, 1, 3.0), (1, 4, None, 3.0))),
  ],
)
def test_completions_are_those_of_all_prompts_at_once(params, group, lanes, rows, temperature):
  prompts, mask = _prompts()
  row_ids = jnp.arange(10) * 7 + 2
  arguments = (params, prompts, mask, jax.random.key(5), Sampling.create(temperature))
  expected = _at_once(group)(*arguments, row_ids=row_ids)
  found = make_generate_queue(_config(group=group, rows=rows), lanes)(*arguments, row_ids=row_ids)
  _assert_same(found, expected)
  if temperature and group > 1:
    lengths = np.asarray(expected.completion_mask.sum(axis=-1))
    assert lengths.min() == 1 and not expected.finished.all() and len(np.unique(lengths)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2])
def test_very_few_tokens(params, limit):
  prompts, mask = _prompts()
  sizes = {"max_new_tokens": limit, "group": 2}
  arguments = (params, prompts, mask, jax.random.key(0), Sampling.create())
  _assert_same(make_generate_queue(_config(rows=1, **sizes), 4)(*arguments), make_generate(_config(**sizes))(*arguments))


def test_completions_that_never_end_fill_the_limit(params):
  prompts, mask = _prompts()
  queue = make_generate_queue(_config(rows=1, group=2, eos_id=-1), 4)
  rollout = queue(params, prompts, mask, jax.random.key(0), Sampling.create())
  assert rollout.completion_mask.all() and not rollout.finished.any()


@pytest.mark.parametrize("reference", [pytest.param("slot", marks=pytest.mark.slow), "sid"])
def test_constrained_answers_too(reference):
  vocabulary = Vocabulary.train(["shampoo then conditioner best"] * 30, text_pieces=400, num_levels=2, codebook_size=4, num_candidates=4)
  decoder, style = Decoder(preset("test", vocabulary.size)), PromptStyle(reference=reference)
  params = jax.tree.map(lambda x: 3 * x, init_params(decoder, jax.random.key(0)))
  random, number = np.random.default_rng(0), 7
  prompts = random.integers(5, 40, (number, 4), dtype=np.int32)
  slot_tokens, codes = vocabulary.candidate_start + np.arange(4)[:, None], np.array([[0, 1], [2, 3], [0, 1], [2, 0]])
  names = slot_tokens if reference == "slot" else vocabulary.sid_token_ids[[0, 1], codes]
  references = np.where(np.arange(4)[None, :, None] < random.integers(2, 5, (number, 1, 1)), names, -1).astype(np.int32)
  config = RolloutConfig.of(decoder, vocabulary, group=3, max_new_tokens=24, constraint=SlateConstraint(vocabulary, style))
  arguments = (params, prompts, np.ones_like(prompts), jax.random.key(1), Sampling.create(2.0))
  expected = make_generate(config)(*arguments, references=references)
  assert expected.finished.all() and len(np.unique(expected.completion_mask.sum(axis=-1))) > 1
  _assert_same(make_generate_queue(dataclasses.replace(config, rows=2), 3)(*arguments, references=references), expected)


def test_occupancy_counts_every_row_at_every_step(params):
  """Two completions a prompt, of lengths that the prompts alone decide: the steps can be counted by hand."""

  class Lengths:
    """As a constraint: a prompt's reference is the length of its completions."""

    def next_state(self, completions, length, references):
      return jnp.broadcast_to(length, completions.shape[:1]) >= references[:, 0, 0] - 1

    def apply(self, logits, last):
      return jnp.where((jnp.arange(VOCAB) == EOS) == last[:, None], logits, -1e30)

  lengths = np.array([11, 3, 3, 5, 3], np.int32)
  prompts, mask = _prompts(5)
  arguments = (params, prompts, mask, jax.random.key(0), Sampling.create())

  def row_steps(lanes, rows):
    queue = make_generate_queue(_config(rows=rows, group=2, check_every=1, constraint=Lengths()), lanes)
    rollout = queue(*arguments, references=lengths[:, None, None])
    np.testing.assert_array_equal(rollout.completion_mask.sum(axis=-1), np.repeat(lengths[:, None], 2, axis=1))
    np.testing.assert_allclose(rollout.row_steps, rollout.row_steps[0])
    return float(rollout.row_steps.sum())

  # The first token is drawn from the prompt, so that a completion of n tokens takes n - 1 steps.
  assert row_steps(None, None) == 10 * 10
  assert row_steps(2, None) == 4 * 10  # 10 | 2, 2, 4, 2: one lane has the long one, the other all the rest
  assert row_steps(2, 1) == 2 * 20  # the same, one completion after the other


@pytest.mark.slow
def test_a_mesh_gives_the_same_completions(params):
  prompts, mask = _prompts(12)
  queue = make_generate_queue(_config(rows=2), 8)
  key, sampling = jax.random.key(4), Sampling.create(3.0)
  expected = _at_once(3)(params, prompts, mask, key, sampling)
  mesh = make_mesh(2, 2, 2)
  cut, whole = batch_sharding(mesh), replicated(mesh)
  with jax.set_mesh(mesh):
    arrays = jax.device_put(params, whole), jax.device_put(prompts, cut), jax.device_put(mask, cut)
    _assert_same(queue(*arrays, key, jax.device_put(sampling, whole)), expected)
    with pytest.raises(ValueError, match="lanes: 6"):
      make_generate_queue(_config(), 6)(*arrays, key, jax.device_put(sampling, whole))


@pytest.mark.parametrize("lanes", [0, -1])
def test_less_than_one_lane_is_refused(lanes):
  with pytest.raises(ValueError, match="lanes"):
    make_generate_queue(_config(), lanes)


def test_a_steady_run_compiles_nothing(params, compilations):
  queue = make_generate_queue(_config(rows=2), 4)
  counts = []
  for seed, sampling in enumerate([Sampling.create(3.0), Sampling.create(0.5, 0.9), Sampling.create(0.0)]):
    arguments = (*_prompts(seed=seed), jax.random.key(seed))
    before = len(compilations)
    jax.block_until_ready(queue(params, *arguments, sampling))
    counts.append(len(compilations) - before)
  assert counts[0] > 0 and counts[1:] == [0, 0]
