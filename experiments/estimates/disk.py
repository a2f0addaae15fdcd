"""Bytes that a stage leaves on disk: arrays by their shapes, texts by what they take a line in finished runs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.stage_steps import Sizes, StageStep, count_looks, count_policies
from experiments.stages.evidence import list_known_facts
from gr2_jax.runs.starts import foreseen_model

_KEPT = 2  # the newest checkpoints of a training, and the best
_ITEM, _INTERACTION = 40, 5  # compressed
_SLATE = 150  # compressed
_TRACE, _ANSWER, _HISTORY = 270, 120, 140  # a line
_TOKEN = 5  # of a shortened history
_VOCABULARY, _TREES, _CARD = 270_000, 1_250_000, 700_000


def count_bytes(tree: Any) -> float:
  """Of all arrays of a pytree of shapes."""
  return float(sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def disk_bytes(config: ConfigDict, sizes: Sizes, stage: str, steps: Sequence[StageStep]) -> float:
  """What a finished stage has written and kept."""
  return _files(config, sizes, stage) + sum(_checkpoints(step) for step in steps if step.save_every)


def _checkpoints(step: StageStep) -> float:
  """States of trainings, and where held-out data choose a step its parameters as well."""
  state, steps = step.arguments[0].arrays, step.calls // step.trainings
  kept = count_bytes(state) * min(_KEPT, -(-steps // step.save_every))
  if step.look_every:
    kept += count_bytes(state.params) * min(_KEPT, count_looks(steps, step.look_every))
  return step.trainings * kept


def _files(config: ConfigDict, sizes: Sizes, stage: str) -> float:
  slates = sum(sizes.slates.values())
  if stage == "data":
    own = _SLATE * slates if config.slates.source == "log" else 0
    return _ITEM * sizes.items + _INTERACTION * sizes.interactions + own
  if stage == "tokenize":
    return 4 * sizes.items * sizes.vector_dim + _VOCABULARY
  if stage == "midtrain":
    return 4 * sizes.items * foreseen_model(config).width if config.midtrain.form == "packed" else 0
  if stage == "slates":
    return _SLATE * slates
  if stage == "evidence":
    trees = 8 * sizes.slates["train"] * (sizes.candidates + 1) + _TREES if config.evidence.tree.enabled else 0
    return 4 * slates * sizes.candidates * len(list_known_facts(config)) + trees
  if stage == "traces":
    return _TRACE * min(sizes.slates["train"], config.traces.max_slates or sizes.slates["train"])
  if stage == "compress":
    options = config.compress
    lines = len(options.variants) * sum(sizes.slates[split] for split in options.splits)
    memory = 4 * sizes.items * options.soft_tokens.per_item * foreseen_model(config).width
    return (_HISTORY + _TOKEN * options.budget) * lines + (memory if "soft_tokens" in options.variants else 0)
  if stage == "evaluation":
    orders = config.evaluation.shuffles + 1
    return _ANSWER * orders * sizes.slates["test"] * sum(count_policies(config).values()) + _CARD
  return 0
