"""A run's policy as a folder for others: the same parameters, the same prompts, and the same answers where `transformers` is installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from experiments.exchange import convert
from gr2_jax.language.prompts import present, render_prompt
from gr2_jax.language.tokenizer_files import chat_messages
from gr2_jax.models.hf_folders import open_folder
from gr2_jax.models.published import load_published
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.runs.load import load_policy, load_slates, open_context, prompt_style
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run
from gr2_jax.training.mesh import make_mesh


def one_device():
  return make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
  """(the policy of a tiny run, the folder that it is exported to)."""
  to = tmp_path_factory.mktemp("export") / "policy"
  assert convert(str(tiny_run), str(to), None, export=True) == 0
  run = Run.open(tiny_run)
  return load_policy(run, find_policy(run, "rl"), open_context(run), one_device()), to


@pytest.fixture(scope="module")
def prompts(exported):
  """Ten prompts of test slates."""
  policy, _ = exported
  slates = load_slates(policy.run, policy.context.catalogue, "test")[:10]
  style = prompt_style(policy.run)
  shown = [present(len(slate.candidates), "shuffled", (0, number, 0)) for number, slate in enumerate(slates)]
  return [render_prompt(*of, policy.context, style).tokens for of in zip(slates, shown, strict=True)]


def test_what_is_written_is_read_again_bit_for_bit(exported):
  policy, to = exported
  found = open_folder(to)
  assert (found.family.name, found.config) == ("qwen3", policy.decoder.config)
  jax.tree.map(np.testing.assert_array_equal, load_published(found, found.config, one_device()), policy.params)
  raw = json.loads((to / "config.json").read_bytes())
  vocabulary = policy.context.vocabulary
  assert (raw["eos_token_id"], raw["pad_token_id"], raw["torch_dtype"]) == (vocabulary.eos_id, vocabulary.pad_id, "float32")
  assert json.loads((to / "generation_config.json").read_bytes())["max_new_tokens"] == policy.run.config.decoding.max_new_tokens


def test_its_tokenizer_reads_prompts_and_its_card_shows_one(exported, prompts):
  policy, to = exported
  tokenizer, vocabulary = Tokenizer.from_file(str(to / "tokenizer.json")), policy.context.vocabulary
  for prompt in prompts:
    assert tokenizer.encode(vocabulary.decode(prompt)).ids == prompt
  card = (to / "README.md").read_text()
  shown = json.loads(card.split("```json\n")[1].split("```")[0])
  assert [message["role"] for message in shown] == ["system", "user"] and "<candidates>" in shown[1]["content"]
  assert "from the stage `rl`" in card and f"answer={vocabulary.special('answer')}" in card


def test_a_stage_may_be_named_and_one_without_a_policy_is_told(tiny_run, tmp_path, capsys):
  assert convert(str(tiny_run / "sft"), str(tmp_path / "sft"), "bfloat16", export=True) == 0
  assert open_folder(tmp_path / "sft").tensors["model.norm.weight"].dtype == jnp.bfloat16
  assert "from the stage `sft`" in (tmp_path / "sft" / "README.md").read_text()
  for source, words in {
    tiny_run / "data": "has no finished policy of 'data'; run the stage first, or name a stage that has one: sft",
    tmp_path / "sft": "has no finished policy; run its stages first",
    tmp_path: "is no run (it has no config.json)",
  }.items():
    assert convert(str(source), str(tmp_path / "to"), None, export=True) == 1
    assert words in capsys.readouterr().err
  assert convert(str(tiny_run), str(tmp_path / "to"), None) == 1
  assert "is a run; add --export" in capsys.readouterr().err
  assert not (tmp_path / "to").exists()


def test_a_scored_policy_is_no_language_model(scored_run, tmp_path, capsys):
  assert convert(str(scored_run), str(tmp_path / "to"), None, export=True) == 1
  assert "scores candidates in one pass and is no language model; give a run of the written form" in capsys.readouterr().err
  assert not (tmp_path / "to").exists()


@pytest.mark.parity
def test_transformers_gives_the_same_prompts_logits_and_answers(exported, prompts):
  import torch
  import transformers

  policy, to = exported
  decoder, vocabulary = policy.decoder, policy.context.vocabulary
  tokenizer = transformers.AutoTokenizer.from_pretrained(to)
  model = transformers.AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
  limit = policy.run.config.decoding.max_new_tokens
  generate = make_generate(
    RolloutConfig(decoder, group=1, max_new_tokens=limit, eos_id=vocabulary.eos_id, pad_id=vocabulary.pad_id, rows=1)
  )
  for prompt in prompts:
    read = tokenizer.apply_chat_template(
      chat_messages(vocabulary, prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert read["input_ids"][0].tolist() == prompt
    tokens, places = jnp.asarray([prompt]), jnp.arange(len(prompt))[None]
    hidden, _ = decoder.apply({"params": policy.params}, tokens, places, jnp.ones_like(tokens))
    ours = decoder.apply({"params": policy.params}, hidden, method="logits")
    with torch.no_grad():
      theirs = model(**read).logits.numpy()
      answer = model.generate(**read, do_sample=False)[0, len(prompt) :].tolist()
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    rollout = generate(policy.params, tokens, jnp.ones(tokens.shape, bool), jax.random.key(0), Sampling.create(temperature=0.0))
    written = np.asarray(rollout.completions[0, 0])[np.asarray(rollout.completion_mask[0, 0])]
    assert answer == written.tolist() and len(answer) > 1
