"""Published models as folders: bit for bit, with their tokenizers, and nothing of a model that cannot be read."""

import collections
import dataclasses
import json
import shutil
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_families import CONFIGS, draw_params
from small_gguf import Q8, write_gguf
from test_gguf_tokenizers import LINES, add_byte_level, byte_level
from tokenizers import Tokenizer

from experiments.exchange import convert
from gr2_jax.models import conversion, hf_folders
from gr2_jax.models.families import FAMILIES
from gr2_jax.models.gguf_files import open_gguf
from gr2_jax.models.hf_folders import open_folder, write_folder
from gr2_jax.models.published import load_published
from gr2_jax.training.mesh import make_mesh


def write_model(folder, family="qwen3", dtype="float32"):
  """A folder as it is published, with a tokenizer."""
  tokenizer = byte_level()
  config = dataclasses.replace(CONFIGS[family], vocab_size=tokenizer.get_vocab_size())
  params = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), draw_params(config))
  write_folder(folder, FAMILIES[family], config, params, {"max_position_embeddings": 512, "eos_token_id": 0, "torch_dtype": dtype})
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
  (folder / "chat_template.jinja").write_text("{{ messages }}")
  (folder / "optimizer.bin").write_bytes(b"no part of it")
  return params


def load(published):
  return load_published(published, published.config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))


def tensors_of(folder):
  return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("family, dtype", [("qwen3", "bfloat16"), ("llama", "float32"), ("gemma3", "float16")])
def test_a_folder_is_written_bit_for_bit(tmp_path, monkeypatch, capsys, family, dtype):
  source, to = tmp_path / "model", tmp_path / "new" / "model"
  write_model(source, family, dtype)
  monkeypatch.setattr(hf_folders, "_SHARD_BYTES", 30_000)
  assert convert(str(source), str(to), None) == 0
  out = capsys.readouterr().out
  assert "(100 %)" in out and f"model.init=hf:{to}" in out
  before, after = tensors_of(source), tensors_of(to)
  assert before.keys() == after.keys() and len(list(to.glob("*.safetensors"))) > 1
  for name, tensor in before.items():
    assert tensor.dtype == after[name].dtype
    np.testing.assert_array_equal(tensor, after[name])
  assert json.loads((to / "config.json").read_bytes()) == json.loads((source / "config.json").read_bytes())
  for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    assert (to / name).read_bytes() == (source / name).read_bytes()
  assert not (to / "optimizer.bin").exists()
  assert [path.name for path in to.parent.iterdir()] == ["model"]


def test_another_type_is_rounded_once_and_named_in_the_config(tmp_path):
  source, to = tmp_path / "model", tmp_path / "half"
  write_model(source)
  to.mkdir()  # an empty folder is free
  assert convert(str(source), str(to), "bfloat16") == 0
  for name, tensor in tensors_of(source).items():
    np.testing.assert_array_equal(tensors_of(to)[name], tensor.astype(jnp.bfloat16))
  assert json.loads((to / "config.json").read_bytes())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("family, quantised", [("qwen3", False), ("llama", True)])
def test_a_gguf_file_becomes_a_folder_with_the_same_parameters_and_ids(tmp_path, family, quantised):
  trained = byte_level()
  size, add = add_byte_level(trained, chat_template="{{ messages }}", context_length=64, bos_token_id=0)
  config = dataclasses.replace(CONFIGS[family], vocab_size=size, llama3_rope=None)
  write_gguf(tmp_path / "model.gguf", family, config, quantised=quantised, add=add)
  assert convert(str(tmp_path / "model.gguf"), str(tmp_path / "model"), None) == 0
  found, direct = open_folder(tmp_path / "model"), open_gguf(tmp_path / "model.gguf")
  assert found.config == direct.config
  jax.tree.map(np.testing.assert_array_equal, load(found), load(direct))
  raw = json.loads((tmp_path / "model" / "config.json").read_bytes())
  assert (raw["max_position_embeddings"], raw["eos_token_id"], raw["torch_dtype"]) == (64, 0, "float32")
  assert raw["rms_norm_eps"] == config.norm_eps  # and not the float32 nearest to it
  tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
  assert [tokenizer.encode(line).ids for line in LINES] == [trained.encode(line).ids for line in LINES]


def test_no_more_than_a_few_tensors_are_held_at_once(tmp_path):
  config = dataclasses.replace(CONFIGS["qwen3"], vocab_size=400, width=256, mlp_width=1024, num_layers=8)
  write_folder(tmp_path / "model", FAMILIES["qwen3"], config, draw_params(config), {})
  byte_level().save(str(tmp_path / "model" / "tokenizer.json"))
  sizes = [tensor.nbytes for tensor in tensors_of(tmp_path / "model").values()]
  tracemalloc.start()
  try:
    assert convert(str(tmp_path / "model"), str(tmp_path / "again"), None) == 0
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert max(sizes) < peak < 4 * max(sizes) + 3_000_000 < sum(sizes) / 2


def _rewrite(change):
  def spoil(folder):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")

  return spoil


def _cut(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def _config(**values):
  def spoil(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))

  return spoil


def _lose_shard(folder):
  shutil.move(folder / "model.safetensors", folder / "model-00001.safetensors")
  names = dict.fromkeys(load_file(folder / "model-00001.safetensors"), "model-00001.safetensors")
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names | {"model.norm.weight": "model-00002.safetensors"}}))


def _infinite(tensors):
  tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 1e9)


BROKEN = {
  "nothing there": (shutil.rmtree, "there is no such file"),
  "cut short": (_cut, "model.safetensors: is damaged or cut short"),
  "header of nonsense": (
    lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
    "model.safetensors: is damaged or cut short",
  ),
  "missing shard": (_lose_shard, "model-00002.safetensors is missing"),
  "missing tensor": (_rewrite(lambda tensors: tensors.pop("model.norm.weight")), "1 tensors are missing, the first model.norm.weight"),
  "unknown architecture": (_config(architectures=["MambaForCausalLM"]), "the architecture MambaForCausalLM is not known"),
  "vision": (_config(vision_config={}), "is a model that reads images"),
  "quantised": (_config(quantization_config={"quant_method": "awq"}), "is quantised (awq), which is not read"),
  "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer; fetch tokenizer.json or tokenizer.model"),
  "damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json: is damaged or no tokenizer"),
  "beyond the type": (_rewrite(_infinite), "model.norm.weight holds numbers that float16 does not"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_cannot_be_read_leaves_nothing(tmp_path, capsys, case):
  spoil, words = BROKEN[case]
  write_model(tmp_path / "model")
  spoil(tmp_path / "model")
  assert convert(str(tmp_path / "model"), str(tmp_path / "to"), "float16") == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("ERROR: ") and words in line
  assert {path.name for path in tmp_path.iterdir()} <= {"model"}


def test_another_models_tokenizer_is_refused(tmp_path, capsys):
  write_model(tmp_path / "model")
  big = byte_level()
  big.add_tokens(["one more"])
  big.save(str(tmp_path / "model" / "tokenizer.json"))
  assert convert(str(tmp_path / "model"), str(tmp_path / "to"), None) == 1
  assert "take the tokenizer of the same model" in capsys.readouterr().err


def test_a_quantised_type_that_is_not_read_back_is_named(tmp_path, capsys, monkeypatch):
  import gguf

  size, add = add_byte_level(byte_level())
  write_gguf(tmp_path / "model.gguf", "qwen3", dataclasses.replace(CONFIGS["qwen3"], vocab_size=size), quantised=True, add=add)

  def refuse(data, kind):
    if kind == Q8:
      raise NotImplementedError
    return real(data, kind)

  real = gguf.dequantize
  monkeypatch.setattr(gguf, "dequantize", refuse)
  assert convert(str(tmp_path / "model.gguf"), str(tmp_path / "to"), None) == 1
  assert "is held as Q8_0, which the package gguf does not read back" in capsys.readouterr().err
  assert not (tmp_path / "to").exists()


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path, capsys):
  write_model(tmp_path / "model")
  before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
  assert convert(str(tmp_path / "model"), str(tmp_path / "model"), None) == 1
  assert "model is there already; remove it, or name another folder" in capsys.readouterr().err
  assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
  assert convert(None, "there", None) == 1
  assert "--from and --to are needed" in capsys.readouterr().err


def test_a_full_disk_is_told_before_and_leaves_nothing_after(tmp_path, capsys, monkeypatch):
  write_model(tmp_path / "model")
  usage = collections.namedtuple("usage", "total used free")
  with monkeypatch.context() as patch:
    patch.setattr(conversion.shutil, "disk_usage", lambda place: usage(10, 10, 1000))
    assert convert(str(tmp_path / "model"), str(tmp_path / "new" / "to"), None) == 1
  assert "free some, or name a folder on another" in capsys.readouterr().err

  def fill(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(hf_folders, "struct", types.SimpleNamespace(pack=fill))
  assert convert(str(tmp_path / "model"), str(tmp_path / "to"), None) == 1
  assert "No space left on device; free some space" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["model"]
