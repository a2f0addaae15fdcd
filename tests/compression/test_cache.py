"""The caches of compressed histories: each history once, in the order asked for, continued after a stop, and named where one is missing."""

import dataclasses
import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.compression.cache import fill_cache, history_key, load_compressed, memory_path, open_histories
from gr2_jax.compression.rules import original_tokens
from gr2_jax.data.schema import DataError
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.runs.run import Run
from gr2_jax.training.interrupts import StopSignal

STYLE = PromptStyle(history_fields=("title",))
HISTORIES = (("i3", "i0"), ("i1",), (), ("i3", "i0"))


@pytest.fixture
def stage(tmp_path, context):
  """What `fill_cache` reads of a stage's context."""
  run = Run(tmp_path, ConfigDict({"compress": {"variants": ("rules", "soft_tokens")}}))
  return types.SimpleNamespace(run=run, prompts=context, style=STYLE, stop=StopSignal())


@pytest.fixture
def slates(slate):
  return [dataclasses.replace(slate, user=f"u{n}", history=history) for n, history in enumerate(HISTORIES)]


class Asked:
  """Compresses to the number of items, and remembers what it was asked for."""

  def __init__(self):
    self.batches, self.done = [], []

  def __call__(self, slates):
    self.batches.append([slate.history for slate in slates])
    return [([len(slate.history)], "ok" if slate.history else "no_history") for slate in slates]

  def update(self, done):
    self.done.append(done)


def test_equal_histories_are_compressed_once_and_counted(stage, slates):
  asked = Asked()
  report = fill_cache(stage, "rules", asked, slates, 2, asked)
  assert asked.batches == [[("i3", "i0"), ("i1",)], [()]] and asked.done == [2, 3]
  original = [len(original_tokens(of, stage.prompts, STYLE)) for of in slates[:3]]
  assert report == {
    "histories": 3,
    "original_tokens": sum(original) / 3,
    "compressed_tokens": 1.0,
    "history_kept": 3 / sum(original),
    "outcomes": {"ok": 2, "no_history": 1},
  }
  cache = open_histories(stage.run, "rules")
  assert list(cache) == [history_key(history) for history in HISTORIES[:3]]
  # Of the users with one history the last is named.
  assert cache[history_key(("i3", "i0"))] == {"user": "u3", "tokens": [2], "outcome": "ok", "original": original[0]}


def test_a_stage_that_goes_on_asks_for_what_is_missing(stage, slates):
  whole = fill_cache(stage, "rules", Asked(), slates, 2, Asked())
  path = stage.run.path("compress", "rules.jsonl")
  lines = path.read_bytes()
  path.write_bytes(lines.splitlines(keepends=True)[0] + b'{"key": "cut o')
  asked = Asked()
  assert fill_cache(stage, "rules", asked, slates, 2, asked) == whole
  assert asked.batches == [[("i1",), ()]] and path.read_bytes() == lines


def test_a_process_that_is_not_the_first_writes_nothing(stage, slates):
  stage.run = dataclasses.replace(stage.run, main=False)
  assert fill_cache(stage, "rules", Asked(), slates, 2, Asked())["histories"] == 3
  assert not stage.run.path("compress").exists()


def test_histories_come_back_by_slate_with_the_memory_of_soft_tokens(stage, slates):
  for variant in ("rules", "soft_tokens"):
    fill_cache(stage, variant, Asked(), slates, 2, Asked())
  memory = np.arange(6, dtype=np.float32).reshape(3, 2)
  np.save(memory_path(stage.run), memory)
  found = load_compressed(stage.run, slates)
  assert list(found) == ["rules", "soft_tokens"]
  assert all(of.histories == [[2], [1], [0], [2]] for of in found.values())
  assert found["rules"].memory == {}
  np.testing.assert_array_equal(found["soft_tokens"].memory["memory"], memory)
  other = dataclasses.replace(slates[0], user="stranger", history=("i9",))
  with pytest.raises(DataError, match=r"'stranger'.*config\.compress\.splits"):
    load_compressed(stage.run, [*slates, other])


def test_keys_are_of_the_history_alone():
  assert history_key(("a", "b")) == history_key(["a", "b"]) != history_key(("b", "a"))
  assert json.loads(json.dumps(history_key(()))) == history_key([])
