"""Peers on PyTorch: our weights in Hugging Face's Qwen3, its sampler, and TRL's GRPO trainer; torch is imported only where one is made."""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.timing import Timing, time_call
from gr2_jax.models.config import ModelConfig
from gr2_jax.steps.batch import GroupBatch


def to_hf_qwen3(config: ModelConfig, params: Any) -> Any:
  """A `transformers.Qwen3ForCausalLM` in float32 with our parameters, in evaluation mode."""
  import torch
  import transformers

  layers = params["layers"]
  weights = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["final_norm"]["scale"]}
  weights["lm_head.weight"] = params["embedding" if config.tie_embedding else "output"]
  for i in range(config.num_layers):
    for name, (part, axes) in _LAYER.items():
      leaf = np.asarray(layers[part]["scale" if axes is None else "kernel"][i])
      # torch keeps a matrix as [outputs, inputs], its heads and their places in one axis.
      weights[f"model.layers.{i}.{name}.weight"] = leaf if axes is None else leaf.reshape(np.prod(leaf.shape[:axes]), -1).T
  model = transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config(
      vocab_size=config.vocab_size,
      hidden_size=config.width,
      intermediate_size=config.mlp_width,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads,
      head_dim=config.head_dim,
      rms_norm_eps=config.norm_eps,
      tie_word_embeddings=config.tie_embedding,
      rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
      bos_token_id=None,
      eos_token_id=None,
    )
  )
  model.load_state_dict({name: torch.tensor(np.asarray(x, np.float32)) for name, x in weights.items()})
  return model.eval()


# HF's name of a layer's part -> ours, and how many of the kernel's leading axes are inputs (None: a norm's scale).
_LAYER = {
  "input_layernorm": ("attention_norm", None),
  "self_attn.q_proj": ("q", 1),
  "self_attn.k_proj": ("k", 1),
  "self_attn.v_proj": ("v", 1),
  "self_attn.q_norm": ("q_norm", None),
  "self_attn.k_norm": ("k_norm", None),
  "self_attn.o_proj": ("out", 2),
  "post_attention_layernorm": ("mlp_norm", None),
  "mlp.gate_proj": ("gate", 1),
  "mlp.up_proj": ("up", 1),
  "mlp.down_proj": ("down", 1),
}


def make_hf_generate(model: Any, prompts: np.ndarray, *, group: int, max_new_tokens: int) -> Callable[[], np.ndarray]:
  """A function that samples `group` completions of exactly `max_new_tokens` for each prompt `[P, Lp]` with HF's `generate`."""
  import torch

  tokens = torch.from_numpy(np.asarray(prompts, np.int64)).repeat_interleave(group, dim=0)
  options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "eos_token_id": None}

  def generate() -> np.ndarray:
    with torch.no_grad():
      found = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_new_tokens, **options)
    return found[:, tokens.shape[1] :].numpy().reshape(len(prompts), group, -1)

  return generate


def hf_log_probs(model: Any, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
  """Log-probabilities `[P, G, Lc]` of completions `[P, G, Lc]` after prompts `[P, Lp]`, by a plain forward over every whole sequence."""
  import torch

  num_prompts, group, length = completions.shape
  rows = [np.repeat(prompts, group, axis=0), completions.reshape(num_prompts * group, length)]
  tokens = torch.from_numpy(np.concatenate(rows, axis=1).astype(np.int64))
  with torch.no_grad():
    logits = model(tokens, logits_to_keep=length + 1).logits[:, :-1]
  found = torch.log_softmax(logits, dim=-1).gather(2, tokens[:, -length:, None])
  return found.numpy().reshape(completions.shape)


def make_grpo_trainer(
  model: Any,
  prompts: np.ndarray,
  reward_fn: Callable[[np.ndarray], np.ndarray],
  *,
  group: int,
  max_new_tokens: int,
  learning_rate: float,
) -> Any:
  """TRL's trainer with DAPO's loss for steps over all of the prompts `[P, Lp]`, set up to be as fast as it gets: no recomputation, no
  logging, one micro-batch, and therefore no forward pass for old log-probabilities.

  `reward_fn` maps completions `[P * G, Lc]` to rewards. EOS is a token beyond the model's vocabulary, so that every completion is of full
  length.
  """
  import datasets
  import tokenizers
  import transformers
  import trl

  vocabulary_size = model.config.vocab_size
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(vocabulary_size + 1)}, unk_token="0"))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, eos_token=str(vocabulary_size), pad_token="0", padding_side="left"
  )

  def reward(completion_ids: Any, **_: Any) -> list[float]:
    return reward_fn(np.asarray(completion_ids)).tolist()

  args = trl.GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    loss_type="dapo",
    beta=0.0,
    epsilon=0.2,
    epsilon_high=0.28,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    num_generations=group,
    max_completion_length=max_new_tokens,
    per_device_train_batch_size=len(prompts) * group,
    gradient_accumulation_steps=1,
    steps_per_generation=1,
    learning_rate=learning_rate,
    lr_scheduler_type="constant",
    max_steps=1_000,  # a clock stops it
    activation_checkpointing=False,
    bf16=False,
    use_cpu=True,
    disable_tqdm=True,
    logging_strategy="no",
    save_strategy="no",
    report_to="none",
  )
  trainer = trl.GRPOTrainer(
    model,
    reward,
    args,
    datasets.Dataset.from_dict({"prompt": [" ".join(map(str, row)) for row in prompts.tolist()]}),
    processing_class=tokenizer,
  )
  trainer.remove_callback(transformers.PrinterCallback)
  return trainer


def grpo_loss(trainer: Any, batch: GroupBatch) -> tuple[float, float]:
  """TRL's loss on groups without padding, with their behaviour log-probabilities as the old policy's, and the norm of its gradient."""
  import torch

  num_prompts, group, length = batch.completions.shape

  def to_rows(x: Any, dtype: Any) -> Any:
    return torch.from_numpy(np.asarray(x).reshape(num_prompts * group, -1).astype(dtype))

  prompts = to_rows(np.repeat(batch.prompts, group, axis=0), np.int64)
  completions = to_rows(batch.completions, np.int64)
  trainer.current_gradient_accumulation_steps = 1
  trainer.model.train()
  loss = trainer._compute_loss(
    trainer.model,
    {
      "prompt_ids": prompts,
      "prompt_mask": torch.ones_like(prompts),
      "completion_ids": completions,
      "completion_mask": torch.ones_like(completions),
      "old_per_token_logps": to_rows(batch.behaviour_logps, np.float32),
      "advantages": to_rows(batch.advantages, np.float32)[:, 0],
      "num_items_in_batch": torch.tensor(completions.numel()),
    },
  )
  loss.backward()
  norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.model.parameters()]))
  trainer.model.zero_grad()
  return float(loss.detach()), float(norm)


def time_grpo(trainer: Any, ours: Callable[[], Any], *, rounds: int, limit_s: float) -> tuple[list[Timing], list[Timing]]:
  """Trains for a first step and then `rounds` more, at least one and only as many as `limit_s` seconds hold, with a call of `ours` after
  each. Returns the times of TRL's steps and of ours, the first apart at place 0.
  """
  import transformers

  peer_times: list[Timing] = []
  our_times: list[Timing] = []
  end = time.perf_counter() + limit_s

  class Clock(transformers.TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
      self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
      peer_times.append(Timing(time.perf_counter() - self.start[0], time.process_time() - self.start[1]))
      our_times.append(time_call(ours)[0])
      over = time.perf_counter() + peer_times[-1].wall > end
      control.should_training_stop = len(peer_times) > rounds or (len(peer_times) > 1 and over)

  trainer.add_callback(Clock())
  trainer.train()
  return peer_times, our_times
