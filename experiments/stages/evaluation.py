"""Stage `evaluation`: every order of the test slates, measured side by side; `results.json`, `per_slate.npz` and `card.md`."""

import dataclasses
import functools
import json
import time

import numpy as np

from gr2_jax.compression.cache import FULL_HISTORIES, load_compressed, time_prefill
from gr2_jax.data.schema import SPLITS
from gr2_jax.data.slates import slate_labels
from gr2_jax.evaluation import baselines
from gr2_jax.evaluation.per_slate import write_per_slate
from gr2_jax.evaluation.results import COMPRESSED, POLICY, Answers, RankerAnswers, build_results, measure_rankers, write_results
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts
from gr2_jax.evidence.table import LogCounts, slate_features
from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.models.pruning import prune_decoder
from gr2_jax.reports.card import render_console_table, write_card
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import pad_shown, rank_slates
from gr2_jax.rollout.scoring import make_score, rank_by_scores
from gr2_jax.runs.artifacts import (
  direct_style,
  load_catalogue,
  load_context,
  load_log,
  load_policy,
  load_slates,
  load_utilities,
  make_decoder,
  most_new_tokens,
  prompt_style,
  pruned_style,
  run_mesh,
  slate_constraint,
  stage_checkpoints,
  stage_key,
)
from gr2_jax.runs.load import policy_checkpoints
from gr2_jax.steps.start import load_params

TIME_NOTE = (
  "Counts (popularity, transitions, co-occurrence; in features and in prompts) use only events before the request's timestamp; events of "
  "the same day do not count. Upstream rankers are fitted across users and may have seen later events of other users."
)
UNTIMED_NOTE = "The slates carry no timestamps: every event of the log counts, and the log holds none of their targets."

# What a reader calls the policies, in the order of tables.
TITLES = {
  "sft": "SFT policy",
  "opd": "OPD policy",
  POLICY: "RL policy",
  "sft_direct": "SFT without reasoning",
  "direct": "direct policy",
  "direct_scores": "direct policy, one pass",
  "pruned": "pruned policy",
}
# The ranker to beat, what the policy started from, what answers without reasoning give up: beside the upstream order.
PAIRS = (
  (POLICY, "lambdamart"),
  (POLICY, "sft"),
  (POLICY, "opd"),
  ("direct", POLICY),
  ("direct_scores", "direct"),
  ("pruned", POLICY),
)
PRIORS = ("opd", "sft")  # what RL may have started from, the latest stage first


def run(config, run, progress, stop):
  """Writes `results.json`, `per_slate.npz`, `card.md` with its plots, and `answers_ORDER.jsonl` (what the language models answered).

  With an SFT policy that was taught without reasoning also `hard_slates.json`.
  """
  options = config.evaluation
  catalogue = load_catalogue(run)
  log = load_log(run, catalogue)
  slates = {split: load_slates(run, catalogue, split) for split in SPLITS}
  slates["test"] = slates["test"][: options.max_slates or None]
  test = slates["test"]
  labels = slate_labels(test)
  orders = _classical_orders(run, catalogue, log, slates, labels)
  stop.check()

  context, style = load_context(run, catalogue, log), prompt_style(run)
  decoder = make_decoder(run, context.vocabulary)
  reason = _make_ranker(run, decoder, context, style, config.rl.max_new_tokens)
  for name, stage in {"sft": "sft", "opd": "opd", "policy": "rl"}.items():
    if run.done(stage) is None:  # not needed by this config
      continue
    orders[name] = _policy_order(run, name, load_policy(run, stage, decoder), reason, test, context, progress, stop)
  orders |= _direct_orders(run, decoder, test, context, progress, stop)
  subsets = {}
  if config.sft.without_reasoning:
    subsets["reasoning_hard"] = _find_hard_slates(run, orders["sft_direct"], labels)
  if config.prune.layers:
    orders["pruned"] = _pruned_order(run, decoder, test, context, progress, stop)
  orders |= _compressed_orders(run, decoder, context, style, orders["policy"], reason, test, progress, stop)
  metrics = measure_rankers(orders, labels, options.gain)
  users = [slate.user for slate in test]
  weights = np.array([slate.weight for slate in test])
  timed = any(slate.timestamp is not None for slate in test)
  results = build_results(
    dataset=config.name,
    seeds=[config.seed],
    labels=labels,
    rankers=orders,
    titles=TITLES,
    pairs=[*PAIRS, *((name, POLICY) for name in orders if name.startswith(COMPRESSED))],
    priors=PRIORS,
    users=users,
    segments=[slate.segment for slate in test],
    subsets=subsets,
    weights=weights,
    train_labels=slate_labels(slates["train"]),
    notes=[TIME_NOTE if timed else UNTIMED_NOTE],
    gain=options.gain,
    metrics=metrics,
    bootstrap_seed=config.seed,
    resamples=options.resamples,
  )
  if run.main:
    write_results(run.path("evaluation", "results.json"), results)
    write_per_slate(run.path("evaluation", "per_slate.npz"), metrics, users, weights)
    write_card(run.directory)
  progress.console.print(render_console_table(results))


def _classical_orders(run, catalogue, log, slates, labels):
  test, seed = slates["test"], run.config.seed
  utilities = load_utilities(run, "test")
  vectors = np.load(run.path("tokenize", "vectors.npy"))
  counts = LogCounts.fit(log, catalogue)
  features = {split: slate_features(of_split, catalogue, counts, vectors) for split, of_split in slates.items()}
  lambdamart = baselines.fit_lambdamart(
    features["train"], slate_labels(slates["train"]), features["validation"], slate_labels(slates["validation"]), seed=seed
  )
  oracle = baselines.ideal_ranking(labels) if utilities is None else baselines.utility_ranking(utilities[: len(test)], labels)
  rankings = {
    "upstream": baselines.upstream_ranking(labels),
    "random": baselines.random_ranking(labels, seed),
    "oracle": oracle,
    "popularity": baselines.popularity_ranking(test, catalogue, ItemCounts.fit(log, catalogue)),
    "last_transition": baselines.last_transition_ranking(test, catalogue, TransitionCounts.fit(log, catalogue)),
    "lambdamart": baselines.lambdamart_ranking(lambdamart, features["test"], labels),
  }
  return {name: RankerAnswers.of(ranking) for name, ranking in rankings.items()}


def _make_ranker(run, decoder, context, style, max_new_tokens):
  """`rank(params, slates, shown, on_progress) -> RankedSlates` by greedy answers in one style, compiled once for all policies."""
  generate = make_generate(
    decoder,
    group=1,
    max_new_tokens=max_new_tokens,
    eos_id=context.vocabulary.eos_id,
    pad_id=context.vocabulary.pad_id,
    constraint=slate_constraint(run, context.vocabulary, style),
  )
  batch_size, key = run.config.evaluation.batch_size, stage_key(run, "evaluation")

  def rank(params, slates, shown, on_progress, histories=None):
    return rank_slates(
      generate, params, slates, shown, context, style, batch_size=batch_size, key=key, on_progress=on_progress, histories=histories
    )

  return rank


def _make_scorer(run, decoder, context, style):
  """The same by one-pass scores."""
  score = make_score(decoder, context.vocabulary, style, slate_constraint(run, context.vocabulary, style))

  def rank(params, slates, shown, on_progress):
    batch_size = run.config.evaluation.batch_size
    return rank_by_scores(score, params, slates, shown, context, style, batch_size=batch_size, on_progress=on_progress)

  return rank


def _direct_orders(run, decoder, test, context, progress, stop):
  """Answers without reasoning: of the SFT policy that never saw any, and of the direct policy, with the latter's one-pass scores."""
  style = direct_style(run)
  answer = _make_ranker(run, decoder, context, style, most_new_tokens(run, test, context.vocabulary, style))
  rankers = {}
  if run.config.sft.without_reasoning:
    rankers["sft_direct"] = (load_params(decoder, stage_checkpoints(run, "sft", "without_reasoning"), run_mesh(run)), answer)
  if run.config.direct.steps:
    direct = load_policy(run, "direct", decoder)
    rankers["direct"] = (direct, answer)
    if style.answer == "compact":
      rankers["direct_scores"] = (direct, _make_scorer(run, decoder, context, style))
  return {name: _policy_order(run, name, *ranker, test, context, progress, stop) for name, ranker in rankers.items()}


def _pruned_order(run, decoder, test, context, progress, stop):
  """Answers of the pruned policy, in the way of the one that was pruned."""
  style, decoder = pruned_style(run), prune_decoder(decoder, run.config.prune.layers)
  answer = _make_ranker(run, decoder, context, style, most_new_tokens(run, test, context.vocabulary, style))
  params = load_params(decoder, policy_checkpoints(run, "prune"), run_mesh(run))
  return _policy_order(run, "pruned", params, answer, test, context, progress, stop)


def _compressed_orders(run, decoder, context, style, full, reason, test, progress, stop):
  """The policy on compressed histories; with any, also its order on full ones, `full`, with the time that their prompts take."""
  compressed = load_compressed(run, test)
  if not compressed:
    return {}
  params, orders = load_policy(run, "rl", decoder), {POLICY: full}
  for variant, of in compressed.items():
    name, rank = COMPRESSED + variant, functools.partial(reason, histories=of.histories)
    orders[name] = _policy_order(run, name, params | of.memory, rank, test, context, progress, stop)
  read = {POLICY: FULL_HISTORIES} | {COMPRESSED + variant: of for variant, of in compressed.items()}
  prefill_ms = time_prefill(decoder, params, test, context, style, read, batch_size=run.config.evaluation.batch_size)
  return {name: dataclasses.replace(order, cost=order.cost | {"prefill_ms": prefill_ms[name]}) for name, order in orders.items()}


def _find_hard_slates(run, order, labels):
  """Slates `[n]` whose target SFT without reasoning does not put first: those on which reasoning has work to do.

  Which slates they are stands in `hard_slates.json`. The policy that chooses them shares only mid-training with those compared.
  """
  first = order.answers["upstream"].rankings[:, 0]
  hard = (first < 0) | (np.take_along_axis(labels, np.maximum(first, 0)[:, None], axis=1)[:, 0] <= 0)
  report = {
    "policy": "SFT on the answers of the traces, without their reasoning (sft/without_reasoning)",
    "answers": "greedy, candidates shown in the upstream order",
    "n": int(hard.sum()),
    "of": len(hard),
    "indices": np.flatnonzero(hard).tolist(),
  }
  if run.main:
    write_json(run.path("evaluation", "hard_slates.json"), report)
  return hard


def _policy_order(run, name, params, rank, slates, context, progress, stop):
  """Answers in the upstream presentation and in shuffled ones; the first presentation is timed after its compilation."""
  options = run.config.evaluation
  presentations = {"upstream": ("upstream", 0)} | {f"shuffled_{i + 1}": ("shuffled", i) for i in range(options.shuffles)}
  width = max(len(slate.candidates) for slate in slates)
  answers, cost = {}, None
  with progress.task(f"evaluation: {name}", len(presentations) * len(slates), "slates") as task:
    for number, (presentation, (mode, index)) in enumerate(presentations.items()):
      shown = [present(len(s.candidates), mode, (run.config.seed, i, index)) for i, s in enumerate(slates)]

      def on_progress(done, number=number):
        task.update(number * len(slates) + done)
        stop.check()

      began = time.perf_counter()
      ranked = rank(params, slates, shown, on_progress)
      seconds = time.perf_counter() - began
      answers[presentation] = Answers(ranked.rankings, pad_shown(shown, width), ranked.errors)
      if cost is None:
        cost = {"prompt_tokens": float(ranked.prompt_tokens.mean()), "completion_tokens": float(ranked.completion_tokens.mean())}
        if run.main:
          _write_answers(run.path("evaluation", f"answers_{name}.jsonl"), slates, ranked, context.vocabulary)
      else:
        cost["ms_per_slate"] = 1000 * seconds / len(slates)
  return RankerAnswers(answers, cost)


def _write_answers(path, slates, ranked, vocabulary):
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
