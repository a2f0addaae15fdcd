"""Adapters as peft lays them out: what is read is what was written, and what is of another base is refused by name."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_families import CONFIGS, draw_params
from test_adapters import LORA, draw_adapters

from gr2_jax.models.adapters import Lora
from gr2_jax.models.families import FAMILIES
from gr2_jax.models.peft_folders import read_adapters, write_adapters
from gr2_jax.models.published import PublishedError
from gr2_jax.models.transformer import Decoder


@pytest.fixture(scope="module", params=CONFIGS)
def written(request, tmp_path_factory):
  """(family, config, adapters, the folder that holds them)."""
  family, config = FAMILIES[request.param], CONFIGS[request.param]
  adapters, folder = draw_adapters(Decoder(config), LORA, draw_params(config)), tmp_path_factory.mktemp(request.param)
  write_adapters(folder, family, config, LORA, adapters, "a/base")
  return family, config, adapters, folder


def test_what_is_read_is_what_was_written(written):
  family, config, adapters, folder = written
  lora, found = read_adapters(folder, family, config, "a/base")
  assert lora == LORA
  assert {*found} == {*adapters}
  for target, factors in adapters["layers"].items():
    for name, of in factors.items():
      np.testing.assert_array_equal(found["layers"][target][name], of)
  for name in {*adapters} - {"layers"}:
    np.testing.assert_array_equal(found[name], adapters[name])


def test_names_and_shapes_are_those_of_peft(written):
  _, config, _, folder = written
  tensors = {name: of.shape for name, of in load_file(folder / "adapter_model.safetensors").items()}
  assert len(tensors) == 7 * 7 * 2 + (1 if config.tie_embedding else 2)
  assert tensors["base_model.model.model.layers.6.self_attn.q_proj.lora_A.weight"] == (3, 32)
  assert tensors["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"] == (3, 64)
  assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"] == (32, 3)
  assert tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] == (10, 32)
  about = json.loads((folder / "adapter_config.json").read_text())
  assert (about["peft_type"], about["task_type"], about["r"], about["lora_alpha"]) == ("LORA", "CAUSAL_LM", 3, 6.0)
  assert about["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
  assert about["trainable_token_indices"]["embed_tokens"] == list(range(86, 96))
  assert ("lm_head" in about["trainable_token_indices"]) != config.tie_embedding


@pytest.fixture
def one(tmp_path):
  """(family, config, the folder) of adapters of some matrices, to be spoilt."""
  config, lora = CONFIGS["qwen3"], Lora(2, 4.0, ("q", "down"))
  write_adapters(tmp_path, FAMILIES["qwen3"], config, lora, draw_adapters(Decoder(config), lora, draw_params(config)), "a/base")
  return FAMILIES["qwen3"], config, tmp_path


def test_adapters_of_another_base_are_refused(one):
  family, config, folder = one
  with pytest.raises(PublishedError, match=r"adapter_config.json: is for the base a/base, not for b; give"):
    read_adapters(folder, family, config, "b")
  wide = dataclasses.replace(config, mlp_width=64)
  with pytest.raises(
    PublishedError, match=r"layers.0.mlp.down_proj.lora_A.weight has the shape \(2, 48\), and this base makes it \(2, 64\)"
  ):
    read_adapters(folder, family, wide)
  with pytest.raises(PublishedError, match=r"layers.7.self_attn.q_proj.lora_A.weight is missing.*own base"):
    read_adapters(folder, family, dataclasses.replace(config, num_layers=8))
  with pytest.raises(PublishedError, match=r"4 tensors belong to no adapter, the first base_model.model.model.layers.6.mlp.down_proj"):
    read_adapters(folder, family, dataclasses.replace(config, num_layers=6))


@pytest.mark.parametrize(
  ("changes", "fault"),
  [
    ({"target_modules": ["q_proj", "experts"]}, "target_modules is experts, which this decoder has not; there are q_proj"),
    ({"target_modules": "all-linear"}, "target_modules is all-linear"),
    ({"use_dora": True}, "use_dora is True, which is not read"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3', which is not read; give adapters with 'LORA' there"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is .*not read"),
    ({"trainable_token_indices": {"embed_tokens": [3, 95]}}, "trainable_token_indices are not the last rows of embed_tokens, which has 96"),
    ({"trainable_token_indices": [95]}, r"embed_tokens.token_adapter.trainable_tokens_delta is missing"),
  ],
)
def test_adapters_that_do_something_else_are_refused(one, changes, fault):
  family, config, folder = one
  path = folder / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(PublishedError, match=fault):
    read_adapters(folder, family, config)


def test_files_that_are_gone_or_damaged_are_named(one, tmp_path_factory):
  family, config, folder = one
  path = folder / "adapter_model.safetensors"
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(PublishedError, match=r"adapter_model.safetensors: is damaged or cut short"):
    read_adapters(folder, family, config)
  path.unlink()
  with pytest.raises(PublishedError, match=r"adapter_model.safetensors is missing"):
    read_adapters(folder, family, config)
  with pytest.raises(PublishedError, match=r"adapter_config.json is missing"):
    read_adapters(tmp_path_factory.mktemp("empty"), family, config)


def test_half_precision_is_read(one):
  family, config, folder = one
  path = folder / "adapter_model.safetensors"
  halves = {name: of.astype(np.float16) for name, of in load_file(path).items()}
  save_file(halves, path)
  _, found = read_adapters(folder, family, config)
  assert found["layers"]["q"]["lora_a"].dtype == np.float32
  expected = halves["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].astype(np.float32)
  np.testing.assert_array_equal(found["layers"]["q"]["lora_b"][0].reshape(2, -1).T, expected)
