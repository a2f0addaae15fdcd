"""Families against `transformers` itself, where torch is installed: `make parity`."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import CONFIGS, TOKENS, draw_params
from test_adapters import LORA, draw_adapters
from test_published import GOLDEN

from gr2_jax.models.families import FAMILIES
from gr2_jax.models.hf_folders import write_folder
from gr2_jax.models.peft_folders import read_adapters, write_adapters
from gr2_jax.models.published import tensor_names
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.parity
_LENGTHS = np.array([24, 15])


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  """(our decoder, parameters, the same model in transformers)."""
  import torch
  import transformers

  name, folder = request.param, tmp_path_factory.mktemp(request.param)
  config, params = CONFIGS[name], draw_params(CONFIGS[name])
  no_ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "max_position_embeddings": 512}
  write_folder(folder, FAMILIES[name], config, params, no_ends)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
  return name, Decoder(config), params, model.eval()


def _logits(decoder, params, tokens, mask):
  places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = decoder.apply({"params": params}, jnp.asarray(tokens), places, jnp.asarray(mask, jnp.int32))
  return decoder.apply({"params": params}, hidden, method="logits")


def test_logits_of_a_padded_batch(pair):
  import torch

  name, decoder, params, model = pair
  mask = np.arange(24) < _LENGTHS[:, None]
  with torch.no_grad():
    theirs = model(torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(mask.astype(int))).logits.numpy()
    whole = model(torch.from_numpy(TOKENS)).logits.numpy()
  np.testing.assert_allclose(np.asarray(_logits(decoder, params, TOKENS, mask))[mask], theirs[mask], atol=1e-4, rtol=0)
  np.testing.assert_allclose(np.load(GOLDEN)[name], whole[:, ::3], atol=1e-5, rtol=0)


def test_32_greedy_tokens(pair):
  import torch

  _, decoder, params, model = pair
  generate = make_generate(RolloutConfig(decoder, group=1, max_new_tokens=32, eos_id=-1, pad_id=0))
  ours = generate(params, jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool), jax.random.key(0), Sampling.create(temperature=0.0))
  for cached in (True, False):
    with torch.no_grad():
      theirs = model.generate(torch.from_numpy(TOKENS), max_new_tokens=32, do_sample=False, use_cache=cached)
    np.testing.assert_array_equal(np.asarray(ours.completions)[:, 0], theirs[:, 24:].numpy())


def test_gradients_of_the_next_tokens_loss(pair):
  import torch

  name, decoder, params, model = pair

  def loss(params):
    log_probs = jax.nn.log_softmax(_logits(decoder, params, TOKENS, np.ones(TOKENS.shape))[:, :-1])
    return -jnp.take_along_axis(log_probs, jnp.asarray(TOKENS)[:, 1:, None], axis=-1).mean()

  ours = jax.grad(loss)(params)
  logits = model(torch.from_numpy(TOKENS)).logits[:, :-1]
  torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(TOKENS)[:, 1:].reshape(-1)).backward()
  theirs = dict(model.named_parameters())
  for wanted, tensor, layer in tensor_names(FAMILIES[name], decoder.config):
    leaf = ours
    for key in tensor.path:
      leaf = leaf[key]
    one = np.asarray(leaf if layer is None else leaf[layer])
    one = one if not tensor.inputs else one.reshape(np.prod(one.shape[: tensor.inputs]), -1).T
    other = theirs[wanted].grad.numpy()
    assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other), wanted


def test_peft_reads_adapters(pair, tmp_path):
  """Of all matrices and of the last rows, on the base that the model is: the same logits, and without them the base's."""
  import peft
  import torch

  name, decoder, params, model = pair
  adapters = draw_adapters(decoder, LORA, params)
  write_adapters(tmp_path, FAMILIES[name], decoder.config, LORA, adapters, model.name_or_path)
  whole = np.ones(TOKENS.shape, bool)
  adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
  with torch.no_grad():
    theirs = adapted(torch.from_numpy(TOKENS)).logits.numpy()
    with adapted.disable_adapter():
      base = adapted(torch.from_numpy(TOKENS)).logits.numpy()
  ours, ours_base = (_logits(decoder, of, TOKENS, whole) for of in (LORA.join(params, adapters), params))
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
  np.testing.assert_allclose(ours_base, base, atol=1e-4, rtol=0)
  assert np.abs(theirs - base).max() > 0.1
  # What peft writes of them is what we wrote.
  adapted.save_pretrained(tmp_path / "theirs")
  lora, found = read_adapters(tmp_path / "theirs", FAMILIES[name], decoder.config)
  assert lora == LORA
  jax.tree.map(np.testing.assert_array_equal, found, adapters)


def write_golden():
  """The logits of every third token by transformers, from a folder of each family."""
  import tempfile

  import torch
  import transformers

  found = {}
  for name, config in CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
      write_folder(folder, FAMILIES[name], config, draw_params(config), {"max_position_embeddings": 512, "pad_token_id": 0})
      model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
      with torch.no_grad():
        found[name] = model(torch.from_numpy(TOKENS)).logits[:, ::3].numpy()
  np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
  write_golden()
