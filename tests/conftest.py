"""Eight CPU devices for the sharding tests, set before any backend starts; one tiny run of all stages for all who read one."""

import fcntl
import gc
import importlib.metadata
import os
import shutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the suite's time is compilation, so XLA compiles in haste, here and in the programs that tests start;
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test` tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jax").startswith(
  "0.10."
):  # a third off the time to compile; XLA ends the process at a flag that it does not know
  flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"  # small programs do not repay being cut in parts
  os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

import jax
import numpy as np
import pytest
from forked_programs import run_program

from experiments.compilation_cache import use_compilation_cache

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
  """One folder of compiled programs for all tests and for the programs that they start, kept from one run of the suite to the next;
  `pytest --cache-clear` empties it."""
  folder = str(config.cache.mkdir("compiled"))
  use_compilation_cache(folder)
  os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def pytest_collection_modifyitems(items):
  """The longest files first, so that no process is left alone with one at the end; before them what makes a run that many files read, so
  that no other process waits for it."""
  items.sort(key=lambda item: (item.path.name != "test_scored_run.py", "steps" not in item.path.parts))


def pytest_collection_finish():
  """Rarer collections of garbage, and none of what is there before the first test: tracing makes objects by the million, few of them
  garbage that only a collection finds."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def compilations():
  """A list that grows by the name of an event with every program that is compiled."""
  events = []

  def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
  """`shared_folder(name)`: a folder that all processes of this session of tests see; with `fill`, the first of them calls `fill(folder)`,
  and the others wait for it."""
  base = tmp_path_factory.getbasetemp()
  root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

  def share(name, fill=lambda folder: None):
    folder, filled = root / name, root / f"{name}.filled"
    with open(root / f"{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not filled.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fill(folder)
        filled.touch()
    return folder

  return share


def _run_config(config, workdir, *flags, program="run"):
  code, _, error = run_program(program, f"--config={config}", f"--workdir={workdir}", *flags)
  assert code == 0, error[-4000:]


@pytest.fixture(scope="session")
def tiny_run(shared_folder):
  """The directory of a finished run of `configs/written.py:tiny`, made once; read it, never write into it."""
  return shared_folder("tiny", lambda folder: _run_config("configs/written.py:tiny", folder / "run")) / "run"


@pytest.fixture(scope="session")
def scored_run(shared_folder):
  """The directory of a finished run of `configs/quickstart.py:tiny`, made once; read it, never write into it.

  Its RL policy reasons before it scores, its direct one does not, and all read texts as well as facts.
  """

  def run(folder):
    baselines = ("--config.evaluation.baselines=('prm','listwise_mlp','transition_graph')", "--config.evaluation.listwise.epochs=1")
    _run_config("configs/quickstart.py:tiny", folder / "run", "--config.answer.texts=True", *baselines)

  return shared_folder("scored", run) / "run"


@pytest.fixture(scope="session")
def tiny_sweep(shared_folder):
  """`tiny_sweep(study)`: the directory of the finished sweep of `configs/ablations/STUDY.py:tiny` with one seed, made once; it takes
  minutes. Read it, never write into it."""

  def make(study):
    config = f"configs/ablations/{study}.py:tiny"
    return shared_folder(f"sweep_{study}", lambda folder: _run_config(config, folder / study, "--seeds=0", program="sweep")) / study

  return make


@pytest.fixture(scope="session")
def make_reranker():
  """`make_reranker(style={}, **options)`: a re-ranker of 40 items with fresh weights, three times as large so that they prefer some;
  prompts are padded to one length unless `prompt_lengths` is (). `compressor={"variant", "budget", ..}` shortens histories; its soft tokens
  are the embeddings of an item's codes."""
  from gr2_jax.compression.compressor import HistoryCompressor
  from gr2_jax.compression.soft_tokens import code_soft_tokens
  from gr2_jax.data.schema import Catalogue, Item
  from gr2_jax.language.prompts import PromptContext, PromptStyle
  from gr2_jax.language.vocabulary import Vocabulary
  from gr2_jax.models.config import preset
  from gr2_jax.models.transformer import Decoder, init_params
  from gr2_jax.serving.reranker import Options, Reranker
  from gr2_jax.serving.written import WrittenPolicy

  words = ("rose", "mint", "sage", "lily")
  items = tuple(Item(f"i{n}", f"{words[n % 4]} toner {n}", "Velora", ("Care", words[n % 4])) for n in range(40))
  texts = [item.title for item in items] + ["rank by next purchase", "Care Velora"] * 20
  vocabulary = Vocabulary.train(texts, text_pieces=400, num_levels=2, codebook_size=8, num_candidates=6)
  codes = np.random.default_rng(0).permutation(64)[:40]
  codes = np.stack([codes // 8, codes % 8], axis=1)
  decoder = Decoder(preset("test", vocabulary.size))
  params = jax.tree.map(lambda x: 3 * x, init_params(decoder, jax.random.key(0)))
  context = PromptContext(Catalogue(items), codes, vocabulary)

  def make(style=None, cold_start=None, compressor=None, **options):
    style = PromptStyle(**{"reference": "sid", "order": "candidates_first", "history_fields": (), "max_prompt_tokens": 96} | (style or {}))
    options = Options(**{"batch_size": 4, "prompt_lengths": (style.max_prompt_tokens + 2,)} | options)
    held = dict(params)
    if compressor is not None:
      compressor = HistoryCompressor(context=context, style=style, **compressor)
      if compressor.variant == "soft_tokens":
        sids = np.array([vocabulary.sid_tokens(of) for of in codes])
        held["memory"] = code_soft_tokens(params["embedding"], sids, 2).reshape(-1, params["embedding"].shape[1])
    also = {"cold_start": cold_start, "compressor": compressor}
    return Reranker(WrittenPolicy(decoder, held, context, style, max_new_tokens=24, options=options, **also))

  return make
