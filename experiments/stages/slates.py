"""Stage `slates`: short lists in an upstream order, for training from targets that the upstream ranker was not fitted on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.stages.data import check_slates
from gr2_jax.data.jsonl import read_slates, write_slates
from gr2_jax.data.schema import SPLITS, DataError, History, Slate
from gr2_jax.data.slates import SHORTEST_CUT, RetrievedSlates, check_slate_size, cross_fit_examples, latest_rows, slates_from_scores
from gr2_jax.data.splits import NextItem, find_unseen
from gr2_jax.errors import ConfigError
from gr2_jax.evaluation.retrieval import retrieval_metrics, retrieval_ranks
from gr2_jax.evidence.items import unit_vectors
from gr2_jax.files import write_json
from gr2_jax.models.ctr import CtrConfig, ctr_scores, fit_ctr
from gr2_jax.models.sasrec import SasrecConfig, fit_sasrec, sasrec_scores
from gr2_jax.rollout.catalogue_scores import make_beam_scores, make_dense_scores, make_packed_beam_scores, reorder_beams
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.packed_midtraining import load_packed_items
from gr2_jax.runs.stages import Stage
from gr2_jax.settings import check_settings, setting
from gr2_jax.teachers.sampling import best_labelled

Slates = dict[str, Sequence[Slate]]  # by split
Scores = Callable[[np.ndarray], np.ndarray]  # history rows [B, H] -> scores of all items [B, N]
_BEAMS = "the mid-trained model (config.midtrain)"
_NAMES = {"ctr": "the click model (config.slates.ctr)", "sasrec": "SASRec (config.slates.sasrec)"}
FITTED = tuple(_NAMES)  # upstream rankers that are fitted here


@dataclasses.dataclass(frozen=True)
class SlatesOptions:
  """Where the lists come from that are re-ranked. Raises ValueError."""

  source: str = setting(
    "log",
    "what is re-ranked: the slates that came with the data (log), the best items of a click model (ctr) or of SASRec, both cross-fitted, "
    "or the mid-trained model's beams",
    choices=("log", "ctr", "sasrec", "beam"),
  )
  also: str = setting("none", "a second upstream order beside sasrec, of which training slates alone are taken", choices=("none", "ctr"))
  size: int = setting(10, "candidates of a slate that is built here", unit="items", low=2)
  folds: int = setting(4, "groups of users, for the cross-fitting of the ranker", low=2)
  per_user: int = setting(3, "latest positions of a user that become training slates", low=1)
  ctr: CtrConfig = setting(CtrConfig(), "the click model")
  sasrec: SasrecConfig = setting(SasrecConfig(), "the strong ranker, which reads order and text")
  beams: int = setting(20, "beams of the mid-trained model's search", low=1)
  validation_share: float = setting(0.15, "share of the slates of beams that is for validation", above=0, below=1)

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `train|validation|test.jsonl.gz` and `report.json`: the target's upstream rank by split, and what was retrieved."""
  build = {"log": _from_log, "beam": _from_beams}.get(stage.options.source, _from_fitted)
  slates, report = build(stage)
  for split in SPLITS:
    if not slates[split]:
      raise DataError(f"slates: no {split} slate holds its target; raise --config.slates.size, or train the upstream ranker longer")
  if stage.config.data.split == "time":
    report["retrieved"] |= _count_unseen(stage, slates["test"])
  report["source"] = stage.options.source
  report["slates"] = {split: len(slates[split]) for split in SPLITS}
  report["target_upstream_rank"] = {split: _rank_histogram(slates[split]) for split in SPLITS}
  for split in SPLITS:
    write_slates(stage.path(f"{split}.jsonl.gz"), slates[split])
  write_json(stage.path("report.json"), report)
  stage.say(", ".join(f"{split} {len(slates[split]):,}" for split in SPLITS) + " slates")
  for split, of in report.get("retrieved", {}).items():
    stage.say(f"{split}: the target of {of['retrieved']:,} of {of['requests']:,} requests was retrieved")


def _rank_histogram(slates: Sequence[Slate]) -> list[int]:
  ranks = [best_labelled(slate)[0] for slate in slates]
  return np.bincount(ranks, minlength=max(len(slate.candidates) for slate in slates)).tolist()


def _from_log(stage: StageContext) -> tuple[Slates, dict[str, Any]]:
  """The source's own slates; checked again, since the data may have been read for slates that were to be built."""
  paths = {split: stage.run.path("data", f"slates_{split}.jsonl.gz") for split in SPLITS}
  slates = {split: read_slates(path, stage.catalogue) for split, path in paths.items() if path.exists()}
  check_slates(stage.config, slates)
  return dict(slates), {}


def _from_fitted(stage: StageContext) -> tuple[Slates, dict[str, Any]]:
  """A fitted ranker's top lists. Training: cross-fitted over users; validation and test: fitted on all training histories."""
  options, split, source = stage.options, stage.split, stage.options.source
  train = _cross_fit(stage, source)
  final = _fit(stage, source, split.train, options.folds, "all users")
  validation, test = (_best_of(stage, source, final, requests) for requests in (split.validation, split.test))
  ranks = retrieval_ranks(final, split.test, stage.catalogue, ranker=_NAMES[source])
  report: dict[str, Any] = {
    "retrieval": {name: retrieval_metrics(values) for name, values in ranks.items()},
    "retrieved": _count_retrieved(train=train, validation=validation, test=test),
  }
  train_slates = train.slates
  if source == "sasrec" and options.also != "none":
    others = _cross_fit(stage, options.also)
    train_slates += others.slates
    report["retrieved"] |= _count_retrieved(**{f"train by {options.also}": others})
    report["train_upstream_rank"] = {name: _rank_histogram(of.slates) for name, of in ((source, train), (options.also, others))}
  return {"train": train_slates, "validation": validation.slates, "test": test.slates}, report


def _cross_fit(stage: StageContext, name: str) -> RetrievedSlates:
  """Training slates of all users, each by a ranker that was fitted on others; users have the same fold, whatever the ranker."""
  options, asked = stage.options, 0
  slates: list[Slate] = []
  limits = {"max_history": stage.config.data.max_history, "per_user": options.per_user}
  for fold, (fitted, held_out) in enumerate(cross_fit_examples(stage.split.train, options.folds, stage.seed, **limits)):
    scores = _fit(stage, name, fitted, fold, f"fold {fold + 1} of {options.folds}")
    found = _best_of(stage, name, scores, held_out)
    slates += found.slates
    asked += found.asked
  return RetrievedSlates(tuple(slates), asked)


def _best_of(stage: StageContext, name: str, scores: Scores, requests: Sequence[NextItem]) -> RetrievedSlates:
  return slates_from_scores(scores, requests, stage.catalogue, size=stage.options.size, ranker=_NAMES[name])


def _fit(stage: StageContext, name: str, histories: Sequence[History], fit_number: int, users: str) -> Scores:
  """What a ranker says that was fitted on these users."""
  catalogue, seed, config = stage.catalogue, stage.seed + fit_number, getattr(stage.options, name)
  rows = [np.asarray(catalogue.to_rows(history.items)) for history in histories]
  with stage.task(f"slates: {name}, {users}", config.epochs, "epochs") as task:
    task.start_from(0)

    def on_progress(epoch: int, loss: float) -> None:
      task.update(epoch, {"loss": loss})
      stage.stop.check()

    if name == "ctr":
      of_ctr = fit_ctr(rows, len(catalogue), config, seed, on_progress)
      return lambda past: np.asarray(ctr_scores(of_ctr, jnp.asarray(latest_rows(past, config.max_history))))
    vectors = unit_vectors(catalogue, np.load(stage.run.path("tokenize", "vectors.npy")))
    of_sasrec = fit_sasrec(rows, vectors, config, seed, on_progress)
    return lambda past: np.asarray(sasrec_scores(of_sasrec, jnp.asarray(latest_rows(past, config.max_history)), config))


def _count_retrieved(**found: RetrievedSlates) -> dict[str, dict[str, int]]:
  """By split, of how many requests the target was retrieved."""
  return {split: {"requests": of.asked, "retrieved": len(of.slates)} for split, of in found.items()}


def _count_unseen(stage: StageContext, slates: Sequence[Slate]) -> dict[str, dict[str, int]]:
  """The same of the test requests that are of unseen users, of unseen items, or of neither."""
  requests, train = stage.split.test, stage.split.train
  asked = find_unseen(train, [request.user for request in requests], [request.target for request in requests])
  found = find_unseen(train, [slate.user for slate in slates], [item for slate in slates for item in slate.targets])
  return {
    f"test, {group.replace('_', ' ')}": {"requests": int(of.sum()), "retrieved": int(found[group].sum())} for group, of in asked.items()
  }


def _beam_scores(stage: StageContext) -> Callable[[np.ndarray], np.ndarray]:
  """Of the mid-trained model; one of packed items orders its beams by its dense head."""
  beams, max_history = stage.options.beams, stage.config.midtrain.max_history
  if stage.config.midtrain.form == "tokens":
    return make_beam_scores(stage.decoder, stage.load_params("midtrain"), stage.prompts, beams=beams, max_history=max_history)
  packed = load_packed_items(stage.run, stage.catalogue, stage.mesh)
  found = make_packed_beam_scores(*packed, beams=beams, max_history=max_history)
  dense = make_dense_scores(*packed, max_history=max_history)
  return lambda past: reorder_beams(found(past), dense(past))


def _from_beams(stage: StageContext) -> tuple[Slates, dict[str, Any]]:
  """The mid-trained model's own beams. It was fitted on every training position, so training slates come from the validation positions."""
  options, split, scores = stage.options, stage.split, _beam_scores(stage)
  with stage.task("slates: beams", len(split.validation) + len(split.test), "users") as task:

    def counted(past: np.ndarray) -> np.ndarray:
      stage.stop.check()
      found = scores(past)
      task.update(min(task.done + len(past), task.total))
      return found

    held_out = slates_from_scores(counted, split.validation, stage.catalogue, size=options.size, ranker=_BEAMS)
    test = slates_from_scores(counted, split.test, stage.catalogue, size=options.size, ranker=_BEAMS)
  report = {"retrieved": _count_retrieved(**{"train and validation": held_out, "test": test})}
  train, validation = _divide(stage, held_out.slates)
  return {"train": train, "validation": validation, "test": test.slates}, report


def _divide(stage: StageContext, slates: Sequence[Slate]) -> tuple[list[Slate], list[Slate]]:
  """Slates for training and for validation: by chance, or where the log is split by time the last ones for validation."""
  cut = max(1, round(len(slates) * (1 - stage.options.validation_share)))
  if stage.config.data.split == "time":
    times = sorted(slate.timestamp or 0 for slate in slates)
    since = times[min(cut, len(times) - 1)] if times else 0
    return [slate for slate in slates if (slate.timestamp or 0) < since], [slate for slate in slates if (slate.timestamp or 0) >= since]
  order = np.random.default_rng(stage.seed).permutation(len(slates))
  train, validation = ([slates[i] for i in np.sort(part)] for part in (order[:cut], order[cut:]))
  return train, validation


def check(config: ConfigDict) -> None:
  """Names for all candidates, and slates that the log's split is of."""
  if config.slates.source == "log" and config.data.split == "time":
    raise ConfigError(
      "--config.data.split: 'time' splits the log for slates that are built here, and those of slates.source 'log' come split already; set "
      "it to leave_one_out, or slates.source to ctr, sasrec or beam"
    )
  size, named = config.slates.size, config.tokenize.num_candidates
  if config.slates.source != "log" and size > named:
    raise ConfigError(f"--config.slates.size: {size}, but only {named} candidates have names; raise --config.tokenize.num_candidates")


def unused(config: ConfigDict) -> tuple[str, ...]:
  """What is said of the sources that are not the chosen one."""
  of_fitted = ("size", "folds", "per_user")
  of_source = {
    "log": (),
    "ctr": (*of_fitted, "ctr"),
    "sasrec": (*of_fitted, "sasrec", "also", *(("ctr",) if config.slates.also == "ctr" else ())),
    "beam": ("size", "beams", "validation_share"),
  }
  others = {*config.slates} - {"source", *of_source[config.slates.source]}
  return tuple(f"slates.{key}" for key in sorted(others))


def foresee(stage: StageContext) -> list[str]:
  """Users, and items, of whom slates can be built."""
  options, split, faults = stage.options, stage.split, []
  if options.source == "log":
    return []
  try:
    check_slate_size(options.size, len(stage.catalogue), max((len(request.history) for request in split.test), default=0))
  except DataError as error:
    faults.append(f"--config.slates.{error}")
  short = sum(len(history.items) < SHORTEST_CUT for history in split.train)  # which are without the items of validation and test
  key, need = f"--config.slates.source: {options.source!r}", SHORTEST_CUT + 2
  if not split.test:
    return [*faults, f"{key} takes a user's last item for the test and the one before for validation; none of {short:,} users has 3 items"]
  if options.source in FITTED and short == len(split.train):
    of = f"{need} items or more ({SHORTEST_CUT - 1} before the target, and the last two for validation and test)"
    if stage.config.data.split == "time":
      of = f"{SHORTEST_CUT} items or more before the validation's days"
    return [
      *faults,
      f"{key} makes training slates of users with {of}, and all {short:,} users have fewer; bring longer histories, or slates of your own",
    ]
  if options.source in FITTED and len(split.train) < options.folds:
    faults.append(
      f"--config.slates.folds: {options.folds} folds of {len(split.train):,} users; use no more folds than users, or bring more"
    )
  return faults


STAGE = Stage(
  "slates",
  run,
  reads=("seed", "slates"),
  options=SlatesOptions,
  inputs=("data", "tokenize"),
  uses=("midtrain",),
  needs=lambda config: ("midtrain",) if config.slates.source == "beam" else (),
  unused=unused,
  check=check,
  foresee=foresee,
)
