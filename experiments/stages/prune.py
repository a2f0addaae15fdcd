"""Stage `prune`: the layers that change the hidden state least are dropped, and the full model teaches the rest on its own answers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_training
from experiments.scored import check_free_reasons, learn_from_teacher
from gr2_jax.errors import ConfigError
from gr2_jax.files import write_json
from gr2_jax.language.prompts import PromptStyle, present
from gr2_jax.models.pruning import block_influence, choose_layers, prune_decoder, prune_params, scored_block_influence
from gr2_jax.objectives.distillation import DistillationConfig
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rl.draw import Drawn
from gr2_jax.rl.options import PRESENTATIONS, read_rollout_options
from gr2_jax.rollout.rerank import render_prompts
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.load import load_trained
from gr2_jax.runs.policies import LAYERS_FILE, PolicyRecord, RankerRecord, read_kept_layers
from gr2_jax.runs.policy_training import completion_batch, make_local_roll_out, make_stream, train_by_loss
from gr2_jax.runs.scored import ScoredSlates, is_reasoned, open_scorer
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.starts import foreseen_model
from gr2_jax.runs.teacher import ScoredTeacher
from gr2_jax.runs.training import TrainingOptions
from gr2_jax.settings import check_settings, setting, spread
from gr2_jax.steps.direct import make_distillation_loss
from gr2_jax.steps.opd import OpdConfig
from gr2_jax.training.mesh import put_replicated, to_global
from gr2_jax.training.state import OptimizerConfig

INIT = Init("prune.init", ("rl", "direct"))
RANKINGS = 8  # drawn after each reasoning of a scored policy that recovers


@dataclasses.dataclass(frozen=True)
class PruneOptions:
  """Which layers are dropped, and how the rest recovers: the full model teaches it on its own answers. Raises ValueError."""

  enabled: bool = setting(False, "whether there is a pruned policy")
  layers: int = setting(2, "layers that are kept: those that change the hidden state most", low=1)
  init: str = setting("rl", "the policy that is cut; with direct its answers come without reasoning", choices=INIT.choices)
  slates: int = setting(64, "training slates on whose prompts the layers' influence is measured", unit="slates", low=1)
  prompts: int = setting(16, "slates of a batch, over all processes", unit="slates", low=1)
  group: int = setting(8, "answers to a prompt", unit="answers", low=1)
  temperature: float = setting(1.0, "temperature at which answers are drawn", above=0)
  presentation: str = setting("shuffled", "the order in which candidates are shown", choices=PRESENTATIONS)
  # With 0 steps of recovery the policy stays as it is cut.
  training: TrainingOptions = spread(TrainingOptions(60, OptimizerConfig(1e-3, warmup_steps=5), save_every=25, log_every=1))

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `layers.json`, the parameters left in `pruned`, and with steps of recovery `checkpoints`."""
  options: PruneOptions = stage.options
  if stage.config.answer.form == "scored":
    return _prune_scored(stage)
  style = stage.direct_style if options.init == "direct" else stage.style
  params = stage.load_params(options.init)
  _cut(stage, functools.partial(_measure_on_prompts, stage, params, style), functools.partial(prune_params, params))
  if options.training.steps:
    _recover(stage, params, style)


def _prune_scored(stage: StageContext) -> None:
  """The same of a scorer's decoder, whose influence is measured on packed slates; recovery is on rankings drawn from its scores."""
  options: PruneOptions = stage.options
  model, slates = open_scorer(stage.run), ScoredSlates.load(stage, "train")
  params = load_trained(stage.run, model, stage.mesh, options.init)
  edges = put_replicated(FactTables(stage.run).codes.edges, stage.mesh)

  def measure(indices: np.ndarray) -> tuple[jax.Array, jax.Array]:
    with jax.set_mesh(stage.mesh):
      return jax.jit(scored_block_influence, static_argnums=0)(model, params, to_global(slates.pack(indices), stage.mesh), edges)

  _cut(stage, measure, lambda layers: {**params, "decoder": prune_params(params["decoder"], layers)})
  if options.training.steps:
    learn_from_teacher(
      stage,
      ScoredTeacher(stage.run, params, slates.facts),
      OpdConfig(DistillationConfig(beta=1.0, beta_end=1.0), reward_weight=0.0, temperature=options.temperature),
      RewardConfig(),
      init=stage.checkpoints("prune", "pruned"),
      batch_size=options.prompts,
      group=options.group,
      rankings=RANKINGS,
      reasoned=_is_reasoned(stage.config),
      layers=read_kept_layers(stage.path()),
    )


def _is_reasoned(config: ConfigDict) -> bool:
  """Whether the scored policy that is cut reasons."""
  return is_reasoned(config) and config.prune.init == "rl"


def _cut(stage: StageContext, measure: Callable[[np.ndarray], tuple[jax.Array, jax.Array]], prune: Callable[[Sequence[int]], Any]) -> None:
  """Keeps what `prune(layers)` leaves, of the layers of most influence by `measure(indices of training slates)`."""
  cut = stage.checkpoints("prune", "pruned")
  if cut.steps():
    return
  layers = _choose(stage, measure)
  with cut:
    cut.save(0, {"params": prune(layers)}, {})
  stage.say(f"layers kept: {', '.join(map(str, layers))} of {stage.decoder.config.num_layers}")


def _choose(stage: StageContext, measure: Callable[[np.ndarray], tuple[jax.Array, jax.Array]]) -> list[int]:
  """Layers to keep, by their influence on training slates drawn by the run's seed; `layers.json` tells it of all."""
  options, slates, rng = stage.options, stage.slates("train"), np.random.default_rng(stage.seed)
  rows = stage.mesh.shape["data"] * stage.mesh.shape["fsdp"]
  number = -(-min(options.slates, len(slates)) // rows) * rows
  changes, count = measure(rng.choice(len(slates), number, replace=number > len(slates)))
  influence = np.asarray(changes) / float(count)
  layers = choose_layers(influence, options.layers)
  if stage.run.main:
    report = {"kept": layers, "influence": influence.tolist(), "slates": number, "tokens": int(count)}
    write_json(stage.path(LAYERS_FILE), report)
  return layers


def _measure_on_prompts(stage: StageContext, params: Any, style: PromptStyle, indices: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """`block_influence` on the prompts of training slates."""
  chosen = [stage.slates("train")[i] for i in indices]
  shown = [present(len(slate.candidates), stage.options.presentation, (stage.seed, i, 0)) for i, slate in enumerate(chosen)]
  prompts = render_prompts(chosen, shown, stage.prompts, style)
  tokens, mask = to_global((prompts.tokens, prompts.mask), stage.mesh)
  with jax.set_mesh(stage.mesh):
    return jax.jit(block_influence, static_argnums=0)(stage.decoder, params, tokens, mask)


def _recover(stage: StageContext, teacher: Any, style: PromptStyle) -> None:
  """On-policy distillation without a reward: the pruned policy answers, and the full one scores its tokens."""
  pruned = prune_decoder(stage.decoder, read_kept_layers(stage.path()))
  rollout = read_rollout_options(stage.options, stage.most_new_tokens(style))
  stream = make_stream(stage, style, rollout)
  answer = make_local_roll_out(stage, pruned, style, rollout)

  def make_batch(params: Any, step: int, drawn: Drawn) -> dict[str, np.ndarray]:
    answers = answer(params, drawn, jax.random.fold_in(stage.key, step))
    batch = completion_batch(drawn, answers.completions, answers.completion_mask)
    return batch | {"teacher_prompts": drawn.prompts.tokens, "teacher_mask": drawn.prompts.mask}

  loss_fn = make_distillation_loss(pruned, stage.decoder, stage.constraint(style))
  init = stage.checkpoints("prune", "pruned")
  train_by_loss(stage, pruned, init, stream, loss_fn, make_batch, frozen=(teacher,))


def check(config: ConfigDict) -> None:
  """Layers that there are, and a policy to cut."""
  prune = config.prune
  if not prune.enabled:
    return
  check_training(config, "prune")
  if prune.steps:
    check_free_reasons(config, "prune")
  if prune.layers > (depth := foreseen_model(config).num_layers):
    raise ConfigError(f"--config.prune.layers: {prune.layers} of the {depth} layers of the model cannot be kept")
  if prune.init == "direct" and not config.direct.enabled:
    raise ConfigError("--config.prune.init: there is no direct policy to prune; set --config.direct.enabled=True, or prune rl")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Prompts of a step of recovery."""
  return {"prune.prompts": (config.prune.prompts, 1)} if config.prune.enabled and config.prune.steps else {}


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The pruned policy, which answers as the one that was cut; as it is where there was no recovery."""
  form, direct = config.answer.form, config.prompt.direct or config.prune.init == "direct"
  mode = ("score" if form == "scored" else "direct") if direct else "reason"
  ranker = RankerRecord("pruned", "pruned policy", mode, against=("policy", "direct") if form == "scored" else ("policy",))
  return (PolicyRecord("prune", (ranker,), "checkpoints" if config.prune.steps else "pruned", config.prune.layers, form=form),)


STAGE = Stage(
  "prune",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "answer", "prune"),
  options=PruneOptions,
  inputs=("data", "tokenize", "slates", "evidence"),
  init=INIT,
  when="prune.enabled",
  check=check,
  batches=batches,
  policies=policies,
)
