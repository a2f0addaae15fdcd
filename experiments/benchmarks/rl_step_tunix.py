"""A whole RL step against Tunix, by its own parts: its sampler, its Qwen3, and its trainer on its GRPO loss with DAPO's settings.

Tunix asks for safetensors below 0.8, hence an environment of its own: make benchmark SUITE=rl_step_tunix BENCHMARK_VENV=.venv-tunix
Log-probabilities, loss and gradient norm of one prompt's group must be equal before anything is timed.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.rl_step import LEARNING_RATE, make_step, reward
from experiments.benchmarks.rollout import CONTRACTS, DECODER, Contract, make_params, make_prompts
from experiments.benchmarks.timing import compare_lines, time_call, time_interleaved
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.policy import DAPO, policy_loss
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.runs.versions import describe_machine
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.training.state import OptimizerConfig, make_optimizer

# Tunix's Qwen3 has this base of its rotary positions in its code; a step costs the same with any.
_ROPE_BASE = 1e6
# Rows of a gradient step's micro-batch: 64 at once ask for 43 GB at `gr2`.
_MICROBATCH_ROWS = {"short": 32, "gr2": 8}


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, then for every contract a line for each side with its median and how many times as long as ours it takes."""
  yield {"machine": describe_machine(("jax", "flax", "google-tunix"))}
  for name, contract in CONTRACTS.items():
    yield from compare(name, contract)


def compare(name: str, contract: Contract, rounds: int = 5) -> Iterator[dict[str, Any]]:
  """The lines of one contract; AssertionError where results differ from Tunix's."""
  check_parity(contract)
  steps = {"gr2_jax": make_step(contract), "tunix": make_tunix_step(contract, _MICROBATCH_ROWS[name])}
  first = {peer: time_call(step)[0] for peer, step in steps.items()}
  yield from compare_lines(name, first, time_interleaved(steps, rounds), rounds)


def make_tunix_step(contract: Contract, rows: int) -> Callable[[], Any]:
  """A step of Tunix's parts over all prompts, which trains on from its last weights; `rows` are in a micro-batch."""
  from flax import nnx
  from tunix.generate.sampler import CacheConfig, Sampler

  c, total = DECODER.config, contract.prompts * contract.group
  model = to_tunix_qwen3(make_params())
  length = contract.prompt_length + contract.completion_length
  sampler = Sampler(model, _Tokens(), CacheConfig(length, c.num_layers, c.num_kv_heads, c.head_dim))
  train, seeds = _make_train(model, total // rows), itertools.count()
  prompts = np.repeat(make_prompts(contract), contract.group, axis=0)
  texts = [" ".join(map(str, row)) for row in prompts.tolist()]

  def step() -> Any:
    drawn = sampler(
      texts, contract.completion_length, max_prompt_length=contract.prompt_length, temperature=1.0, top_p=1.0, seed=next(seeds)
    )
    completions = np.stack([np.asarray(row) for row in drawn.tokens])
    rewards = jax.numpy.asarray(reward(completions).reshape(contract.prompts, contract.group))
    advantages, _ = jax.device_get(group_advantages(rewards, rewards))
    for start in range(0, total, rows):
      part = slice(start, start + rows)
      train(_example(prompts[part], completions[part], advantages.reshape(-1)[part]))
    sampler.transformer_state = nnx.variables(model, nnx.Param)
    return sampler.transformer_state

  return step


def check_parity(contract: Contract) -> None:
  """AssertionError where log-probabilities, loss or gradient norm of the first prompt's group differ."""
  from flax import nnx
  from tunix.rl.common import compute_per_token_logps

  random = np.random.default_rng(1)
  group, params = min(contract.group, 8), make_params()
  shape = (1, group, contract.completion_length)
  completions = random.integers(1, DECODER.config.vocab_size, shape, dtype=np.int32)
  prompts = make_prompts(contract)[:1]
  rows = np.repeat(prompts, group, axis=0)
  model = to_tunix_qwen3(params)
  logps = compute_per_token_logps(*nnx.split(model), rows, completions[0], pad_id=0, eos_id=_Tokens.eos)
  old = (np.asarray(logps)[None] + 0.3 * random.normal(size=shape)).astype(np.float32)
  batch = GroupBatch(
    prompts=prompts,
    prompt_mask=np.ones_like(prompts, bool),
    completions=completions,
    completion_mask=np.ones(shape, bool),
    behaviour_logps=old,
    advantages=random.normal(size=shape[:2]).astype(np.float32),
    weights=np.ones(1, np.float32),
    keep=np.ones(1, bool),
  )
  decoder = Decoder(dataclasses.replace(DECODER.config, rope_base=_ROPE_BASE))

  @functools.partial(jax.value_and_grad, has_aux=True)
  def ours(params: Any) -> tuple[jax.Array, jax.Array]:
    found, _ = completion_log_probs(decoder, params, *batch.texts)
    loss = policy_loss(found, jax.numpy.asarray(old), batch.advantages, batch.completion_mask, DAPO)
    return loss.loss_sum / loss.denominator, found

  (loss, found), gradient = jax.jit(ours)(params)
  np.testing.assert_allclose(found[0], logps, atol=1e-4)
  expected_loss, _, norm = _make_train(model, 1)(_example(rows, completions[0], batch.advantages[0], old[0]))
  np.testing.assert_allclose([loss, optax.global_norm(gradient)], [expected_loss, norm], rtol=1e-3)


def to_tunix_qwen3(params: Any) -> Any:
  """Tunix's Qwen3 in float32 with our parameters."""
  import jax.numpy as jnp
  from flax import nnx
  from tunix.models.qwen3.model import ModelConfig, Qwen3

  c = DECODER.config
  model = Qwen3(
    ModelConfig(
      num_layers=c.num_layers,
      vocab_size=c.vocab_size,
      embed_dim=c.width,
      hidden_dim=c.mlp_width,
      num_heads=c.num_heads,
      head_dim=c.head_dim,
      num_kv_heads=c.num_kv_heads,
      rope_theta=int(_ROPE_BASE),
      norm_eps=c.norm_eps,
      use_tied_embedding=c.tie_embedding,
    ),
    rngs=nnx.Rngs(0),
  )
  model.embedder.input_embedding.value = jnp.array(params["embedding"])
  model.final_norm.w.value = jnp.array(params["final_norm"]["scale"])
  for i, layer in enumerate(model.layers):
    ours = jax.tree.map(lambda x, i=i: jnp.array(x[i]), params["layers"])
    layer.input_layernorm.w.value, layer.post_attention_layernorm.w.value = ours["attention_norm"]["scale"], ours["mlp_norm"]["scale"]
    for name in ("q", "k", "v"):
      getattr(layer.attn, f"{name}_proj").w.value = ours[name]["kernel"]
    layer.attn.o_proj.w.value = ours["out"]["kernel"]
    layer.attn.q_norm.w.value, layer.attn.k_norm.w.value = ours["q_norm"]["scale"], ours["k_norm"]["scale"]
    for name in ("gate", "up", "down"):
      getattr(layer.mlp, f"{name}_proj").kernel.value = ours[name]["kernel"]
  return model


class _Tokens:
  """A tokenizer of numbers; its EOS is beyond the vocabulary, so that every completion is of full length."""

  eos = DECODER.config.vocab_size

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: Iterable[int]) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> None:
    return None

  def eos_id(self) -> int:
    return self.eos

  def pad_id(self) -> int:
    return 0


def _make_train(model: Any, microbatches: int) -> Callable[..., Any]:
  """The compiled `train(example) -> (loss, aux, gradient norm)` of Tunix's trainer, which changes the model."""
  from tunix.rl.algo_core import grpo_loss_fn
  from tunix.rl.grpo.dapo_learner import DAPOConfig
  from tunix.rl.trainer import Trainer
  from tunix.sft.peft_trainer import TrainingConfig

  config = DAPOConfig(epsilon=DAPO.clip_low, epsilon_high=DAPO.clip_high)
  config.temperature = 1.0

  def loss(model: Any, train_example: Any) -> Any:
    return grpo_loss_fn(model, train_example, algo_config=config, pad_id=0, eos_id=_Tokens.eos)

  optimizer = make_optimizer(OptimizerConfig(LEARNING_RATE), total_steps=1_000)
  options = TrainingConfig(eval_every_n_steps=1_000_000, gradient_accumulation_steps=microbatches if microbatches > 1 else None)
  trainer = Trainer(model, optimizer, options, dict).with_loss_fn(loss, has_aux=True)
  trainer.with_gen_model_input_fn(lambda example: {"train_example": example})
  return trainer.jit_train_and_eval_step(cache_nnx_graph=True)[0]


def _example(prompts: np.ndarray, completions: np.ndarray, advantages: np.ndarray, old_logps: np.ndarray | None = None) -> Any:
  from tunix.rl.grpo.grpo_learner import TrainExample

  arrays = (prompts, np.ones_like(prompts), completions, np.ones_like(completions), advantages)
  return TrainExample(*map(jax.numpy.asarray, arrays), None, None if old_logps is None else jax.numpy.asarray(old_logps))
