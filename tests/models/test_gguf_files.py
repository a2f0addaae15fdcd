import dataclasses

import jax
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from small_families import CONFIGS
from small_gguf import Q8, write_gguf

from gr2_jax.models.gguf_files import open_gguf
from gr2_jax.models.published import PublishedError, load_published
from gr2_jax.training.mesh import make_mesh


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_file_gives_the_models_parameters(tmp_path, family):
  params = write_gguf(tmp_path / "model.gguf", family, CONFIGS[family])
  found = open_gguf(tmp_path / "model.gguf")
  same = {"query_scale", "logits_cap"}  # of which GGUF says nothing
  for name in CONFIGS[family].__dataclass_fields__.keys() - same:
    wanted = getattr(CONFIGS[family], name)
    assert getattr(found.config, name) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), name
  read = load_published(found, found.config, make_mesh())
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), read, params)


def test_rotated_rows_of_llama_are_put_back_and_quantised_ones_read(tmp_path):
  config = dataclasses.replace(CONFIGS["llama"], llama3_rope=None)
  params = write_gguf(tmp_path / "model.gguf", "llama", config, quantised=True)
  found = open_gguf(tmp_path / "model.gguf")
  read = load_published(found, found.config, make_mesh())
  np.testing.assert_allclose(read["layers"]["q"]["kernel"], params["layers"]["q"]["kernel"], atol=6e-3)  # 1 / 254 of a row's largest
  rounded = dequantize(quantize(params["embedding"], Q8), Q8)
  np.testing.assert_array_equal(read["embedding"], rounded)
  np.testing.assert_array_equal(read["final_norm"]["scale"], params["final_norm"]["scale"])


def test_a_file_that_cannot_be_read_is_said_in_a_sentence(tmp_path):
  path = tmp_path / "model.gguf"
  with pytest.raises(PublishedError, match=r"there is no such file"):
    open_gguf(path)
  path.write_bytes(b"no model")
  with pytest.raises(PublishedError, match=r"damaged, cut short or no GGUF file"):
    open_gguf(path)
  write_gguf(path, "qwen3", CONFIGS["qwen3"])
  whole = path.read_bytes()
  path.write_bytes(whole[:-5000])
  with pytest.raises(PublishedError, match=r"damaged, cut short"):
    open_gguf(path)
  path.write_bytes(whole.replace(b"qwen3", b"bloom"))
  with pytest.raises(PublishedError, match=r"the architecture bloom is not known"):
    open_gguf(path)
