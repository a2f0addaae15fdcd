"""Stage `evaluation`: every ranker of the test slates, measured side by side; `results.json`, `per_slate.npz` and `card.md`."""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_at_least_one, check_choice
from gr2_jax.compression.cache import FULL_HISTORIES, load_compressed, time_prefill
from gr2_jax.data.schema import SPLITS, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evaluation import baselines
from gr2_jax.evaluation.per_slate import write_per_slate
from gr2_jax.evaluation.results import COMPRESSED, POLICY, Answers, RankerAnswers, build_results, measure_rankers, write_results
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts
from gr2_jax.evidence.table import LogCounts, slate_features
from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.pruning import prune_decoder
from gr2_jax.models.transformer import Decoder
from gr2_jax.reports.card import render_console_table, write_card
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.rerank import RankedSlates, pad_shown, rank_slates
from gr2_jax.rollout.scoring import make_score, rank_by_scores
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.load import load_policy, load_utilities, most_new_tokens, style_of_mode
from gr2_jax.runs.policies import PolicyRecord, read_policies
from gr2_jax.runs.stages import Stage

TIME_NOTE = (
  "Counts (popularity, transitions, co-occurrence; in features and in prompts) use only events before the request's timestamp; events of "
  "the same day do not count. Upstream rankers are fitted across users and may have seen later events of other users."
)
UNTIMED_NOTE = "The slates carry no timestamps: every event of the log counts, and the log holds none of their targets."

# rank(params, slates, shown, on_progress) -> RankedSlates
RankFn = Callable[..., RankedSlates]


def run(stage: StageContext) -> None:
  """Writes `results.json`, `per_slate.npz`, `card.md` with its plots, and `answers_RANKER.jsonl` (what the language models answered).

  With an SFT policy that was taught without reasoning also `hard_slates.json`.
  """
  options = stage.options
  slates = {split: stage.slates(split) for split in SPLITS}
  test = slates["test"] = slates["test"][: options.max_slates]
  labels = slate_labels(test)
  rankers = _classical_rankers(stage, slates, labels)
  stage.stop.check()
  policies = read_policies(stage.run)
  rankers |= _policy_rankers(stage, policies, test)
  subsets = {"reasoning_hard": _find_hard_slates(stage, rankers["sft_direct"], labels)} if "sft_direct" in rankers else {}
  rankers |= _compressed_rankers(stage, policies, rankers[POLICY], test)
  metrics = measure_rankers(rankers, labels, options.gain)
  users, weights = [slate.user for slate in test], np.array([slate.weight for slate in test])
  declared = [ranker for policy in policies for ranker in policy.rankers]
  results = build_results(
    dataset=stage.config.name,
    seeds=[stage.seed],
    labels=labels,
    rankers=rankers,
    titles={ranker.name: ranker.title for ranker in declared},
    pairs=[
      *((ranker.name, other) for ranker in declared for other in ranker.against),
      *((name, POLICY) for name in rankers if name.startswith(COMPRESSED)),
    ],
    priors=[policy.rankers[0].name for policy in reversed(policies) if policy.prior],
    users=users,
    weights=weights,
    segments=[slate.segment for slate in test],
    subsets=subsets,
    train_labels=slate_labels(slates["train"]),
    notes=[TIME_NOTE if any(slate.timestamp is not None for slate in test) else UNTIMED_NOTE],
    gain=options.gain,
    metrics=metrics,
    bootstrap_seed=stage.seed,
    resamples=options.resamples,
  )
  if stage.run.main:
    write_results(stage.path("results.json"), results)
    write_per_slate(stage.path("per_slate.npz"), metrics, users, weights)
    write_card(stage.run.directory)
  stage.progress.console.print(render_console_table(results))


def _classical_rankers(stage: StageContext, slates: Mapping[str, Sequence[Slate]], labels: np.ndarray) -> dict[str, RankerAnswers]:
  test, catalogue = slates["test"], stage.catalogue
  utilities = load_utilities(stage.run, "test")
  vectors = np.load(stage.run.path("tokenize", "vectors.npy"))
  counts = LogCounts.fit(stage.log, catalogue)
  features = {split: slate_features(of_split, catalogue, counts, vectors) for split, of_split in slates.items()}
  lambdamart = baselines.fit_lambdamart(
    features["train"], slate_labels(slates["train"]), features["validation"], slate_labels(slates["validation"]), seed=stage.seed
  )
  rankings = {
    "upstream": baselines.upstream_ranking(labels),
    "random": baselines.random_ranking(labels, stage.seed),
    "oracle": baselines.ideal_ranking(labels) if utilities is None else baselines.utility_ranking(utilities[: len(test)], labels),
    "popularity": baselines.popularity_ranking(test, catalogue, ItemCounts.fit(stage.log, catalogue)),
    "last_transition": baselines.last_transition_ranking(test, catalogue, TransitionCounts.fit(stage.log, catalogue)),
    "lambdamart": baselines.lambdamart_ranking(lambdamart, features["test"], labels),
  }
  return {name: RankerAnswers.of(ranking) for name, ranking in rankings.items()}


def _policy_rankers(stage: StageContext, policies: Sequence[PolicyRecord], test: Sequence[Slate]) -> dict[str, RankerAnswers]:
  """Every policy of the run, asked in each way that its record names; one program for all policies of a depth and mode."""
  make_rank = functools.cache(lambda layers, mode: _make_rank(stage, _decoder(stage, layers), mode, test))
  rankers = {}
  for policy in policies:
    params = load_policy(stage.run, policy, stage.prompts, stage.mesh).params
    for ranker in policy.rankers:
      rankers[ranker.name] = _measure(stage, ranker.name, params, make_rank(policy.layers, ranker.mode), test)
  return rankers


def _decoder(stage: StageContext, layers: int | None) -> Decoder:
  return stage.decoder if layers is None else prune_decoder(stage.decoder, layers)


def _make_rank(stage: StageContext, decoder: Decoder, mode: str, test: Sequence[Slate]) -> RankFn:
  """Greedy answers in a mode, or one-pass scores, compiled once for all policies."""
  style, batch_size = style_of_mode(stage.style, mode), stage.options.batch_size
  if mode == "score":
    score = make_score(decoder, stage.vocabulary, style, stage.constraint(style))
    return lambda params, slates, shown, on_progress: rank_by_scores(
      score, params, slates, shown, stage.prompts, style, batch_size=batch_size, on_progress=on_progress
    )
  limit = most_new_tokens(stage.run, test, stage.vocabulary, style)
  config = RolloutConfig.of(decoder, stage.vocabulary, group=1, max_new_tokens=limit, constraint=stage.constraint(style))
  generate = make_generate(config)

  def rank(
    params: Any,
    slates: Sequence[Slate],
    shown: Sequence[np.ndarray],
    on_progress: Callable[[int], None],
    histories: Sequence[Sequence[int]] | None = None,
  ) -> RankedSlates:
    options = {"batch_size": batch_size, "key": stage.key, "on_progress": on_progress, "histories": histories}
    return rank_slates(generate, params, slates, shown, stage.prompts, style, **options)

  return rank


def _compressed_rankers(
  stage: StageContext, policies: Sequence[PolicyRecord], full: RankerAnswers, test: Sequence[Slate]
) -> dict[str, RankerAnswers]:
  """The RL policy on compressed histories; with any, also its answers on full ones, `full`, with the time that their prompts take."""
  compressed = load_compressed(stage.run, test)
  if not compressed:
    return {}
  record = next(policy for policy in policies if policy.rankers[0].name == POLICY)
  params, rank = load_policy(stage.run, record, stage.prompts, stage.mesh).params, _make_rank(stage, stage.decoder, record.mode, test)
  rankers = {POLICY: full}
  for variant, of in compressed.items():
    name = COMPRESSED + variant
    rankers[name] = _measure(stage, name, params | of.memory, functools.partial(rank, histories=of.histories), test)
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


def _measure(stage: StageContext, name: str, params: Any, rank: RankFn, slates: Sequence[Slate]) -> RankerAnswers:
  """Answers in the upstream presentation and in shuffled ones; the first presentation is timed after its compilation."""
  presentations = {"upstream": ("upstream", 0)} | {f"shuffled_{i + 1}": ("shuffled", i) for i in range(stage.options.shuffles)}
  width = max(len(slate.candidates) for slate in slates)
  answers, cost = {}, None
  with stage.task(f"evaluation: {name}", len(presentations) * len(slates), "slates") as task:
    report = stage.on_progress(task)
    for number, (presentation, (mode, index)) in enumerate(presentations.items()):
      shown = [present(len(slate.candidates), mode, (stage.seed, i, index)) for i, slate in enumerate(slates)]
      began = time.perf_counter()
      ranked = rank(params, slates, shown, functools.partial(_report_after, report, number * len(slates)))
      seconds = time.perf_counter() - began
      answers[presentation] = Answers(ranked.rankings, pad_shown(shown, width), ranked.errors)
      if cost is None:
        cost = {"prompt_tokens": float(ranked.prompt_tokens.mean()), "completion_tokens": float(ranked.completion_tokens.mean())}
        if stage.run.main:
          _write_answers(stage.path(f"answers_{name}.jsonl"), slates, ranked, stage.vocabulary)
      else:
        cost["ms_per_slate"] = 1000 * seconds / len(slates)
  return RankerAnswers(answers, cost)


def _report_after(report: Callable[[int], None], before: int, done: int) -> None:
  report(before + done)


def _write_answers(path: pathlib.Path, slates: Sequence[Slate], ranked: RankedSlates, vocabulary: Vocabulary) -> None:
  """One line a slate, in the upstream presentation: the request, the order answered (ids, or null and the error kind), and the text."""
  with path.open("w", encoding="utf-8") as file:
    for slate, ranking, error, completion in zip(slates, ranked.rankings, ranked.errors, ranked.completions, strict=True):
      order = None if error else [slate.candidates[i] for i in ranking if i >= 0]
      line = {
        "user": slate.user,
        "history": slate.history,
        "candidates": slate.candidates,
        "labels": slate.labels,
        "order": order,
        "error": error,
        "completion": vocabulary.decode(completion),
      }
      file.write(json.dumps(line, ensure_ascii=False) + "\n")


def check(config: ConfigDict) -> None:
  """The gain of NDCG, and how many slates."""
  check_choice(config, "evaluation.gain", ("exponential", "linear"))
  check_at_least_one(config, "evaluation.max_slates", "evaluation.batch_size", "evaluation.resamples")


STAGE = Stage(
  "evaluation",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "evaluation"),
  inputs=("data", "tokenize", "slates", "rl"),
  uses=("compress",),
  uses_policies=True,
  format=4,  # titles, weights
  check=check,
)
