"""Scored policies with a run's files: what they read of slates, their trainings, and how they rank."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.schema import Catalogue, Slate
from gr2_jax.data.slates import label_shares, pad_rows, slate_labels
from gr2_jax.evidence.facts import LM_SCORE
from gr2_jax.evidence.items import unit_vectors
from gr2_jax.language.statements import are_true, read_reason
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.pruning import prune_config
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.numerics import OUT_OF_REACH, filled_batches
from gr2_jax.rl.draw import draw_indices
from gr2_jax.rollout.reasoned import Thoughts, make_think, score_thoughts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.true_facts import TrueFacts
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.load import TabledFacts, load_vocabulary
from gr2_jax.runs.run import Run
from gr2_jax.runs.starts import model_config
from gr2_jax.runs.training import begin, train
from gr2_jax.settings import check_settings, setting
from gr2_jax.steps.scored import ScoredLoss
from gr2_jax.steps.start import Start
from gr2_jax.steps.update import make_update
from gr2_jax.training.loop import batch_step
from gr2_jax.training.mesh import jit_update, put_replicated
from gr2_jax.training.state import TrainState

SLATES_AT_ONCE = 512  # that are scored in one call
TARGETS = ("label", "tree", "mixture")


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
  """The form of answers. Raises ValueError."""

  form: str = setting(
    "written",
    "written: a permutation token by token; scored: one pass gives every candidate a score, of which the answer is a Plackett-Luce draw",
    choices=("written", "scored"),
  )
  dropout: float = setting(0.1, "share of what a scored policy reads of a slate that is left out in supervised training", low=0, below=1)
  texts: bool = setting(False, "whether a scored policy reads past items and candidates by their text vectors as well, not by facts alone")
  past: int = setting(10, "latest items of a history that are read where texts are", unit="items", low=1)
  text_dropout: float = setting(
    0.2, "share of slates in supervised training whose candidates come without their text vectors", low=0, below=1
  )
  names: bool = setting(
    False,
    "whether a scored policy reads with a candidate's facts the name by which reasonings call it, and so need not learn it from the "
    "upstream rank",
  )
  evaluate_every: int = setting(50, "steps between validations of a scored policy, of which the best step is kept", unit="steps", low=1)

  def __post_init__(self) -> None:
    check_settings(self)
    if self.texts and self.form != "scored":
      raise ValueError("texts: written answers read the items' words in the prompt; set it to False, or form to scored")
    if self.names and self.form != "scored":
      raise ValueError("names: written answers read them in the prompt; set it to False, or form to scored")


@dataclasses.dataclass(frozen=True, eq=False)
class ItemTexts:
  """What scored policies read of items besides facts: text `vectors [N + 1, C]` of length 1, zeros for none at the end.

  `history`: the latest items of a history that are read. Both are 0 wide where policies read no texts.
  """

  catalogue: Catalogue
  vectors: np.ndarray
  history: int

  @classmethod
  def load(cls, run: Run, catalogue: Catalogue) -> "ItemTexts":
    """Those that the run's policies read."""
    if not run.config.answer.texts:
      return cls(catalogue, np.zeros((len(catalogue) + 1, 0), np.float32), 0)
    units = unit_vectors(catalogue, np.load(run.path("tokenize", "vectors.npy")))
    return cls(catalogue, np.pad(units, ((0, 1), (0, 0))), run.config.answer.past)

  def rows(self, slates: Sequence[Slate]) -> tuple[np.ndarray, np.ndarray]:
    """Catalogue rows of the candidates `[n, K]`, and of the past items `[n, history]`, the latest last; -1 where there is none."""
    past = np.full((len(slates), self.history), -1, np.int32)
    for row, slate in zip(past, slates, strict=True):
      known = min(len(slate.history), self.history)
      row[self.history - known :] = self.catalogue.to_rows(slate.history[len(slate.history) - known :])
    return pad_rows([self.catalogue.to_rows(slate.candidates) for slate in slates]), past

  def pack(self, facts: np.ndarray, candidates: np.ndarray, past: np.ndarray) -> PackedSlates:
    """Slates as the model reads them, of facts `[P, K, F]` and the rows of their items."""
    return PackedSlates(facts, candidates >= 0, past >= 0, self.vectors[candidates], self.vectors[past])


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredSlates:
  """n slates as arrays: `facts [n, K, F]` as policies read them, `labels [n, K]` (-1 at padding), `weights [n]`.

  `items`: what they read of items, where `candidates [n, K]` and `past [n, H]` are, see `ItemTexts`.
  """

  facts: np.ndarray
  labels: np.ndarray
  weights: np.ndarray
  candidates: np.ndarray
  past: np.ndarray
  items: ItemTexts

  @classmethod
  def load(cls, stage: StageContext, split: str) -> "ScoredSlates":
    """The run's slates of a split."""
    slates, items = stage.slates(split), ItemTexts.load(stage.run, stage.catalogue)
    weights = np.array([slate.weight for slate in slates], np.float32)
    return cls(FactTables(stage.run).read(split), slate_labels(slates), weights, *items.rows(slates), items)

  def __len__(self) -> int:
    return len(self.facts)

  def take(self, indices: np.ndarray) -> "ScoredSlates":
    """Some of them."""
    facts, labels, weights = self.facts[indices], self.labels[indices], self.weights[indices]
    return ScoredSlates(facts, labels, weights, self.candidates[indices], self.past[indices], self.items)

  def parts(self) -> Iterator[PackedSlates]:
    """All of them, some at a time and always as many: behind the last come the first again."""
    size = min(SLATES_AT_ONCE, len(self))
    yield from map(self.pack, filled_batches(len(self), size))

  def pack(self, indices: np.ndarray) -> PackedSlates:
    """Some of them, as the model reads them."""
    return self.items.pack(self.facts[indices], self.candidates[indices], self.past[indices])


def is_reasoned(config: ConfigDict) -> bool:
  """Whether the scored policies of SFT and RL reason before they score."""
  return config.answer.form == "scored" and not config.prompt.direct


def scored_mode(config: ConfigDict) -> str:
  """How the scored policies of SFT, OPD and RL are asked."""
  return "reason" if is_reasoned(config) else "score"


def make_scorer(
  config: ConfigDict,
  vocabulary: Vocabulary,
  facts: Sequence[str],
  bins: int,
  content_dim: int,
  *,
  layers: Sequence[int] | None = None,
  learns: bool = False,
) -> SlateScorer:
  """The scorer of a config that reads `facts` in codes of `bins` and, where it reads texts, vectors of `content_dim`; see `open_scorer`."""
  options, whole = config.answer, model_config(config, vocabulary)
  return SlateScorer(
    whole if layers is None else prune_config(whole, layers),
    shape=(len(facts), bins),
    prior=facts.index(LM_SCORE) if LM_SCORE in facts else None,
    content_dim=content_dim if options.texts else 0,
    dropout=options.dropout if learns else 0.0,
    content_dropout=options.text_dropout if learns else 0.0,
    first_name=vocabulary.candidate_start if options.names else None,
  )


def open_scorer(run: Run, *, layers: Sequence[int] | None = None, learns: bool = False) -> SlateScorer:
  """The run's scorer, of these `layers` (None: whole); where it `learns` by supervision, with the config's dropout."""
  codes, vocabulary = FactTables(run).codes, load_vocabulary(run)
  content_dim = np.load(run.path("tokenize", "vectors.npy"), mmap_mode="r").shape[1] if run.config.answer.texts else 0
  return make_scorer(run.config, vocabulary, codes.names, codes.bins, content_dim, layers=layers, learns=learns)


def thought_constraint(run: Run) -> TrueFacts | None:
  """What reasonings before scores may say, in every stage alike; None: anything."""
  return TrueFacts(load_vocabulary(run), FactTables(run).codes.names) if run.config.decoding.constraint == "facts" else None


def mix_targets(run: Run, slates: ScoredSlates, kind: str) -> np.ndarray:
  """What is learnt of the training slates, `[n, K]` in sums of 1: a kind of TARGETS.

  `label`: labels alone; `tree`: the softmax of the out-of-fold tree's scores; `mixture`: half and half. A slate without a positive label
  has no label to learn.
  """
  real = slates.labels >= 0
  gains = label_shares(slates.labels)
  if kind == "label":
    return gains.astype(np.float32)
  soft = np.asarray(jax.nn.softmax(jnp.where(real, FactTables(run).teacher, OUT_OF_REACH), axis=-1))
  return np.where(real, soft if kind == "tree" else (gains + soft) / 2, 0).astype(np.float32)


class ScoredAnswers(NamedTuple):
  """Scores `[n, K]` of slates, of which those of the padding mean nothing, and the tokens of the reasoning before each, n lists."""

  scores: np.ndarray
  thoughts: list[list[int]]


# answer(params, slates) -> ScoredAnswers
Answer = Callable[[Any, ScoredSlates], ScoredAnswers]
# think(params, those where the training began (None: not asked for), step, slates of a batch, their places [P] among all) -> what is
# learnt of them besides
Think = Callable[[Any, Any, int, PackedSlates, np.ndarray], dict[str, Any]]
# judge(places [P] of slates, reasonings and their mask [P, G, L]) -> arrays by name
JudgeThoughts = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]


def train_scored(
  stage: StageContext,
  make_loss: Callable[[SlateScorer], ScoredLoss],
  slates: ScoredSlates,
  learnt: Mapping[str, np.ndarray],
  batch_size: int,
  score: Callable[[np.ndarray], float],
  *,
  validation: ScoredSlates,
  reasoned: bool,
  init: Start | None = None,
  drop_out: bool = True,
  name: str = "checkpoints",
  headline: Sequence[str] = ("loss", "entropy"),
  think: Think | None = None,
  anchored: bool = False,
  layers: Sequence[int] | None = None,
  frozen: tuple[Any, ...] = (),
  at_step: Callable[[jax.Array], Mapping[str, jax.Array]] = lambda step: {},
) -> None:
  """Trains the run's scorer, from `init` or random parameters, on slates and what is `learnt` of each (arrays `[n, ...]` by name).

  The training's settings are those of the stage's section. `score(scores of the validation slates [n, K])`, after a reasoning where
  answers are `reasoned`, chooses the step that is kept. `drop_out`: with the config's dropout. `think`: what the policy itself adds to a
  batch; `anchored`: seeing also where it began, which for adapters is their base, of which there is no second copy. `layers`: of a scorer
  that is cut. `frozen`: what the loss reads behind the edges, such as a teacher's parameters, and `at_step(step)` what it is told by name
  beside its key.
  """
  model, edges = open_scorer(stage.run, layers=layers, learns=drop_out), put_replicated(FactTables(stage.run).codes.edges, stage.mesh)
  begun = begin(stage, model, stage.name, init)
  # A copy, since a step takes the state's arrays over.
  base, began = stage.key, begun.whole(jax.tree.map(jnp.copy, begun.state.params)) if anchored else None
  update = make_update(
    begun.optimizer,
    make_loss(model),
    whole_batch=lambda step, batch: {"key": jax.random.fold_in(base, step), **at_step(step)},
    join=begun.join,
  )
  drawn = draw_indices(len(slates), batch_size, stage.seed)

  def get_batch(state: TrainState) -> dict[str, Any]:
    indices = next(drawn)["slate"]
    packed = slates.pack(indices)
    batch = {"slates": packed, "weights": slates.weights[indices]} | {of: array[indices] for of, array in learnt.items()}
    return batch if think is None else batch | think(begun.whole(state.params), began, int(state.step), packed, indices)

  step = batch_step(jit_update(update, stage.mesh, begun.shardings, frozen=(*begun.frozen, edges, *frozen)), get_batch)
  answer = make_answer(stage.run, reasoned=reasoned, layers=layers)
  best = (lambda params: score(answer(begun.whole(params), validation).scores), stage.config.answer.evaluate_every)
  train(stage, stage.name, begun, step, drawn, name=name, headline=headline, best=best)


def make_own_thoughts(stage: StageContext, *, group: int, layers: Sequence[int] | None = None, judge: JudgeThoughts | None = None) -> Think:
  """`group` reasonings of the policy, drawn at temperature 1, about each slate of a batch: `thoughts, thought_mask [P, G, L]`.

  Where it sees the parameters where training began also the log-probabilities that their tokens have there: `start_log_probs [P, G, L]`.
  With `judge` also what it finds, on the host.
  """
  model, edges = open_scorer(stage.run, layers=layers), jnp.asarray(FactTables(stage.run).codes.edges)
  opening, constraint = stage.vocabulary.special("think"), thought_constraint(stage.run)
  limit = stage.config.decoding.max_new_tokens
  generate = make_think(model, stage.vocabulary, group=group, max_new_tokens=limit, constraint=constraint)
  sampling, base = Sampling.create(temperature=1.0), jax.random.fold_in(stage.key, 1)

  @jax.jit
  def think(params: Any, start: Any, slates: PackedSlates, key: jax.Array) -> dict[str, jax.Array]:
    found = generate(params, slates, edges, key, sampling)
    thoughts = Thoughts(found.completions, found.completion_mask)
    drawn = {"thoughts": thoughts.tokens, "thought_mask": thoughts.mask}
    if start is None:
      return drawn
    return drawn | {"start_log_probs": score_thoughts(model, start, slates, edges, thoughts, opening, constraint=constraint).log_probs}

  def own_thoughts(params: Any, start: Any, step: int, slates: PackedSlates, indices: np.ndarray) -> dict[str, Any]:
    drawn = think(params, start, slates, jax.random.fold_in(base, step))
    if judge is None:
      return drawn
    return drawn | judge(indices, *jax.device_get((drawn["thoughts"], drawn["thought_mask"])))

  return own_thoughts


def make_truth_judge(stage: StageContext, slates: Sequence[Slate]) -> JudgeThoughts:
  """What reasonings about some of the run's slates say: `truth [P, G]`, the share of their statements that is true, 0 where they state
  nothing, and `named [P, G]`, the candidate that they call the best, -1 for none."""
  facts = TabledFacts(stage.run, stage.catalogue)

  def judge(indices: np.ndarray, thoughts: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    truth, named = np.zeros(thoughts.shape[:2], np.float32), np.full(thoughts.shape[:2], -1, np.int32)
    for row, index in enumerate(indices.tolist()):
      slate = slates[index]
      for member, (tokens, written) in enumerate(zip(thoughts[row], mask[row], strict=True)):
        reason = read_reason(tokens[written].tolist(), slate, range(len(slate.candidates)), stage.prompts, stage.style)
        true = are_true(reason, slate, stage.prompts, stage.style, facts)
        truth[row, member] = sum(true) / max(len(true), 1)
        named[row, member] = -1 if reason.first is None else reason.first
    return {"truth": truth, "named": named}

  return judge


def make_answer_batch(
  run: Run, *, reasoned: bool, layers: Sequence[int] | None = None
) -> Callable[[Any, PackedSlates], tuple[jax.Array, Thoughts | None]]:
  """The compiled `answer(params, slates) -> (scores [P, K], the reasoning before them)`: at once, or after the likeliest reasoning."""
  model, edges = open_scorer(run, layers=layers), jnp.asarray(FactTables(run).codes.edges)
  if not reasoned:
    return jax.jit(lambda params, slates: (model.apply({"params": params}, slates, edges), None))
  vocabulary = load_vocabulary(run)
  limit = run.config.decoding.max_new_tokens
  think = make_think(model, vocabulary, group=1, max_new_tokens=limit, constraint=thought_constraint(run))
  greedy, opening = Sampling.create(temperature=0.0), vocabulary.special("think")

  @jax.jit
  def answer(params: Any, slates: PackedSlates) -> tuple[jax.Array, Thoughts]:
    found = think(params, slates, edges, jax.random.key(0), greedy)
    thoughts = Thoughts(found.completions, found.completion_mask)
    return score_thoughts(model, params, slates, edges, thoughts, opening).scores[:, 0], thoughts

  return answer


def make_answer(run: Run, *, reasoned: bool, layers: Sequence[int] | None = None) -> Answer:
  """How the run's scorer answers many slates, see `make_answer_batch`."""
  answer_batch = make_answer_batch(run, reasoned=reasoned, layers=layers)

  def answer(params: Any, slates: ScoredSlates) -> ScoredAnswers:
    scores, texts = [], []
    for part in slates.parts():
      of_part, thoughts = jax.device_get(answer_batch(params, part))
      scores.append(of_part)
      texts += read_thoughts(thoughts, len(of_part))
    return ScoredAnswers(np.concatenate(scores)[: len(slates)], texts[: len(slates)])

  return answer


def make_rescore(run: Run, *, layers: Sequence[int] | None = None) -> Callable[[Any, ScoredSlates, Sequence[Sequence[int]]], np.ndarray]:
  """`rescore(params, slates, thoughts) -> scores [n, K]` of the run's scorer behind reasonings that are given, n lists of tokens."""
  model, edges = open_scorer(run, layers=layers), jnp.asarray(FactTables(run).codes.edges)
  vocabulary, limit = load_vocabulary(run), run.config.decoding.max_new_tokens
  opening = vocabulary.special("think")
  score = jax.jit(lambda params, slates, thoughts: score_thoughts(model, params, slates, edges, thoughts, opening).scores[:, 0])

  def rescore(params: Any, slates: ScoredSlates, thoughts: Sequence[Sequence[int]]) -> np.ndarray:
    tokens = np.full((len(slates), 1, limit), vocabulary.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, thought in enumerate(thoughts):
      tokens[row, 0, : len(thought)], mask[row, 0, : len(thought)] = thought, True
    parts = filled_batches(len(slates), min(SLATES_AT_ONCE, len(slates)))
    found = [jax.device_get(score(params, slates.pack(rows), Thoughts(tokens[rows], mask[rows]))) for rows in parts]
    return np.concatenate(found)[: len(slates)]

  return rescore


def read_thoughts(thoughts: Thoughts | None, rows: int) -> list[list[int]]:
  """The tokens of one reasoning a row, with the one that ends it; nothing where there is none."""
  if thoughts is None:
    return [[] for _ in range(rows)]
  return [tokens[0][mask[0]].tolist() for tokens, mask in zip(thoughts.tokens, thoughts.mask, strict=True)]
