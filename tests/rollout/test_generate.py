import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.training.mesh import batch_sharding, make_mesh, replicated

VOCAB, EOS, PAD, LIMIT = 24, 1, 0, 7
DECODER = Decoder(preset("test", VOCAB))


def _config(**changes):
  return RolloutConfig(**{"decoder": DECODER, "group": 3, "max_new_tokens": LIMIT, "eos_id": EOS, "pad_id": PAD} | changes)


@pytest.fixture(scope="module")
def params():
  # Scaled up, so that the distributions are far from uniform and greedy choices are not ties.
  return jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))


@pytest.fixture(scope="module")
def generate_groups():
  return make_generate(_config())


def _prompts(lengths=(5, 3, 1, 4), width=5):
  random = np.random.default_rng(0)
  mask = np.arange(width) < np.array(lengths)[:, None]
  return jnp.asarray(np.where(mask, random.integers(2, VOCAB, mask.shape), PAD), jnp.int32), jnp.asarray(mask)


@jax.jit
def _all_logits(params, tokens):
  """Logits of one padded row by a plain causal forward: what comes later can't matter."""
  positions = jnp.arange(tokens.shape[0])[None]
  hidden, _ = DECODER.apply({"params": params}, tokens[None], positions, jnp.ones_like(positions))
  return DECODER.apply({"params": params}, hidden, method="logits")[0]


def _sequence(prompt, completion):
  row = np.zeros(5 + LIMIT, np.int32)
  row[: len(prompt) + len(completion)] = [*prompt, *completion]
  return jnp.asarray(row)


def test_greedy_equals_a_full_forward_for_every_token(params, generate_groups):
  prompts, mask = _prompts()
  rollout = generate_groups(params, prompts, mask, jax.random.key(0), Sampling.create(temperature=0.0))
  for p in range(4):
    prompt, expected = np.asarray(prompts[p])[np.asarray(mask[p])], []
    while len(expected) < LIMIT and EOS not in expected:
      logits = _all_logits(params, _sequence(prompt, expected))
      expected.append(int(logits[len(prompt) + len(expected) - 1].argmax()))
    for g in range(3):
      assert rollout.completions[p, g][rollout.completion_mask[p, g]].tolist() == expected
  np.testing.assert_array_equal(rollout.behaviour_logps, 0.0)


def test_behaviour_log_probs_equal_the_full_forward(params, generate_groups):
  prompts, mask = _prompts()
  rollout = jax.device_get(generate_groups(params, prompts, mask, jax.random.key(1), Sampling.create()))
  for p in range(4):
    prompt = np.asarray(prompts[p])[np.asarray(mask[p])]
    for g in range(3):
      completion = rollout.completions[p, g][rollout.completion_mask[p, g]]
      log_probs = jax.nn.log_softmax(_all_logits(params, _sequence(prompt, completion)))
      log_probs = log_probs[len(prompt) - 1 : len(prompt) - 1 + len(completion)]
      behaviour = rollout.behaviour_logps[p, g, : len(completion)]
      np.testing.assert_allclose(behaviour, log_probs[np.arange(len(completion)), completion], atol=1e-4)
      entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1)
      np.testing.assert_allclose(rollout.entropy[p, g, : len(completion)], entropy, atol=1e-4)


def test_a_row_does_not_depend_on_its_batch_nor_on_padding(params, generate_groups):
  prompts, mask = _prompts()
  key, sampling = jax.random.key(2), Sampling.create(0.9, 0.9)
  whole = generate_groups(params, prompts, mask, key, sampling)
  some = jnp.array([3, 1])
  part = generate_groups(params, prompts[some], mask[some], key, sampling, row_ids=some)
  np.testing.assert_array_equal(part.completions, whole.completions[some])
  np.testing.assert_allclose(part.behaviour_logps, whole.behaviour_logps[some], atol=1e-5)
  wide = generate_groups(params, jnp.pad(prompts, ((0, 0), (0, 2))), jnp.pad(mask, ((0, 0), (0, 2))), key, sampling)
  np.testing.assert_array_equal(wide.completions, whole.completions)
  assert (whole.completions[:, 0] != whole.completions[:, 1]).any(), "the members of a group are drawn apart"


@pytest.mark.parametrize("check_every", [1, 4, 100])
def test_eos_is_kept_and_pad_follows_however_often_eos_is_looked_for(params, generate_groups, check_every):
  prompts, mask = _prompts()
  # Temperature 3 flattens the distribution, so that some rows end early and some never.
  run = make_generate(_config(check_every=check_every))
  rollout = jax.device_get(run(params, prompts, mask, jax.random.key(5), Sampling.create(3.0)))
  tokens, kept = rollout.completions.reshape(-1, LIMIT), rollout.completion_mask.reshape(-1, LIMIT)
  for row, row_mask, finished in zip(tokens, kept, rollout.finished.reshape(-1), strict=True):
    length = row_mask.sum()
    assert row_mask[:length].all() and (row[length:] == PAD).all()
    assert finished == (EOS in row[:length]) == (row[length - 1] == EOS)
    assert EOS not in row[: length - 1]
    assert finished or length == LIMIT
  assert 0 < rollout.finished.sum() < rollout.finished.size
  assert (rollout.behaviour_logps[~rollout.completion_mask] == 0).all()
  reference = generate_groups(params, prompts, mask, jax.random.key(5), Sampling.create(3.0))
  np.testing.assert_array_equal(rollout.completions, reference.completions)


def test_completions_that_never_end_fill_the_limit(params):
  prompts, mask = _prompts()
  run = make_generate(_config(group=2, max_new_tokens=6, eos_id=-1))
  rollout = run(params, prompts, mask, jax.random.key(0), Sampling.create())
  assert rollout.completion_mask.all() and not rollout.finished.any()


@pytest.mark.parametrize("limit", [1, 2])
def test_one_completion_a_prompt_and_very_few_tokens(params, limit):
  prompts, mask = _prompts()
  generate = make_generate(_config(group=1, max_new_tokens=limit))
  rollout = generate(params, prompts, mask, jax.random.key(0), Sampling.create())
  assert rollout.completions.shape == (4, 1, limit)
  assert rollout.completion_mask[..., 0].all()
  assert bool(jnp.isfinite(rollout.behaviour_logps).all())


def test_a_filler_prompt_without_tokens_changes_no_other_row(params, generate_groups):
  prompts, mask = _prompts()
  whole = generate_groups(params, prompts, mask, jax.random.key(3), Sampling.create())
  filled = generate_groups(params, prompts, mask.at[2].set(False), jax.random.key(3), Sampling.create())
  others = jnp.array([0, 1, 3])
  np.testing.assert_array_equal(filled.completions[others], whole.completions[others])
  assert bool(jnp.isfinite(filled.behaviour_logps).all())


def test_a_mesh_gives_the_same_completions(params, generate_groups):
  prompts, mask = _prompts()
  key, sampling = jax.random.key(4), Sampling.create()
  expected = generate_groups(params, prompts, mask, key, sampling)
  mesh = make_mesh(2, 2, 2)
  cut, whole = batch_sharding(mesh), replicated(mesh)
  with jax.set_mesh(mesh):
    rollout = generate_groups(
      jax.device_put(params, whole), jax.device_put(prompts, cut), jax.device_put(mask, cut), key, jax.device_put(sampling, whole)
    )
  np.testing.assert_array_equal(rollout.completions, expected.completions)
  np.testing.assert_allclose(rollout.behaviour_logps, expected.behaviour_logps, atol=1e-5)


@pytest.mark.parametrize("name", ["group", "max_new_tokens", "check_every"])
def test_sizes_below_one_are_refused(name):
  with pytest.raises(ValueError, match=name):
    _config(**{name: 0})


@pytest.mark.parametrize("rows", [0, 4])
def test_rows_lie_between_one_and_the_group(rows):
  with pytest.raises(ValueError, match="rows"):
    _config(rows=rows)
  assert [_config(rows=rows).rows_per_lane for rows in (None, 1, 3)] == [3, 1, 3]


def test_other_keys_knobs_and_prompts_compile_nothing(params, compilations):
  generate = make_generate(_config())
  knobs = [Sampling.create(1.0), Sampling.create(0.5, 0.9), Sampling.create(0.0)]
  keys, calls = [jax.random.key(i) for i in range(3)], [_prompts(), _prompts((2, 5, 4, 1)), _prompts()]
  counts = []
  for sampling, key, (prompts, mask) in zip(knobs, keys, calls, strict=True):
    before = len(compilations)
    jax.block_until_ready(generate(params, prompts, mask, key, sampling))
    counts.append(len(compilations) - before)
  assert counts[0] > 0 and counts[1:] == [0, 0]
