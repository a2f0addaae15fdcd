"""Small folders as published models lie in: drawn weights, a byte-level tokenizer, and the chat templates of the families."""

import dataclasses
import json

import tokenizers
from small_families import CONFIGS, draw_params
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gr2_jax.models.families import FAMILIES
from gr2_jax.models.hf_folders import write_folder

CHATML = (
  "{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
  "{%- for message in messages %}{% if message.role != 'system' %}"
  "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
  "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
  "{% endif %}{% for message in turns %}{{ '<start_of_turn>user\n' + (first if loop.first else '') + message['content'] | trim }}"
  "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_TEXT = ["a gentle rose shampoo then a conditioner", "bought after the last item 41 times, more than 90 % of candidates"]


def write_tokenizer(folder, *, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), added=("<think>", "</think>"), **settings):
  """tokenizer.json and tokenizer_config.json with some 300 pieces; returns the number of tokens."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(special), show_progress=False
  )
  tokenizer.train_from_iterator(_TEXT * 20, trainer)
  tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in added])
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return tokenizer.get_vocab_size()


def write_published(
  folder, family="qwen3", *, rows=320, chat_template=CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", **settings
):
  """A whole folder with `rows` in its token table; returns (its config, its parameters)."""
  write_tokenizer(folder, chat_template=chat_template, eos_token=eos_token, pad_token=pad_token, **settings)
  config = dataclasses.replace(CONFIGS[family], vocab_size=rows)
  params = draw_params(config)
  write_folder(folder, FAMILIES[family], config, params, {})
  return config, params
