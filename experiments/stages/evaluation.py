"""Stage `evaluation`: every ranker of the test slates, measured side by side; `results.json`, `per_slate.npz` and the card."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from experiments.baselines import BASELINES
from gr2_jax.compression.cache import FULL_HISTORIES, load_compressed, time_prefill
from gr2_jax.data.clicks import expected_gains
from gr2_jax.data.market import MarketConfig, choice_probabilities
from gr2_jax.data.market_bayes import choice_posterior
from gr2_jax.data.schema import SPLITS, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.data.splits import find_unseen
from gr2_jax.evaluation import baselines
from gr2_jax.evaluation.held_out import quality_of_order
from gr2_jax.evaluation.importance import permutation_importance
from gr2_jax.evaluation.per_slate import write_per_slate
from gr2_jax.evaluation.policy_answers import MeanOfOrders, RankFn, ask_policy, make_rank, make_scored_rank
from gr2_jax.evaluation.reasons import CheckedReason, find_what_matters, judge_reasons
from gr2_jax.evaluation.reranked import RERANKED, rerank_as_chosen
from gr2_jax.evaluation.results import (
  AVERAGED,
  CEILING,
  COMPRESSED,
  POLICY,
  Measured,
  RankerAnswers,
  build_results,
  measure_rankers,
  write_results,
)
from gr2_jax.evaluation.segments import bucket_slates
from gr2_jax.evaluation.slate_metrics import SlateView, Truth
from gr2_jax.evidence.facts import BASIC_FACTS, LM_SCORE
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.files import write_json
from gr2_jax.models.listwise import ListwiseConfig
from gr2_jax.models.pruning import prune_decoder
from gr2_jax.models.transformer import Decoder
from gr2_jax.reports.card import render_console_table, write_card
from gr2_jax.reports.names import ranker_title
from gr2_jax.rewards.slate import SlateRewardConfig
from gr2_jax.rollout.catalogue_scores import make_candidate_scores
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.feedback import read_attributes
from gr2_jax.runs.load import load_policy, load_shelf, load_trained, load_utilities
from gr2_jax.runs.policies import PolicyRecord, RankerRecord, read_policies
from gr2_jax.runs.scored import Answer, ScoredSlates, make_answer, make_rescore, open_scorer
from gr2_jax.runs.stages import Stage
from gr2_jax.settings import check_settings, read_record, setting
from gr2_jax.teachers.tree import describe_lambdamart, fit_lambdamart, lambdamart_scores

_REASONS = 400  # test slates about which it is asked whether what is stated matters
_LINES = ("policy", "direct")  # of which validation slates choose the one that a run stands for
COUNTS_NOTE = (
  "Counts (popularity, transitions, co-occurrence; in features and in prompts) use only events before the request's timestamp; events of "
  "the same day do not count."
)
TIME_NOTE = f"{COUNTS_NOTE} Upstream rankers are fitted across users and may have seen later events of other users."
SPLIT_NOTE = (
  f"{COUNTS_NOTE} The log is split by time: test requests are of the last tenth of the days that have an event, validation requests of the "
  "tenth before. What the upstream ranker and mid-training learn came before the validation's days, and nothing that ranks a test request "
  "has read a later event; validation slates only choose among what is trained. Seen and unseen: whether the user, or the target, has an "
  "event before the validation's days. The catalogue is known throughout: an item that comes later is in it with its text, without events."
)
CROSS_FIT_NOTE = (
  "Training slates come from before those days, and so does all that their upstream rankers read, which are fitted across users and may "
  "have seen later events of others there."
)
BEAMS_NOTE = "Training slates are requests of the validation's days, validation slates the last of these."
BAYES_NOTE = (
  "The Bayes order knows the market and not the user: it sorts by the probability of being taken given the whole history, the candidates "
  "and their upstream scores. In expectation no ranker is above it; the oracle knows the user too."
)
UNTIMED_NOTE = "The slates carry no timestamps: every event of the log counts, and the log holds none of their targets."


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """How all rankers are measured. Raises ValueError."""

  batch_size: int = setting(64, "slates that a policy answers at a time", unit="slates", low=1)
  max_slates: int | None = setting(None, "test slates that are asked about; None: all", unit="slates", low=1)
  gain: Literal["exponential", "linear"] = setting("exponential", "what a label g counts in NDCG: 2^g - 1, or g itself")
  resamples: int = setting(10_000, "draws of the paired bootstrap that gives intervals", low=1)
  shuffles: int = setting(
    2,
    "shuffled presentations of each slate, beside the upstream one; with any, policies that write are also sorted by the mean of their "
    "log-probabilities over all presentations, at the cost of all of them",
    low=0,
  )
  baselines: tuple[str, ...] = setting(
    (),
    "more rankers: prm (self-attention over the slate) and listwise_mlp, which are fitted here on facts and labels; transition_graph, "
    "which reads what followed the last items, and text",
    choices=BASELINES,
  )
  listwise: ListwiseConfig = setting(ListwiseConfig(), "form and training of prm and listwise_mlp")

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `results.json`, `per_slate.npz`, `card.md` with its plots, `card.html`, and `answers_RANKER.jsonl` (what the
  language models answered).

  With an SFT policy that was taught without reasoning also `hard_slates.json`.
  """
  options: EvaluationOptions = stage.options
  slates = {split: stage.slates(split) for split in SPLITS}
  test = slates["test"] = slates["test"][: options.max_slates]
  labels = slate_labels(test)
  trees, rankers, scores = _classical_rankers(stage, slates, labels)
  rankers |= _chosen_baselines(stage, slates, labels)
  stage.stop.check()
  policies = read_policies(stage.run)
  rankers |= _policy_rankers(stage, policies, test)
  scored = _ScoredPolicies(stage, [policy for policy in policies if policy.form == "scored"], len(test))
  for name in scored.records:
    rankers |= ask_policy(stage, name, scored.params(name), scored.rank(name), test)
  view = _view_slates(stage, "test", test)
  if view.config.pays_besides:
    rankers |= _reranked(stage, view, scores | ({"rl_control": scored.scores("rl_control")} if "rl_control" in scored.records else {}))
  subsets = {"reasoning_hard": _find_hard_slates(stage, rankers["sft_direct"], labels)} if "sft_direct" in rankers else {}
  if stage.config.data.split == "time":
    subsets |= find_unseen(stage.split.train, [slate.user for slate in test], [item for slate in test for item in slate.targets])
  rankers |= _compressed_rankers(stage, policies, rankers[POLICY], test)
  metrics = _measure_slates(view, rankers, measure_rankers(rankers, labels, options.gain))
  users, weights = [slate.user for slate in test], np.array([slate.weight for slate in test])
  declared = [ranker for policy in policies for ranker in policy.rankers]
  results = build_results(
    dataset=name_data(stage.config.data),
    seeds=[stage.seed],
    labels=labels,
    rankers=rankers,
    titles=dict(_titles(declared, rankers, options.shuffles + 1)),
    pairs=[
      *((ranker.name, other) for ranker in declared for other in (*ranker.against, *options.baselines)),
      *((name, POLICY) for name in rankers if name.startswith(COMPRESSED)),
      *((name, name.removesuffix(AVERAGED)) for name in rankers if name.endswith(AVERAGED)),
      *((POLICY, name) for name in rankers if name.endswith(RERANKED)),
      *((name, CEILING) for name in _LINES),
    ],
    priors=[policy.rankers[0].name for policy in reversed(policies) if policy.prior],
    users=users,
    weights=weights,
    segments=[slate.segment for slate in test],
    subsets=subsets,
    buckets=bucket_slates(test, labels, stage.log if stage.config.slates.source == "log" else stage.split.train),
    train_labels=slate_labels(slates["train"]),
    notes=[_note_time(stage, test), trees, *([BAYES_NOTE] if CEILING in rankers else [])],
    gain=options.gain,
    metrics=metrics,
    bootstrap_seed=stage.seed,
    resamples=options.resamples,
  )
  results |= _judge_scored(stage, scored, users) | {"reasons": _judge_reasons(stage, scored, rankers, users, weights)}
  if stage.run.main:
    write_results(stage.path("results.json"), results)
    write_per_slate(stage.path("per_slate.npz"), metrics, users, weights)
    write_card(stage.run.directory)
  stage.progress.console.print(render_console_table(results))


def _note_time(stage: StageContext, test: Sequence[Slate]) -> str:
  """What has been read of which time."""
  if stage.config.data.split == "time":
    return f"{SPLIT_NOTE} {BEAMS_NOTE if stage.config.slates.source == 'beam' else CROSS_FIT_NOTE}"
  return TIME_NOTE if any(slate.timestamp is not None for slate in test) else UNTIMED_NOTE


def _titles(declared: Sequence[RankerRecord], rankers: Mapping[str, RankerAnswers], orders: int) -> Iterator[tuple[str, str]]:
  """Names and titles of what policies declare, each before that of its mean over so many orders, where there is one."""
  for ranker in declared:
    yield ranker.name, ranker.title
    if ranker.name + AVERAGED in rankers:
      yield ranker.name + AVERAGED, f"{ranker.title}, mean of {orders} orders"
  titles = {ranker.name: ranker.title for ranker in declared}
  for name in rankers:
    if name.endswith(RERANKED):
      yield name, f"{ranker_title(name.removesuffix(RERANKED), titles)}, re-ranked"


def name_data(data: ConfigDict) -> str:
  """What a run's data are called: the market, the public dataset, or the folder that they came from."""
  if data.source == "synthetic":
    return "synthetic market"
  folder = data.manual_dir if data.source == "tfds:own_log" else data.source
  return folder.removeprefix("tfds:") if folder.startswith("tfds:") else pathlib.Path(folder).resolve().name


def _classical_rankers(
  stage: StageContext, slates: Mapping[str, Sequence[Slate]], labels: np.ndarray
) -> tuple[str, dict[str, RankerAnswers], dict[str, tuple[np.ndarray, np.ndarray]]]:
  """(how the trees were chosen, the rankers that are no policies, the trees' scores of validation and test slates)."""
  test, catalogue = slates["test"], stage.catalogue
  utilities = load_utilities(stage.run, "test")
  counts, facts = LogCounts.fit(stage.log, catalogue), FactTables(stage.run)
  truth = {split: slate_labels(of_split) for split, of_split in slates.items()}
  trees, scores = {}, {}
  for name, names in (("lambdamart", BASIC_FACTS), ("lambdamart_all", facts.codes.names)):
    read = {split: facts.read(split, names)[: len(of_split)] for split, of_split in slates.items()}
    model = fit_lambdamart(read["train"], truth["train"], read["validation"], truth["validation"], seed=stage.seed)
    scores[name] = lambdamart_scores(model, read["validation"]), lambdamart_scores(model, read["test"])
    trees[name] = describe_lambdamart(model), baselines.rank_by_scores(scores[name][1], labels, name)
  rankings = {
    "upstream": baselines.upstream_ranking(labels),
    "random": baselines.random_ranking(labels, stage.seed),
    "oracle": baselines.ideal_ranking(labels) if utilities is None else baselines.utility_ranking(utilities[: len(test)], labels),
    "popularity": baselines.popularity_ranking(test, catalogue, counts.popularity),
    "last_transition": baselines.last_transition_ranking(test, catalogue, counts.transitions),
    **{name: ranking for name, (_, ranking) in trees.items()},
  }
  if stage.run.is_done("midtrain"):
    rankings["midtrain"] = baselines.rank_by_scores(_midtrain_scores(stage, facts, test), labels, "midtrain")
  if (bayes := _bayes_scores(stage, test)) is not None:
    rankings[CEILING] = baselines.rank_by_scores(bayes, labels, CEILING)
  chosen = ", ".join(f"{ranker_title(name, {})} {description}" for name, (description, _) in trees.items())
  note = f"Trees, fitted on all training slates, chosen and stopped by N@10 of the validation slates: {chosen}."
  return note, {name: RankerAnswers.of(ranking) for name, ranking in rankings.items()}, scores


def _view_slates(stage: StageContext, split: str, slates: Sequence[Slate]) -> SlateView:
  """Slates of a split, the first ones, as whole slates are judged; what a market knows of them is of the test alone."""
  config = read_record(SlateRewardConfig, stage.config, "rl.slate")
  utilities = load_utilities(stage.run, split) if split == "test" and stage.config.data.market.labels == "single" else None
  truth = None
  if utilities is not None:
    utilities = utilities[: len(slates)]
    choice = choice_probabilities(utilities)
    truth = Truth(choice, expected_gains(utilities) if stage.config.rl.feedback.source == "clicks" else choice)
  return SlateView(slate_labels(slates), read_attributes(stage, slates, config.small_share), truth, config)


def _measure_slates(view: SlateView, rankers: Mapping[str, RankerAnswers], metrics: Measured) -> Measured:
  """The metrics of rankers, with what their first presentation's rankings make of whole slates."""
  measured = {}
  for name, by_presentation in metrics.items():
    first = next(iter(by_presentation))
    measured[name] = {**by_presentation, first: {**by_presentation[first], **view.measure(rankers[name].answers[first].rankings)}}
  return measured


def _reranked(stage: StageContext, test: SlateView, scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, RankerAnswers]:
  """Rankers that know nothing of what the reward pays besides labels, by scores of validation and test slates, re-ranked for it."""
  held_out, rankers = _view_slates(stage, "validation", stage.slates("validation")), {}
  for name, of in scores.items():
    rankings, chosen = rerank_as_chosen(of, held_out, test)
    rankers[name + RERANKED] = RankerAnswers.of(rankings)
    stage.say(f"{name}, re-ranked: " + ", ".join(f"{key} {value:g}" for key, value in chosen.items()))
  return rankers


def _chosen_baselines(stage: StageContext, slates: Mapping[str, Sequence[Slate]], labels: np.ndarray) -> dict[str, RankerAnswers]:
  """The rankers that `evaluation.baselines` names."""
  scores = {name: BASELINES[name](stage, slates) for name in stage.options.baselines}
  return {name: RankerAnswers.of(baselines.rank_by_scores(of, labels, name)) for name, of in scores.items()}


def _bayes_scores(stage: StageContext, test: Sequence[Slate]) -> np.ndarray | None:
  """Of a synthetic market's own slates the probability `[n, K]` of each candidate, given all that a request shows; None for others."""
  shelf = load_shelf(stage.run)
  if shelf is None:
    return None
  market = read_record(MarketConfig, stage.config, "data.market")
  with stage.task("evaluation: bayes", len(test), "slates") as task:
    found = choice_posterior(market, shelf, stage.catalogue, test, seed=stage.seed, on_progress=stage.on_progress(task))
  low, middle = np.quantile(found.effective, (0.1, 0.5))
  stage.say(f"bayes: {middle:.0f} effective draws of a user's tastes in the median, {low:.0f} or fewer in a tenth of the slates")
  return found.probabilities


def _midtrain_scores(stage: StageContext, facts: FactTables, test: Sequence[Slate]) -> np.ndarray:
  """The mid-trained model's own log-probabilities `[n, K]`: a fact of the table where it read packed items."""
  if LM_SCORE in facts.names:
    return facts.read("test", (LM_SCORE,))[: len(test), :, 0]
  max_history, batch_size = stage.config.midtrain.max_history, stage.options.batch_size
  params = stage.load_params("midtrain")
  return make_candidate_scores(stage.decoder, params, stage.prompts, max_history=max_history, batch_size=batch_size)(test)


def _policy_rankers(stage: StageContext, policies: Sequence[PolicyRecord], test: Sequence[Slate]) -> dict[str, RankerAnswers]:
  """Every policy that writes, asked in each way that its record names; one program for all policies of a depth and mode."""
  rank_in = functools.cache(lambda layers, mode: make_rank(stage, _decoder(stage, layers), mode, test))
  mean_in = functools.cache(lambda layers, mode: MeanOfOrders(stage, _decoder(stage, layers), mode, test))
  averaged = stage.style.answer == "compact" and stage.options.shuffles > 0
  rankers: dict[str, RankerAnswers] = {}
  for policy in (policy for policy in policies if policy.form == "written"):
    params = load_policy(stage.run, policy, stage.prompts, stage.mesh).params
    scores = next((ranker for ranker in policy.rankers if ranker.mode == "score"), policy.rankers[0])
    for ranker in policy.rankers:
      # Direct answers begin as one-pass scores say, so that their mean is that of the scores.
      mean = mean_in(policy.kept, ranker.mode) if averaged and ranker is scores else None
      rankers |= ask_policy(stage, ranker.name, params, rank_in(policy.kept, ranker.mode), test, mean)
  return rankers


class _ScoredPolicies:
  """The scored policies of a run by name, `records`, each loaded once, one program for all of a mode and depth; `test` slates are read."""

  def __init__(self, stage: StageContext, records: Sequence[PolicyRecord], test: int):
    self.records = {record.rankers[0].name: record for record in records}
    self._stage, self._test = stage, test
    self._answer = functools.cache(lambda mode, layers: make_answer(stage.run, reasoned=mode == "reason", layers=layers))
    self._rescore = functools.cache(lambda layers: make_rescore(stage.run, layers=layers))
    self.params = functools.cache(self._load)

  def answer(self, name: str) -> Answer:
    """How a policy answers."""
    return self._answer(self.records[name].mode, self.records[name].kept)

  def scores(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A policy's scores `[n, K]` of validation and test slates."""
    validation = ScoredSlates.load(self._stage, "validation")
    asked = [self.answer(name)(self.params(name), slates).scores for slates in (validation, self.test)]
    return asked[0], asked[1]

  def rank(self, name: str) -> RankFn:
    """How a policy ranks the test slates."""
    return make_scored_rank(self.answer(name), self.test)

  @functools.cached_property
  def test(self) -> ScoredSlates:
    """The test slates."""
    return ScoredSlates.load(self._stage, "test").take(np.arange(self._test))

  def matters(self, name: str, checked: Sequence[CheckedReason]) -> list[tuple[bool | None, ...]]:
    """Whether a policy's scores heed what its reasonings state of the first test slates, see `find_what_matters`."""
    slates, params, score = self.test.take(np.arange(len(checked))), self.params(name), self._rescore(self.records[name].kept)

    def rescore(rows: np.ndarray, facts: np.ndarray) -> np.ndarray:
      return score(params, dataclasses.replace(slates.take(rows), facts=facts), [checked[row].tokens for row in rows])

    names = FactTables(self._stage.run).codes.names
    return find_what_matters(rescore, [of.reason for of in checked], slates.facts, slates.labels >= 0, names, self._medians)

  @functools.cached_property
  def _medians(self) -> np.ndarray:
    """Of each fact `[F]`, over the candidates of training slates."""
    train = ScoredSlates.load(self._stage, "train")
    return np.asarray(np.median(train.facts[train.labels >= 0], axis=0))

  def _load(self, name: str) -> Any:
    record = self.records[name]
    model = open_scorer(self._stage.run, layers=record.kept)
    return load_trained(self._stage.run, model, self._stage.mesh, record.stage, record.checkpoints)


def _judge_scored(stage: StageContext, scored: _ScoredPolicies, users: Sequence[str]) -> dict[str, Any]:
  """Of the scored policies: their `validation` quality, the `main_line` that it chooses, and which facts carry that one."""
  if not scored.records:
    return {}
  validation, test = ScoredSlates.load(stage, "validation"), scored.test
  quality = quality_of_order(validation.labels, validation.weights)
  found = {name: quality(scored.answer(name)(scored.params(name), validation).scores) for name in scored.records}
  main = max((name for name in found if name in _LINES), key=found.__getitem__)
  results: dict[str, Any] = {"validation": found, "main_line": main}
  if len(set(users)) > 1:
    with stage.task(f"evaluation: facts of {main}", 1, "policies") as task:
      importance = permutation_importance(
        lambda facts: scored.answer(main)(scored.params(main), dataclasses.replace(test, facts=facts)).scores,
        test.facts,
        FactTables(stage.run).codes.names,
        test.labels,
        clusters=users,
        weights=test.weights,
        seed=stage.seed,
        resamples=min(stage.options.resamples, 2000),
      )
      stage.on_progress(task)(1)
    results["importance"] = {main: importance}
  return results


def _judge_reasons(
  stage: StageContext, scored: _ScoredPolicies, rankers: Mapping[str, RankerAnswers], users: Sequence[str], weights: np.ndarray
) -> dict[str, Any]:
  """By ranker that reasons, what its reasonings are worth; whether facts matter is asked of scored policies, about some slates."""
  found = {}
  for name, of in rankers.items():
    if of.reasons:
      matters = scored.matters(name, of.reasons[:_REASONS]) if name in scored.records else []
      firsts = next(iter(of.answers.values())).rankings[:, 0]
      resampling = {"clusters": users, "weights": weights, "seed": stage.seed, "resamples": min(stage.options.resamples, 2000)}
      found[name] = judge_reasons(of.reasons, firsts, matters, **resampling)
  return found


def _decoder(stage: StageContext, layers: Sequence[int] | None) -> Decoder:
  return stage.decoder if layers is None else prune_decoder(stage.decoder, layers)


def _compressed_rankers(
  stage: StageContext, policies: Sequence[PolicyRecord], full: RankerAnswers, test: Sequence[Slate]
) -> dict[str, RankerAnswers]:
  """The RL policy on compressed histories; with any, also its answers on full ones, `full`, with the time that their prompts take."""
  compressed = load_compressed(stage.run, test)
  if not compressed:
    return {}
  record = next(policy for policy in policies if policy.rankers[0].name == POLICY)
  params, rank = load_policy(stage.run, record, stage.prompts, stage.mesh).params, make_rank(stage, stage.decoder, record.mode, test)
  rankers = {POLICY: full}
  for variant, of in compressed.items():
    name = COMPRESSED + variant
    rankers |= ask_policy(stage, name, params | of.memory, functools.partial(rank, histories=of.histories), test)
  read = {POLICY: FULL_HISTORIES} | {COMPRESSED + variant: of for variant, of in compressed.items()}
  prefill_ms = time_prefill(stage.decoder, params, test, stage.prompts, stage.style, read, batch_size=stage.options.batch_size)
  return {name: dataclasses.replace(of, cost={**(of.cost or {}), "prefill_ms": prefill_ms[name]}) for name, of in rankers.items()}


def _find_hard_slates(stage: StageContext, answers: RankerAnswers, labels: np.ndarray) -> np.ndarray:
  """Slates `[n]` whose target SFT without reasoning does not put first: those on which reasoning has work to do.

  Which slates they are stands in `hard_slates.json`. The policy that chooses them shares only mid-training with those compared.
  """
  first = answers.answers["upstream"].rankings[:, 0]
  hard = (first < 0) | (np.take_along_axis(labels, np.maximum(first, 0)[:, None], axis=1)[:, 0] <= 0)
  report = {
    "policy": "SFT on the answers of the traces, without their reasoning (sft/without_reasoning)",
    "answers": "greedy, candidates shown in the upstream order",
    "n": int(hard.sum()),
    "of": len(hard),
    "indices": np.flatnonzero(hard).tolist(),
  }
  if stage.run.main:
    write_json(stage.path("hard_slates.json"), report)
  return hard


def unused(config: ConfigDict) -> tuple[str, ...]:
  """How listwise rankers are trained where none is asked for."""
  return () if {"prm", "listwise_mlp"} & {*config.evaluation.baselines} else ("evaluation.listwise",)


STAGE = Stage(
  "evaluation",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "answer", "evaluation"),
  options=EvaluationOptions,
  inputs=("data", "tokenize", "slates", "evidence", "rl"),
  uses=("compress", "midtrain"),
  uses_policies=True,
  unused=unused,
  format=8,  # rankers that are fitted on request, and a synthetic market's Bayes order
)
