import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_families import CONFIGS, TOKENS, draw_params

from gr2_jax.models import hf_folders as module
from gr2_jax.models.families import FAMILIES
from gr2_jax.models.hf_folders import open_folder, write_folder
from gr2_jax.models.published import PublishedError, fill_rows, load_published
from gr2_jax.models.transformer import Decoder
from gr2_jax.training.mesh import make_mesh

GOLDEN = pathlib.Path(__file__).with_name("golden_logits.npz")


def _write(folder, name):
  params = draw_params(CONFIGS[name])
  write_folder(folder, FAMILIES[name], CONFIGS[name], params, {"max_position_embeddings": 512})
  return params


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("files", ["one file", "several files"])
@pytest.mark.parametrize("name", CONFIGS)
def test_in_and_out_and_in_again_changes_no_bit(tmp_path, monkeypatch, name, files):
  if files == "several files":
    monkeypatch.setattr(module, "_SHARD_BYTES", 20_000)
  params = _write(tmp_path, name)
  assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (files == "several files")
  found = open_folder(tmp_path)
  assert (found.family.name, found.config) == (name, CONFIGS[name])
  read = load_published(found, found.config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
  _equal(read, params)
  write_folder(tmp_path / "again", found.family, found.config, read, {})
  _equal(load_published(open_folder(tmp_path / "again"), found.config, make_mesh()), params)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_device_of_a_mesh_reads_its_own_part(tmp_path, name):
  params = _write(tmp_path, name)
  found = open_folder(tmp_path)
  read = load_published(found, found.config, make_mesh(2, 2, 2))
  _equal(read, params)
  gate = read["layers"]["gate"]["kernel"]
  assert {shard.data.shape for shard in gate.addressable_shards} == {(7, 16, 24)}


_PEAK = """
import ctypes, dataclasses, gc, json, sys, threading, time
import jax
from gr2_jax.models.hf_folders import open_folder
from gr2_jax.models.published import load_published
from gr2_jax.training.mesh import make_mesh

def held():
  with open("/proc/self/status") as status:
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def watch():
  global peak
  while True:
    peak = max(peak, held())
    time.sleep(0.001)

published = open_folder(sys.argv[1])
mesh = make_mesh(1, jax.device_count(), 1)
jax.device_put(0.0).block_until_ready()
peak = 0
threading.Thread(target=watch, daemon=True).start()
params = load_published(published, dataclasses.replace(published.config, param_dtype="float32"), mesh)
jax.block_until_ready(params)
highest, placed = max(peak, held()), sum(leaf.nbytes for leaf in jax.tree.leaves(params))
# What is held without them is asked afterwards: before, imports and threads still give back what they took.
del params
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
print(json.dumps({"peak": highest - held(), "placed": placed}))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux tells what memory is held")
@pytest.mark.parametrize("devices", [1, 8])
def test_loading_holds_little_more_than_what_it_places(tmp_path, devices):
  config = dataclasses.replace(CONFIGS["qwen3"], vocab_size=32_768, width=512, mlp_width=2048, num_layers=8)
  params = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), draw_params(config))
  write_folder(tmp_path, FAMILIES["qwen3"], config, params, {})
  environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
  done = subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  assert found["peak"] > 0.7 * found["placed"]  # the measurement sees the parameters
  assert found["peak"] < 1.15 * found["placed"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_longer_token_tables_keep_the_published_rows_and_draw_the_others_near_their_mean(tmp_path, name, mesh):
  params = _write(tmp_path, name)
  found = open_folder(tmp_path)
  longer = dataclasses.replace(found.config, vocab_size=256)
  devices = jax.devices()[: mesh[0] * mesh[1] * mesh[2]]
  read = fill_rows(load_published(found, longer, make_mesh(*mesh, devices=devices)), 90, ((), (3, 5), (7,)), jax.random.key(3))
  for table in ("embedding", "output"):
    if table not in params:
      continue
    known = params[table][:90]
    np.testing.assert_array_equal(read[table][:90], known)  # those behind belonged to no token
    new = np.array(read[table][90:])
    spread = 0.1 * known.std(axis=0)
    for row, like in ((1, known[[3, 5]].mean(axis=0)), (2, known[7])):
      assert np.abs((new[row] - like) / spread).max() < 5
      new[row] += known.mean(axis=0) - like
    np.testing.assert_allclose(new.mean(axis=0), known.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(new.std(axis=0).mean(), 0.1 * known.std(axis=0).mean(), rtol=0.3)
  _equal({**read, "embedding": 0, "output": 0}, {**params, "embedding": 0, "output": 0})


def test_a_shorter_token_table_would_drop_rows(tmp_path):
  _write(tmp_path, "qwen3")
  found = open_folder(tmp_path)
  with pytest.raises(PublishedError, match="96 token rows, of which 64 would be kept"):
    load_published(found, dataclasses.replace(found.config, vocab_size=64), make_mesh(1, 1, 1, devices=jax.devices()[:1]))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name):
  """`make parity` compares with the library itself; these are its logits of every third token, written down."""
  decoder, params = Decoder(CONFIGS[name]), draw_params(CONFIGS[name])
  places = jnp.broadcast_to(jnp.arange(24), TOKENS.shape)
  hidden, _ = decoder.apply({"params": params}, jnp.asarray(TOKENS), places, jnp.ones(TOKENS.shape, jnp.int32))
  logits = decoder.apply({"params": params}, hidden, method="logits")
  np.testing.assert_allclose(logits[:, ::3], np.load(GOLDEN)[name], atol=1e-4, rtol=0)


def test_older_config_files_read_alike(tmp_path):
  """transformers 4 wrote rotary settings under other names."""
  for name, older in {
    "llama": {
      "rope_theta": 5e5,
      "rope_scaling": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 16,
      },
    },
    "gemma3": {
      **{"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6, "layer_types": None},
      "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
  }.items():
    written = json.loads(json.dumps(FAMILIES[name].write(CONFIGS[name])))
    del written["rope_parameters"]
    assert FAMILIES[name].read(written | older) == CONFIGS[name]


def _change_config(folder, **values):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _change_tensors(folder, change):
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")


def _cut(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def _add(tensors):
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)


def _turn(tensors):
  tensors["model.layers.3.mlp.up_proj.weight"] = np.ascontiguousarray(tensors["model.layers.3.mlp.up_proj.weight"].T)


@pytest.mark.parametrize(
  "spoil, words",
  [
    (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing; give a folder"),
    (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: is no JSON"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"neither model\.safetensors nor"),
    (_cut, r"model\.safetensors: is damaged or cut short .*fetch that file again"),
    (lambda folder: _change_config(folder, architectures=["Mamba"]), r"Mamba is not known; there are Qwen3ForCausalLM"),
    (lambda folder: _change_config(folder, vision_config={}), r"reads images"),
    (lambda folder: _change_config(folder, quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\)"),
    (lambda folder: _change_config(folder, attention_bias=True), r"attention_bias: True is not computed"),
    (lambda folder: _change_config(folder, rope_parameters={"rope_type": "yarn"}), r"'yarn' is not computed"),
    (lambda folder: _change_config(folder, intermediate_size=64), r"has the shape .* its config makes it"),
    (lambda folder: _change_config(folder, num_hidden_layers=8), r"11 tensors are missing, the first model\.layers\.7"),
    (lambda folder: _change_tensors(folder, _add), r"1 tensors belong to no parameter, the first .*q_proj\.bias"),
    (lambda folder: _change_tensors(folder, _turn), r"up_proj\.weight has the shape \(32, 48\)"),
    (
      lambda folder: _change_tensors(folder, lambda of: of.update({k: v.astype(np.int8) for k, v in of.items()})),
      r"held as I8, which is not read",
    ),
  ],
)
def test_a_folder_that_cannot_be_read_is_said_in_a_sentence(tmp_path, spoil, words):
  _write(tmp_path, "qwen3")
  spoil(tmp_path)
  with pytest.raises(PublishedError, match=words):
    open_folder(tmp_path)


def test_a_missing_file_of_several_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "_SHARD_BYTES", 20_000)
  _write(tmp_path, "qwen3")
  (tmp_path / "model-00002.safetensors").unlink()
  with pytest.raises(PublishedError, match=r"model-00002\.safetensors is missing"):
    open_folder(tmp_path)
