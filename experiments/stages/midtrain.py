"""Stage `midtrain`: a language model of semantic IDs and text, and how well it retrieves from the whole catalogue."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_training
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.splits import NextItem, find_unseen
from gr2_jax.errors import ConfigError
from gr2_jax.evaluation.retrieval import draw_users, retrieval_metrics, retrieval_ranks
from gr2_jax.files import write_json
from gr2_jax.language.midtrain_tasks import MidtrainCorpus, Mixture
from gr2_jax.rollout.catalogue_scores import make_beam_scores, make_dense_scores
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.packed_midtraining import PackedOptions, held_out_users, open_packed_items, train_packed_items
from gr2_jax.runs.stages import Stage
from gr2_jax.runs.starts import FROM_MODEL
from gr2_jax.runs.training import TrainingOptions, train_lm
from gr2_jax.settings import check_settings, setting, spread
from gr2_jax.training.state import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class NewRowsOptions:
  """A training of the new token rows alone: what a pretrained backbone needs first (OneRec-Think's learning rate). Raises ValueError."""

  enabled: bool = setting(False, "whether the rows of new tokens are trained first, all else held still")
  training: TrainingOptions = spread(TrainingOptions(100, OptimizerConfig(5e-4), save_every=500, log_every=20))

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class MidtrainOptions:
  """What the language model learns from the log, and how its retrieval is measured. Raises ValueError."""

  mixture: Mixture = setting(Mixture(), "shares of the tasks of the form tokens, which are normalised")
  form: str = setting(
    "tokens",
    "what is read: the tokens of semantic IDs and text, or packed: one position an item, with a dense head beside the codes",
    choices=("tokens", "packed"),
  )
  packed: PackedOptions = setting(PackedOptions(), "settings of the form packed")
  corpus_epochs: int = setting(64, "passes over the log after which the corpus repeats its draws", unit="epochs", low=1)
  max_history: int = setting(20, "latest items of a history", unit="items", low=1)
  batch_size: int = setting(32, "rows of an update", unit="rows", low=1)
  row_length: int = setting(
    256,
    "length of the rows into which examples are packed: in tokens, or in items of the form packed",
    unit="tokens, or items where they are packed",
    low=2,
  )
  training: TrainingOptions = spread(
    TrainingOptions(1000, OptimizerConfig(1e-3, schedule="cosine", warmup_steps=50, weight_decay=0.01), save_every=500, log_every=20)
  )
  warmup_rows: NewRowsOptions = setting(NewRowsOptions(), "a training of the rows of new tokens alone, before all is trained")
  beams: int = setting(20, "beams of the search that measures retrieval", low=1)
  eval_users: int | None = setting(None, "users whose test requests measure retrieval; None: all", unit="users", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Trains the language model; writes checkpoints and `retrieval.json`: how it ranks the whole catalogue for the test requests.

  Of packed items also `item_vectors.npy`, the vectors `[N, D]` that it has learnt.
  """
  options: MidtrainOptions = stage.options
  if options.form == "packed":
    params = train_packed_items(stage)
    model, table = open_packed_items(stage.run, stage.catalogue)
    if stage.run.main:
      np.save(stage.path("item_vectors.npy"), model.apply({"params": params}, table, method="item_vectors"))
    scores = make_dense_scores(model, params, table, max_history=options.max_history)
    unseen = held_out_users(stage) if options.packed.whole_log else None
    _evaluate(stage, scores, {"head": "dense"}, [request for request in stage.split.test if unseen is None or request.user in unseen])
  else:
    params = _train_on_tokens(stage)
    scores = make_beam_scores(stage.decoder, params, stage.prompts, beams=options.beams, max_history=options.max_history)
    _evaluate(stage, scores, {"beams": options.beams}, stage.split.test)


def _train_on_tokens(stage: StageContext) -> Any:
  """New token rows first, then everything; returns the parameters."""
  options: MidtrainOptions = stage.options
  corpus = MidtrainCorpus(stage.split.train, stage.prompts, options.mixture, stage.seed, options.max_history, epochs=options.corpus_epochs)

  def batches(seed: int) -> grain.DatasetIterator:
    return make_pipeline(
      corpus,
      seed=seed,
      batch_size=options.batch_size,
      map_fn=lambda example, rng: {"tokens": example.tokens, "parts": example.loss_weights > 0},
      pack_length=options.row_length,
      cut=True,
      pad_id=stage.vocabulary.pad_id,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  init, parts = stage.start(FROM_MODEL), {"token": 1.0}
  adapt = init is not None  # from random numbers all that is learnt is learnt here
  if options.warmup_rows.enabled:
    name, first = "warmup_rows", stage.vocabulary.new_token_start
    train_lm(stage, f"midtrain.{name}", batches(stage.seed + 1), parts, init=init, new_rows_from=first, name=name, adapt=adapt)
    init = stage.checkpoints("midtrain", "warmup_rows")
  return train_lm(stage, stage.name, batches(stage.seed), parts, init=init, adapt=adapt)


def _evaluate(stage: StageContext, scores: Callable[[np.ndarray], np.ndarray], found: dict[str, Any], requests: Sequence[NextItem]) -> None:
  """Writes `found`, what the scores of the catalogue are of, with how they rank the targets of the requests."""
  options = stage.options
  if not requests:
    write_json(stage.path("retrieval.json"), found | {"requests": 0})
    stage.say("full catalogue: not measured, since no user has three items, of which the last could be the target")
    return
  requests = draw_users(requests, options.eval_users, stage.seed)
  with stage.task("midtrain: retrieval", len(requests), "requests") as task:
    report = stage.on_progress(task)
    ranker = "the mid-trained model (config.midtrain)"
    ranks = retrieval_ranks(scores, requests, stage.catalogue, ranker=ranker, on_progress=lambda count: report(task.done + count))
  found |= {"requests": len(requests)} | {name: retrieval_metrics(values) for name, values in ranks.items()}
  for segment in sorted({request.segment for request in requests if request.segment}):
    inside = np.array([request.segment == segment for request in requests])
    found |= {f"{name}, {segment}": retrieval_metrics(values[inside]) for name, values in ranks.items()}
  if stage.config.data.split == "time":
    unseen = find_unseen(stage.split.train, [request.user for request in requests], [request.target for request in requests])
    for group, inside in unseen.items():
      found |= {f"{name}, {group}": retrieval_metrics(values[inside]) for name, values in ranks.items() if inside.any()}
  write_json(stage.path("retrieval.json"), found)
  masked = found["masked"]
  stage.say(
    f"full catalogue, history masked: R@5 {masked['recall@5']:.4f}  R@10 {masked['recall@10']:.4f}  "
    f"N@5 {masked['ndcg@5']:.4f}  N@10 {masked['ndcg@10']:.4f}  ({len(requests):,} requests)"
  )


def check(config: ConfigDict) -> None:
  """The optimizers, and what needs a language model."""
  check_training(config, "midtrain")
  if config.midtrain.form == "packed" and config.midtrain.row_length <= config.midtrain.max_history:
    raise ConfigError(
      f"--config.midtrain.row_length: rows of {config.midtrain.row_length} items hold no history of {config.midtrain.max_history} and "
      "what follows it; raise it, or lower midtrain.max_history"
    )
  if config.midtrain.form == "packed" and config.answer.form == "written":
    raise ConfigError(
      "--config.midtrain.form: 'packed' leaves no language model that written answers could start from; set it to tokens, or "
      "answer.form to scored"
    )
  if config.midtrain.form == "tokens" and config.midtrain.warmup_rows.enabled:
    check_training(config, "midtrain.warmup_rows")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Rows of a batch."""
  return {"midtrain.batch_size": (config.midtrain.batch_size, 1)}


def unused(config: ConfigDict) -> tuple[str, ...]:
  """What is said of the other form, of the warm-up of new rows where there is none, and of adapters where nothing was learnt before."""
  midtrain = config.midtrain
  if midtrain.form == "packed":
    return ("model.lora", *(f"midtrain.{key}" for key in ("mixture", "corpus_epochs", "warmup_rows", "beams")))
  others = () if midtrain.warmup_rows.enabled else tuple(f"midtrain.warmup_rows.{key}" for key in midtrain.warmup_rows if key != "enabled")
  adapters = ("model.lora",) if config.model.init == "random" else ()
  return (*adapters, "midtrain.packed", *others)


STAGE = Stage(
  "midtrain",
  run,
  reads=("seed", "model", "mesh", "midtrain"),
  options=MidtrainOptions,
  inputs=("data", "tokenize"),
  unused=unused,
  check=check,
  batches=batches,
)
