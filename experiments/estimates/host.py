"""Seconds of what stages do besides their compiled steps, by counts alone: costs that were measured once, on a reference machine.

The reference is two cores of a virtual machine (AMD EPYC); a cost is what a finished run took there, over what it had to do. Scaled by
`measure.Machine.host_pace` they are the rough part of an estimate.
"""

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from experiments.stage_steps import Sizes, StageStep, count_looks, count_policies
from experiments.stages.evidence import list_read_facts

_INTERACTION = 7e-6  # read and written
_MARKET_SLATE = 2e-4  # drawn, with its user's history
_ITEM_VECTOR = 6.6e-4  # TF-IDF and SVD
_ITEM_TEXT = 2.5e-4  # of the vocabulary's training
_SCORED_ITEM = 3.5e-8  # of a request, for which a ranker scores the whole catalogue, the best of which are then sorted
_SLATE = 1e-4  # read or written
_FACTS = 7e-6  # of a candidate
_COUNTED = 3e-5  # of an interaction, for what facts count
_TREE = 8.5e-6  # of a candidate in a fit of LambdaMART
_TREE_FACTS = 38  # that those trees read
_FITS = 6  # of the two trees of the evaluation, each of three sizes
_ATTEMPT = 2.8e-4  # of the scripted teacher at a slate
_ACCEPTED = 0.35  # of attempts
_BAYES = 0.005  # of a test slate of a synthetic market
_PRM, _MLP, _GRAPH = 1.2e-4, 2.2e-5, 1e-3  # of a slate in an epoch; of a test slate
_STEP = 1e-3  # of a training: the call, and what is written of it
_EXAMPLE = 9.5e-5  # drawn, and packed into rows
_SAVED = 0.15  # a checkpoint
_BEGUN = 2.0  # a training: slates and parameters read, small programs compiled
_CARD = 6.0  # resampling, plots and card of an evaluation


def host_seconds(config: ConfigDict, sizes: Sizes, stage: str, steps: Sequence[StageStep]) -> float:
  """Seconds on the reference machine of a stage besides the compiled calls of its `steps`."""
  fixed = _HOST[stage](config, sizes) if stage in _HOST else 0.0
  return fixed + sum(_training_seconds(step) for step in steps if step.save_every)


def _training_seconds(step: StageStep) -> float:
  """Of trainings that save: batches, checkpoints, and the parameters that are kept at every second look at held-out data."""
  steps = step.calls // step.trainings
  saves = -(-steps // step.save_every) + (count_looks(steps, step.look_every) // 2 if step.look_every else 0)
  return (_STEP + _EXAMPLE * step.examples) * step.calls + step.trainings * (_BEGUN + _SAVED * saves)


def _data(config: ConfigDict, sizes: Sizes) -> float:
  drawn = _MARKET_SLATE * sum(sizes.slates.values()) if config.data.source == "synthetic" else 0.0
  return _INTERACTION * sizes.interactions + drawn


def _tokenize(config: ConfigDict, sizes: Sizes) -> float:
  return (_ITEM_TEXT + (0.0 if config.tokenize.vectors else _ITEM_VECTOR)) * sizes.items + 1.0


def _midtrain(config: ConfigDict, sizes: Sizes) -> float:
  users = min(sizes.users, config.midtrain.eval_users or sizes.users)
  return _SCORED_ITEM * users * sizes.items


def _slates(config: ConfigDict, sizes: Sizes) -> float:
  if config.slates.source == "log":
    return _SLATE * sum(sizes.slates.values())
  rankers = 1 + (config.slates.source == "sasrec" and config.slates.also == "ctr")
  # At most: a request has two items before it, and the last two of a user are those of validation and test, which is asked twice.
  of_train = max(min(config.slates.per_user * sizes.users, sizes.interactions - 4 * sizes.users), 0)
  asked = rankers * of_train + 3 * sizes.users
  return _SCORED_ITEM * asked * sizes.items


def _evidence(config: ConfigDict, sizes: Sizes) -> float:
  every = sizes.candidates * sum(sizes.slates.values())
  trees = config.evidence.tree.folds * _TREE * sizes.candidates * sizes.slates["train"] if config.evidence.tree.enabled else 0.0
  models = (1 + config.midtrain.packed.folds) * _BEGUN if config.midtrain.form == "packed" else 0.0
  return _FACTS * every + _COUNTED * sizes.interactions + trees + models


def _traces(config: ConfigDict, sizes: Sizes) -> float:
  options = config.traces
  asked = min(sizes.slates["train"], options.max_slates or sizes.slates["train"])
  attempts = 1.0 if options.sampling == "targeted" else (1 - (1 - _ACCEPTED) ** options.attempts) / _ACCEPTED
  return _ATTEMPT * asked * attempts + _COUNTED * sizes.interactions / 2


def _compress(config: ConfigDict, sizes: Sizes) -> float:
  return _SLATE * len(config.compress.variants) * sum(sizes.slates[split] for split in config.compress.splits)


def _evaluation(config: ConfigDict, sizes: Sizes) -> float:
  options, train = config.evaluation, sizes.slates["train"]
  test = min(sizes.slates["test"], options.max_slates or sizes.slates["test"])
  chosen = {"prm": _PRM * train * options.listwise.epochs, "listwise_mlp": _MLP * train * options.listwise.epochs}
  baselines = sum(chosen.get(name, _GRAPH * test) for name in options.baselines)
  bayes = _BAYES * test if config.data.source == "synthetic" and config.slates.source == "log" else 0.0
  trees = _FITS * _TREE * sizes.candidates * train * len(list_read_facts(config)) / _TREE_FACTS
  return _CARD + trees + baselines + bayes + _BEGUN * sum(count_policies(config).values()) + _COUNTED * sizes.interactions


_HOST: Mapping[str, Callable[[ConfigDict, Sizes], float]] = {
  "data": _data,
  "tokenize": _tokenize,
  "midtrain": _midtrain,
  "slates": _slates,
  "evidence": _evidence,
  "traces": _traces,
  "compress": _compress,
  "evaluation": _evaluation,
}
