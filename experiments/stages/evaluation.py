"""Stage `evaluation`: every order of the test slates, measured side by side; `results.json`, `per_slate.npz` and `card.md`."""

import dataclasses
import json
import time

import numpy as np

from experiments.artifacts import (
  load_catalogue,
  load_context,
  load_log,
  load_policy,
  load_slates,
  load_utilities,
  make_decoder,
  prompt_style,
  slate_constraint,
  stage_key,
)
from experiments.compression import FULL_HISTORIES, load_compressed, time_prefill
from gr2_jax.data.cooccurrence import ItemCounts, TransitionCounts
from gr2_jax.evaluation import baselines
from gr2_jax.evaluation.card import render_console_table, write_card
from gr2_jax.evaluation.features import LogCounts, slate_features, slate_labels
from gr2_jax.evaluation.per_slate import write_per_slate
from gr2_jax.evaluation.results import COMPRESSED, FULL, Answers, Order, build_results, write_results
from gr2_jax.language.prompts import present
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import pad_shown, rank_slates

TIME_NOTE = (
  "Counts (popularity, transitions, co-occurrence; in features and in prompts) use only events before the request's timestamp; events of "
  "the same day do not count. Upstream rankers are fitted across users and may have seen later events of other users."
)
UNTIMED_NOTE = "The slates carry no timestamps: every event of the log counts, and the log holds none of their targets."


def run(config, run, progress, stop):
  """Writes `results.json`, `per_slate.npz`, `card.md` with its plots, and `answers_ORDER.jsonl` (what the language models answered)."""
  options = config.evaluation
  catalogue = load_catalogue(run)
  log = load_log(run, catalogue)
  slates = {split: load_slates(run, catalogue, split) for split in ("train", "validation", "test")}
  slates["test"] = slates["test"][: options.max_slates or None]
  test = slates["test"]
  labels = slate_labels(test)
  orders = _classical_orders(run, catalogue, log, slates, labels)
  stop.check()

  context, style = load_context(run, catalogue, log), prompt_style(run)
  decoder = make_decoder(run, context.vocabulary)
  generate = make_generate(  # compiled once for both
    decoder,
    group=1,
    max_new_tokens=config.rl.max_new_tokens,
    eos_id=context.vocabulary.eos_id,
    pad_id=context.vocabulary.pad_id,
    constraint=slate_constraint(run, context.vocabulary),
  )
  for name, stage in (("sft", "sft"), ("policy", "rl")):
    params = load_policy(run, stage, decoder)
    orders[name] = _policy_order(run, name, params, generate, test, context, style, progress, stop)
  compressed = load_compressed(run, test)  # read by the policy, whose parameters were loaded last
  for variant, of in compressed.items():
    name, reads = COMPRESSED + variant, params | of.memory
    orders[name] = _policy_order(run, name, reads, generate, test, context, style, progress, stop, histories=of.histories)
  if compressed:
    everything = {FULL: FULL_HISTORIES} | {COMPRESSED + variant: of for variant, of in compressed.items()}
    prefill_ms = time_prefill(decoder, params, test, context, style, everything, batch_size=options.batch_size)
    orders |= {name: dataclasses.replace(orders[name], cost=orders[name].cost | {"prefill_ms": ms}) for name, ms in prefill_ms.items()}
  users = [slate.user for slate in test]
  timed = any(slate.timestamp is not None for slate in test)
  results = build_results(
    dataset=config.name,
    seeds=[config.seed],
    labels=labels,
    orders=orders,
    users=users,
    segments=[slate.segment for slate in test],
    train_labels=slate_labels(slates["train"]),
    notes=[TIME_NOTE if timed else UNTIMED_NOTE],
    gain=options.gain,
    bootstrap_seed=config.seed,
    resamples=options.resamples,
  )
  if run.main:
    write_results(run.path("evaluation", "results.json"), results)
    write_per_slate(run.path("evaluation", "per_slate.npz"), orders, labels, users, options.gain)
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
  oracle = baselines.ideal_order(labels) if utilities is None else baselines.utility_order(utilities[: len(test)], labels)
  rankings = {
    "upstream": baselines.upstream_order(labels),
    "random": baselines.random_order(labels, seed),
    "oracle": oracle,
    "popularity": baselines.popularity_order(test, catalogue, ItemCounts.fit(log, catalogue)),
    "last_transition": baselines.last_transition_order(test, catalogue, TransitionCounts.fit(log, catalogue)),
    "lambdamart": baselines.lambdamart_order(lambdamart, features["test"], labels),
  }
  return {name: Order.of(ranking) for name, ranking in rankings.items()}


def _policy_order(run, name, params, generate, slates, context, style, progress, stop, histories=None):
  """Greedy answers in the upstream presentation and in shuffled ones; the first presentation is timed after its compilation."""
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
      ranked = rank_slates(
        generate,
        params,
        slates,
        shown,
        context,
        style,
        batch_size=options.batch_size,
        key=stage_key(run, "evaluation"),
        on_progress=on_progress,
        histories=histories,
      )
      seconds = time.perf_counter() - began
      answers[presentation] = Answers(ranked.rankings, pad_shown(shown, width), ranked.errors)
      if cost is None:
        cost = {"prompt_tokens": float(ranked.prompt_tokens.mean()), "completion_tokens": float(ranked.completion_tokens.mean())}
        if run.main:
          _write_answers(run.path("evaluation", f"answers_{name}.jsonl"), slates, ranked, context.vocabulary)
      else:
        cost["ms_per_slate"] = 1000 * seconds / len(slates)
  return Order(answers, cost)


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
