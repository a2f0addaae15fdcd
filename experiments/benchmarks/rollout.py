"""Rollouts of group completions against Hugging Face's `generate`: the same weights, prompts and numbers of tokens.

Every completion has its full length: our EOS is no token, and HF is told none. Log-probabilities of our samples, as our decode loop gives
them, must equal those of HF's plain forward on the same tokens before anything is timed.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import peers
from experiments.timing import compare_lines, describe_machine, time_call, time_interleaved
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.sampling import Sampling

VOCABULARY = 2_048
NO_EOS = -1  # drawn by nobody


class Contract(NamedTuple):
  """The shapes of a step: P prompts of Lp tokens, G completions of Lc tokens each; in how many parts our update takes the prompts."""

  prompts: int
  group: int
  prompt_length: int
  completion_length: int
  microbatches: int = 1


CONTRACTS = {"short": Contract(4, 8, 64, 64), "gr2": Contract(4, 16, 1_100, 100, microbatches=4)}
DECODER = Decoder(preset("tiny", VOCABULARY))


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, then for every contract a line for each sampler with its median and how many times as long as ours it takes."""
  yield {"machine": describe_machine(("jax", "torch", "transformers"))}
  if importlib.util.find_spec("transformers") is None:
    yield {"note": "transformers is not installed: gr2_jax is measured alone"}
  for name, contract in CONTRACTS.items():
    yield from compare(name, contract)


def compare(name: str, contract: Contract, rounds: int = 5) -> Iterator[dict[str, Any]]:
  """The lines of one contract; AssertionError where our log-probabilities and HF's differ."""
  params, prompts, generate = make_params(), make_prompts(contract), make_sampler(contract)
  first = {"gr2_jax": time_call(lambda: generate(params, prompts, jax.random.key(0)))}
  samplers = {"gr2_jax": lambda: generate(params, prompts, jax.random.key(1))}
  if importlib.util.find_spec("transformers"):
    model = peers.to_hf_qwen3(DECODER.config, params)
    rollout = first["gr2_jax"][1]
    completions, found = np.asarray(rollout.completions[:1]), rollout.behaviour_logps[:1]
    np.testing.assert_allclose(found, peers.hf_log_probs(model, prompts[:1], completions), atol=1e-4)
    samplers["hf"] = peers.make_hf_generate(model, prompts, group=contract.group, max_new_tokens=contract.completion_length)
    first["hf"] = time_call(samplers["hf"])
    assert first["hf"][1].shape == rollout.completions.shape
  yield from compare_lines(name, {peer: timing for peer, (timing, _) in first.items()}, time_interleaved(samplers, rounds), rounds)


def make_params():
  """Weights of the model that every contract runs."""
  return init_params(DECODER, jax.random.key(0))


def make_prompts(contract: Contract) -> np.ndarray:
  """Random prompts `[P, Lp]` without padding; token 0 is the pad."""
  return np.random.default_rng(0).integers(1, VOCABULARY, (contract.prompts, contract.prompt_length), dtype=np.int32)


def make_sampler(contract: Contract):
  """Our rollout of a contract at temperature 1, `(params, prompts, key) -> Rollout`."""
  generate = make_generate(DECODER, group=contract.group, max_new_tokens=contract.completion_length, eos_id=NO_EOS, pad_id=0)
  sampling = Sampling.create()

  def sample(params, prompts, key):
    return generate(params, prompts, jnp.ones(prompts.shape, bool), key, sampling)

  return sample
