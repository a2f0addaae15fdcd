"""Stage `opd`: on-policy distillation; a larger teacher scores the student's own rollouts (Eq 4)."""

from ml_collections import ConfigDict

from experiments.stages.rl import make_get_batch
from gr2_jax.runs.artifacts import (
  load_catalogue,
  load_context,
  load_log,
  load_slates,
  make_decoder,
  prompt_style,
  run_mesh,
  slate_constraint,
  stage_checkpoints,
)
from gr2_jax.runs.slate_training import draw_slates
from gr2_jax.runs.teacher import load_teacher, opd_config
from gr2_jax.runs.training import begin, train
from gr2_jax.steps.opd import make_opd_update
from gr2_jax.training.mesh import jit_update

HEADLINE = ("reverse_kl", "beta", "reward", "recall@1", "valid_rate", "completion_length", "entropy")


def run(config, run, progress, stop):
  """Trains the mid-trained (or SFT) model on its own rollouts under the teacher's scores; writes checkpoints."""
  options = config.opd
  catalogue = load_catalogue(run)
  context, style = load_context(run, catalogue, load_log(run, catalogue)), prompt_style(run)
  slates = load_slates(run, catalogue, "train")
  student, mesh = make_decoder(run, context.vocabulary), run_mesh(run)
  teacher, teacher_params = load_teacher(run, context.vocabulary, mesh, progress)
  optimizer, state, shardings = begin(student, options, mesh, None, stage_checkpoints(run, options.init))
  settings, constraint = opd_config(options), slate_constraint(run, context.vocabulary)
  update = make_opd_update(student, teacher, optimizer, settings, steps=options.steps, constraint=constraint)
  position = draw_slates(run, slates, options.prompts)
  # The teacher has something to say to every rollout: no group is left out, whatever its rewards, so hard prompts count like easy ones.
  rounds = ConfigDict({**options, "dynamic_sampling": False, "max_rounds": 1, "min_filled": 1.0})
  get_batch = make_get_batch(run, "opd", rounds, slates, student, mesh, context, style, position, constraint, settings.policy)
  train(
    run,
    "opd",
    state,
    jit_update(update, mesh, shardings, frozen=(teacher_params,)),
    get_batch,
    position=position,
    options=options,
    progress=progress,
    stop=stop,
    headline=HEADLINE,
  )
