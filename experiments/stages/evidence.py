"""Stage `evidence`: the table of facts of every candidate, how a model reads them, and the out-of-fold tree that teaches."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.schema import SPLITS, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.errors import ConfigError
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.evidence.facts import FACTS, LM_SCORE
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import write_fact_tables, write_trees
from gr2_jax.runs.packed_midtraining import load_packed_scores, out_of_fold_packed_scores
from gr2_jax.runs.stages import Stage
from gr2_jax.settings import check_settings, setting
from gr2_jax.teachers.tree import FoldTrees


@dataclasses.dataclass(frozen=True)
class TreeOptions:
  """LambdaMART as a teacher. Raises ValueError."""

  enabled: bool = setting(False, "whether training slates get a tree's scores, each from one that saw no slate of the user")
  folds: int = setting(5, "groups of users, each scored by trees that did not see it", low=2)
  leaves: int = setting(15, "leaves of each tree", low=2)

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class EvidenceOptions:
  """What is known of a candidate before the request. Raises ValueError."""

  facts: tuple[str, ...] = setting((), "facts of candidates that models and prompts read, names of `evidence.facts.FACTS`; empty: all")
  max_history: int = setting(20, "latest items of a history that facts are made of", unit="items", low=1)
  bins: int = setting(
    16, "quantile bins of a fact, by its values on the training slates; within a bin the code that models read is linear", low=1
  )
  tree: TreeOptions = setting(TreeOptions(), "LambdaMART as a teacher")

  def __post_init__(self) -> None:
    check_settings(self)
    for name in self.facts:
      if name not in FACTS:
        raise ValueError(f"facts: {name!r} is no fact; there are {', '.join(FACTS)}")


def run(stage: StageContext) -> None:
  """Writes the facts of all slates, how models read those that are chosen, and with `evidence.tree` what it teaches."""
  options: EvidenceOptions = stage.options
  names, chosen = list_known_facts(stage.config), list_read_facts(stage.config)
  slates = {split: stage.slates(split) for split in SPLITS}
  lm_scores = _lm_scores(stage, slates) if LM_SCORE in names else {}
  counts = LogCounts.fit(stage.log, stage.catalogue)
  items = ItemArrays.of(stage.catalogue, np.load(stage.run.path("tokenize", "vectors.npy")))
  tables = {}
  with stage.task("evidence: facts", len(SPLITS), "splits") as task:
    for number, (split, of) in enumerate(slates.items(), start=1):
      tables[split] = slate_features(
        of, stage.catalogue, counts, items, facts=names, max_history=options.max_history, lm_scores=lm_scores.get(split)
      )
      stage.on_progress(task)(number)
  labels = {split: slate_labels(of) for split, of in slates.items()}
  read = {split: table[..., [names.index(name) for name in chosen]] for split, table in tables.items()}
  trees = _fit_trees(stage, read, labels) if options.tree.enabled else None
  codes = FactCodes.fit(read["train"], labels["train"] >= 0, chosen, bins=options.bins)
  if stage.run.main:
    write_fact_tables(stage.run, names, tables, codes, None if trees is None else trees.scores(read["train"]))
    if trees is not None:
      write_trees(stage.run, trees)
  stage.say(f"{len(names)} facts of {sum(int((of >= 0).sum()) for of in labels.values()):,} candidates, of which models read {len(chosen)}")


def _lm_scores(stage: StageContext, slates: Mapping[str, Sequence[Slate]]) -> dict[str, np.ndarray]:
  """Of the mid-trained model; of training slates that were cut from the log, of one that has not seen their users."""
  score = load_packed_scores(stage.run, stage.catalogue, stage.mesh)
  return {
    split: out_of_fold_packed_scores(stage, of) if _is_cut(stage.config) and split == "train" else score(of) for split, of in slates.items()
  }


def _fit_trees(stage: StageContext, tables: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> FoldTrees:
  """On the training slates."""
  options = stage.options.tree
  with stage.task("evidence: tree", options.folds, "folds") as task:
    return FoldTrees.fit(
      tables["train"],
      labels["train"],
      [slate.user for slate in stage.slates("train")],
      tables["validation"],
      labels["validation"],
      folds=options.folds,
      leaves=options.leaves,
      seed=stage.seed,
      on_fold=stage.on_progress(task),
    )


def _is_cut(config: ConfigDict) -> bool:
  """Whether training slates are cut from the histories that mid-training learns; those of beams come from the items behind them."""
  return config.slates.source not in ("log", "beam")


def _has_lm_score(config: ConfigDict) -> bool:
  """Whether mid-training leaves a model whose scores may be a fact."""
  return config.midtrain.form == "packed"


def list_known_facts(config: ConfigDict) -> tuple[str, ...]:
  """All facts that a run can tell."""
  return tuple(name for name in FACTS if name != LM_SCORE or _has_lm_score(config))


def list_read_facts(config: ConfigDict) -> tuple[str, ...]:
  """The facts that models read: those that are named, or all that there are."""
  return tuple(config.evidence.facts) or list_known_facts(config)


def check(config: ConfigDict) -> None:
  """Prompts show facts that there are, and the score of the mid-trained model is of a model that never saw the target."""
  known = list_read_facts(config)
  for name in config.prompt.facts:
    if name not in known:
      raise ConfigError(
        f"--config.prompt.facts: {name!r} is not among the facts that the stage evidence leaves; add it to evidence.facts, or name one of "
        f"{', '.join(known)}"
      )
  if not _has_lm_score(config) and LM_SCORE in config.evidence.facts:
    raise ConfigError(f"--config.evidence.facts: {LM_SCORE!r} is a score of mid-training on packed items; set midtrain.form to packed")
  if _has_lm_score(config) and config.slates.source != "log" and config.midtrain.packed.whole_log:
    targets = "all items of the log's last days" if config.data.split == "time" else "the last two items of each user"
    raise ConfigError(
      f"--config.midtrain.packed.whole_log: True, but slates of {config.slates.source!r} have as their targets {targets}; set it to False"
    )
  if _has_lm_score(config) and _is_cut(config) and not config.midtrain.packed.folds:
    raise ConfigError(
      f"--config.midtrain.packed.folds: slates of {config.slates.source!r} are cut from the histories that mid-training learns, so that "
      f"{LM_SCORE} would know their targets; set it to 4"
    )


STAGE = Stage(
  "evidence",
  run,
  reads=("seed", "evidence", "mesh"),
  options=EvidenceOptions,
  inputs=("data", "tokenize", "slates"),
  uses=("midtrain",),
  needs=lambda config: ("midtrain",) if _has_lm_score(config) else (),
  check=check,
)
