"""Rollouts of group completions against Hugging Face's `generate`: the same weights, prompts and numbers of tokens.

Every completion has its full length: our EOS is no token, and HF is told none. Log-probabilities of our samples, as our decode loop gives
them, must equal those of HF's plain forward on the same tokens before anything is timed.

Then completions of widely varying lengths, all prompts at once and through lanes (`rollout/refill.py`), with the share of rows x steps that
wrote a token. Both must give the same completions, but for rare draws that rounding decides.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import peers
from experiments.benchmarks.timing import Timing, compare_lines, time_call, time_interleaved
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import Rollout, RolloutConfig, make_generate
from gr2_jax.rollout.refill import make_generate_queue
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.runs.versions import describe_machine

VOCABULARY = 2_048
EOS = 1
NO_EOS = -1  # drawn by nobody


class Contract(NamedTuple):
  """The shapes of a step: P prompts of Lp tokens, G completions of Lc tokens each; in how many parts our update takes the prompts."""

  prompts: int
  group: int
  prompt_length: int
  completion_length: int
  microbatches: int = 1


class Refill(NamedTuple):
  """Completions of geometric lengths, and the (lanes, rows) to decode them with; None is all at once, which is measured first."""

  prompts: int
  group: int
  prompt_length: int
  max_new_tokens: int
  mean_length: int
  settings: tuple[tuple[int | None, int | None], ...]


CONTRACTS = {"short": Contract(4, 8, 64, 64), "gr2": Contract(4, 16, 1_100, 100, microbatches=4)}
REFILLS = {
  "groups": Refill(32, 8, 64, 64, 12, ((None, None), (8, None), (None, 2), (16, 2), (8, 2))),
  "answers": Refill(256, 1, 64, 64, 12, ((None, None), (64, None), (32, None))),
}
DECODER = Decoder(preset("tiny", VOCABULARY))


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, then for every contract a line for each sampler with its median and how many times as long as ours it takes."""
  yield {"machine": describe_machine(("jax", "torch", "transformers"))}
  if importlib.util.find_spec("transformers") is None:
    yield {"note": "transformers is not installed: gr2_jax is measured alone"}
  for name, contract in CONTRACTS.items():
    yield from compare(name, contract)
  for name, refill in REFILLS.items():
    yield from compare_refill(name, refill)


def compare(name: str, contract: Contract, rounds: int = 5) -> Iterator[dict[str, Any]]:
  """The lines of one contract; AssertionError where our log-probabilities and HF's differ."""
  params, prompts, generate = make_params(), make_prompts(contract), make_sampler(contract)
  first = {"gr2_jax": time_call(lambda: generate(params, prompts, jax.random.key(0)))}
  samplers: dict[str, Callable[[], Any]] = {"gr2_jax": lambda: generate(params, prompts, jax.random.key(1))}
  if importlib.util.find_spec("transformers"):
    model = peers.to_hf_qwen3(DECODER.config, params)
    rollout = first["gr2_jax"][1]
    completions, found = np.asarray(rollout.completions[:1]), rollout.behaviour_logps[:1]
    np.testing.assert_allclose(found, peers.hf_log_probs(model, prompts[:1], completions), atol=1e-4)
    samplers["hf"] = peers.make_hf_generate(model, prompts, group=contract.group, max_new_tokens=contract.completion_length)
    first["hf"] = time_call(samplers["hf"])
    assert first["hf"][1].shape == rollout.completions.shape
  yield from compare_lines(name, {peer: timing for peer, (timing, _) in first.items()}, time_interleaved(samplers, rounds), rounds)


class GeometricLengths:
  """A constraint by which the first token of a completion decides its length: geometric, at least 2, cut at the limit."""

  def __init__(self, mean: int, limit: int) -> None:
    self.lengths = np.clip(np.random.default_rng(0).geometric(1 / mean, VOCABULARY), 2, limit)

  def next_state(self, completions: jax.Array, length: jax.Array, references: jax.Array) -> jax.Array:
    """Whether the token at place `length [B]` is the last."""
    return length >= jnp.asarray(self.lengths)[completions[:, 0]] - 1

  def apply(self, logits: jax.Array, is_last: jax.Array) -> jax.Array:
    """EOS alone at the last place, and nowhere else."""
    return jnp.where((jnp.arange(VOCABULARY) == EOS) == is_last[:, None], logits, -1e30)


def compare_refill(name: str, case: Refill, rounds: int = 5) -> Iterator[dict[str, Any]]:
  """A line for each setting with its occupancy and its times, `times_ours` being those over all at once."""
  params, sampling = make_params(), Sampling.create()
  prompts = np.random.default_rng(0).integers(2, VOCABULARY, (case.prompts, case.prompt_length), dtype=np.int32)
  references = np.zeros((case.prompts, 1, 1), np.int32)  # asked for with a constraint; this one reads none
  first: dict[str, Timing] = {}
  occupancy: dict[str, float] = {}
  samplers: dict[str, Callable[[], Rollout]] = {}
  expected = None
  constraint: Any = GeometricLengths(case.mean_length, case.max_new_tokens)
  for lanes, rows in case.settings:
    config = RolloutConfig(
      DECODER,
      rows=rows,
      group=case.group,
      max_new_tokens=case.max_new_tokens,
      eos_id=EOS,
      pad_id=0,
      constraint=constraint,
    )
    generate = make_generate_queue(config, lanes)

    def sample(generate: Callable[..., Rollout] = generate) -> Rollout:
      return generate(params, prompts, np.ones_like(prompts), jax.random.key(1), sampling, references=references)

    peer = "gr2_jax" if lanes is rows is None else f"{lanes or case.prompts} lanes of {rows or case.group}"
    samplers[peer] = sample
    first[peer], rollout = time_call(sample)
    expected = rollout.completions if expected is None else expected
    # Rounding differs with the batch, and now and then tips a draw that falls between two of so many equally likely tokens.
    assert np.mean(np.all(rollout.completions == expected, axis=-1)) > 0.98
    occupancy[peer] = round(float(rollout.completion_mask[:, :, 1:].sum() / rollout.row_steps.sum()), 3)
  for line in compare_lines(name, first, time_interleaved(samplers, rounds), rounds):
    yield line | {"occupancy": occupancy[line["peer"]]}


def make_params() -> Any:
  """Weights of the model that every contract runs."""
  return init_params(DECODER, jax.random.key(0))


def make_prompts(contract: Contract) -> np.ndarray:
  """Random prompts `[P, Lp]` without padding; token 0 is the pad."""
  return np.random.default_rng(0).integers(1, VOCABULARY, (contract.prompts, contract.prompt_length), dtype=np.int32)


def make_sampler(contract: Contract) -> Callable[[Any, np.ndarray, jax.Array], Rollout]:
  """Our rollout of a contract at temperature 1, `(params, prompts, key) -> Rollout`."""
  generate = make_generate(RolloutConfig(DECODER, group=contract.group, max_new_tokens=contract.completion_length, eos_id=NO_EOS, pad_id=0))
  sampling = Sampling.create()

  def sample(params: Any, prompts: np.ndarray, key: jax.Array) -> Rollout:
    return generate(params, prompts, jnp.ones(prompts.shape, bool), key, sampling)

  return sample
