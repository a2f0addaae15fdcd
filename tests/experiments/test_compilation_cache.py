"""Programs are compiled once for all processes, with the same results to the last bit; where nothing can be kept they are compiled."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.compilation_cache import OFF, default_folder, use_compilation_cache

OPTIONS = (
  "jax_compilation_cache_dir",
  "jax_enable_compilation_cache",
  "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
  """No folder is chosen yet; what other tests use is given back to them."""
  saved = {name: getattr(jax.config, name) for name in OPTIONS}
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
  yield
  for name, value in saved.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def hits():
  events = []

  def listen(event, **_):
    if event == "/jax/compilation_cache/cache_hits":
      events.append(event)

  jax.monitoring.register_event_listener(listen)
  yield events
  jax.monitoring.unregister_event_listener(listen)


def train():
  """A program as trainings have them, compiled anew at each call: a donated state, a loop, random numbers, products."""

  def update(state, batch):
    def one(carry, key):
      noise = jax.random.normal(key, batch.shape)
      return {"w": jnp.tanh(carry["w"] @ batch + 0.1 * noise), "n": carry["n"] + 1}, carry["w"].sum()

    return jax.lax.scan(one, state, jax.random.split(jax.random.fold_in(jax.random.key(0), state["n"]), 5))

  compiled = jax.jit(update, donate_argnums=0)
  state, batch = {"w": jnp.ones((16, 16)), "n": jnp.int32(0)}, jnp.linspace(-1, 1, 256).reshape(16, 16)
  for _ in range(2):
    state, sums = compiled(state, batch)
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state, sums))]


def test_what_is_read_back_gives_the_same_bits(tmp_path, hits):
  use_compilation_cache(OFF)
  without = train()
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
  use_compilation_cache(str(tmp_path / "mine"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  assert train() == without and any("update" in path.name for path in (tmp_path / "mine").iterdir())
  before = len(hits)
  assert train() == without and len(hits) > before


def test_the_folder_is_the_users_cache_unless_the_environment_names_one(tmp_path):
  use_compilation_cache(None)
  assert jax.config.jax_compilation_cache_dir == str(default_folder()) == str(tmp_path / "cache" / "gr2_jax" / "xla")
  jax.config.update("jax_compilation_cache_dir", "/theirs")
  use_compilation_cache(None)
  assert jax.config.jax_compilation_cache_dir == "/theirs"
  use_compilation_cache(str(tmp_path / "mine"))
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_off_keeps_nothing(tmp_path):
  use_compilation_cache(OFF)
  train()
  assert not jax.config.jax_enable_compilation_cache and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  use_compilation_cache(str(tmp_path / "file" / "folder"))
  assert str(tmp_path / "file" / "folder") in capsys.readouterr().err
  train()


def test_an_entry_that_is_cut_short_is_compiled_again(tmp_path, hits, recwarn):
  use_compilation_cache(str(tmp_path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  whole = train()
  for path in tmp_path.iterdir():
    path.write_bytes(path.read_bytes()[:100])
  compilation_cache.reset_cache()
  assert train() == whole and not hits
  assert not [warning for warning in recwarn if "compilation cache" in str(warning.message)]


def test_entries_that_nobody_read_for_long_go():
  default_folder().mkdir(parents=True)
  old, read, new = (default_folder() / f"jit_{name}-cache" for name in ("old", "read", "new"))
  month = time.time() - 31 * 24 * 3600
  for path, accessed in ((old, month), (read, time.time()), (new, time.time())):
    path.write_bytes(b"")
    os.utime(path, (accessed, month))
  use_compilation_cache(None)
  assert set(default_folder().iterdir()) == {read, new}
