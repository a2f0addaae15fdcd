"""Who judges a compressed history: the frozen ranker itself, whose answers can be checked, or a chat endpoint (GR2 Eq 10).

A judge gives solvable s, preservation p̄ and quality q̄; all judges are functions of one type.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.compression.rules import kept_facts, original_tokens, prompt_rows
from gr2_jax.data.schema import Slate
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards
from gr2_jax.rollout.generate import Rollout
from gr2_jax.rollout.rerank import rank_slates
from gr2_jax.teachers.chat import ChatClient

# A difference of half the reward's range is as good, or as bad, as any: most are far smaller, and would otherwise hardly move q̄.
_CLIP = 0.5

RankMetric = Literal["auc", "ndcg"]  # by which the ranker judges


class Question(NamedTuple):
  """A slate and the tokens that would stand in its prompt instead of its history."""

  slate: Slate
  compressed: list[int]


class Verdict(NamedTuple):
  """`solvable` s; `preservation` p̄ and `quality` q̄ in [0, 1]."""

  solvable: bool
  preservation: float
  quality: float


# The one type of every judge: questions in a batch, as many verdicts in their order.
JudgeFn = Callable[[Sequence[Question]], list[Verdict]]


def make_ranker_judge(
  generate: Callable[..., Rollout],
  params: Any,
  context: PromptContext,
  style: PromptStyle,
  *,
  metric: RankMetric,
  batch_size: int,
  length: int,
) -> JudgeFn:
  """The frozen ranker as the judge: its greedy answer with the compressed history against that with the full one.

  q̄ maps the difference of `metric` ("auc", Eq 5, or "ndcg", Eq 6), clipped at ±0.5, to [0, 1]: 0.5 where the order is as good as before.
  s is 1 where the first choice is the same or has a better label. p̄ is the share of facts kept (`compression.rules.kept_facts`).
  `generate`: made for a group of 1. `length`: tokens to which prompts with a compressed history are padded, so that one shape is compiled.
  Answers to full prompts are kept, by slate. The slates' labels are read, so they must be training slates.
  """
  full: dict[Slate, tuple[float, int]] = {}  # as `_score` gives them

  def rank(slates: Sequence[Slate], histories: Sequence[Sequence[int]] | None, length: int | None) -> list[tuple[float, int]]:
    shown = [np.arange(len(slate.candidates)) for slate in slates]
    # Filled up to whole batches, so that the number of questions compiles nothing anew.
    count = -(-len(slates) // batch_size) * batch_size
    picked = [i % len(slates) for i in range(count)]
    ranked = rank_slates(
      generate,
      params,
      [slates[i] for i in picked],
      [shown[i] for i in picked],
      context,
      style,
      batch_size=batch_size,
      key=jax.random.key(0),  # greedy
      histories=None if histories is None else [histories[i] for i in picked],
      length=length,
    )
    return _score(ranked.rankings[: len(slates)], slates, metric)

  def judge(questions: Sequence[Question]) -> list[Verdict]:
    if not questions:
      return []
    new = list(dict.fromkeys(question.slate for question in questions if question.slate not in full))
    if new:
      full.update(zip(new, rank(new, None, None), strict=True))
    slates = [question.slate for question in questions]
    verdicts = []
    for question, (reward, first) in zip(questions, rank(slates, [q.compressed for q in questions], length), strict=True):
      labels = question.slate.labels
      full_reward, full_first = full[question.slate]
      solvable = first >= 0 and (full_first < 0 or first == full_first or labels[first] > labels[full_first])
      facts = kept_facts(question.compressed, prompt_rows(question.slate, context, style), context)
      quality = (np.clip(reward - full_reward, -_CLIP, _CLIP) + _CLIP) / (2 * _CLIP)
      verdicts.append(Verdict(bool(solvable), facts.kept / max(facts.total, 1), float(quality)))
    return verdicts

  return judge


def _score(rankings: np.ndarray, slates: Sequence[Slate], metric: RankMetric) -> list[tuple[float, int]]:
  """(ranking reward, index of the first choice) of each answer; (0, -1) for an invalid one."""
  labels = np.full(rankings.shape, -1)
  for row, slate in enumerate(slates):
    labels[row, : len(slate.labels)] = slate.labels
  shown = np.broadcast_to(np.arange(rankings.shape[1]), rankings.shape)
  answers, by_candidate, order, real = map(jnp.asarray, (rankings[:, None], labels, shown, labels >= 0))
  terms = compute_rewards(RewardConfig(rank=metric), answers, by_candidate, order, mask=real).terms
  rewards = np.asarray(terms.auc if metric == "auc" else terms.ndcg_reward)[:, 0]
  return list(zip(map(float, rewards), map(int, rankings[:, 0]), strict=True))


_INSTRUCTIONS = """You check a shortened purchase history. A re-ranker will read it instead of the full one and order the candidates.
Give three values as one JSON object and nothing else:
"solvable": 1 if the candidates can still be put in a good order from the short history, else 0
"preservation": 1 to 10, how much of what the full history says about the user is still there
"quality": 1 to 10, how good an order can be expected from the short history"""


def make_chat_judge(client: ChatClient, context: PromptContext, style: PromptStyle) -> JudgeFn:
  """A chat endpoint as the judge; it sees the candidates without their labels. Raises ChatError when it does not answer."""

  def judge(questions: Sequence[Question]) -> list[Verdict]:
    return client.ask([_messages(question, context, style) for question in questions], read_verdict)

  return judge


def _messages(question: Question, context: PromptContext, style: PromptStyle) -> list[dict[str, str]]:
  decode = context.vocabulary.decode
  rows = context.catalogue.to_rows(question.slate.candidates)
  candidates = [decode(context.item_tokens(row, style.history_fields, style)) for row in rows]
  text = "\n\n".join(
    [
      f"Full history, oldest first:\n{decode(original_tokens(question.slate, context, style))}",
      f"Short history:\n{decode(question.compressed)}",
      "Candidates:\n" + "\n".join(candidates),
    ]
  )
  return [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": text}]


def read_verdict(text: str) -> Verdict:
  """The last verdict in a judge's answer, a JSON object with s in {0, 1}, p and q from 1 to 10; raises ValueError where there is none."""
  verdicts, reason = [], "no JSON object in the answer"
  decoder = json.JSONDecoder()
  for opening in re.finditer(r"\{", text):
    try:
      fields, _ = decoder.raw_decode(text, opening.start())
    except (ValueError, RecursionError):  # a brace of the prose
      continue
    try:
      verdicts.append(_to_verdict(fields))
    except ValueError as error:
      reason = str(error)
  if not verdicts:
    raise ValueError(reason)
  return verdicts[-1]


def _to_verdict(fields: dict[str, Any]) -> Verdict:
  missing = [name for name in Verdict._fields if not isinstance(fields.get(name), int | float)]
  if missing:
    raise ValueError(f"{missing[0]} is missing or no number")
  solvable, preservation, quality = (fields[name] for name in Verdict._fields)
  if solvable not in (0, 1) or not 1 <= preservation <= 10 or not 1 <= quality <= 10:
    raise ValueError("solvable must be 0 or 1, preservation and quality 1 to 10")
  return Verdict(bool(solvable), preservation / 10, quality / 10)
