"""Values that some stage could not use, found before anything is written instead of after an hour of training."""

from collections.abc import Collection, Iterator, Mapping

from ml_collections import ConfigDict

from experiments.checks import check_records, list_faults
from experiments.settings import RunOptions
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.models.config import check_parts
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.runs.scored import is_reasoned
from gr2_jax.runs.starts import FROM_MODEL, foreseen_model
from gr2_jax.settings import read_section, settings_of
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.writers import import_wandb


def check_values(config: ConfigDict, *, here: bool = True) -> None:
  """Raises ConfigError for values that are out of range, unknown, or do not go with others: all that were found, each with its key.

  `here`: the config is to run on this machine's devices, whatever mesh it asks for; else see `check_on_mesh`.
  """
  # What goes with what is asked of values that hold by themselves.
  faults = _find_faults_of_values(config) or list(_find_faults_of_pairs(config, here))
  if faults:
    raise list_faults(faults, "cannot be used")


def _find_faults_of_values(config: ConfigDict) -> list[str]:
  """What the records of all sections find."""
  shared = {field.name: config[field.name] for field, _ in settings_of(RunOptions) if field.name in config}
  faults = read_section(RunOptions, shared)[1]
  for stage in load_stages():
    if stage.options is not None:
      faults += read_section(stage.options, config.get(stage.name, {}), stage.name)[1]
  return faults


def _find_faults_of_pairs(config: ConfigDict, here: bool) -> Iterator[str]:
  """What the stages find, the first fault of each, and what does not go with the devices."""
  of_stages = [stage.check for stage in load_stages() if stage.check is not None]
  of_devices = (_check_devices,) if here else ()
  for check in (_check_start, _check_answers, _check_scored, _check_writer, *of_stages, *of_devices):
    try:
      check(config)
    except ConfigError as error:
      yield str(error)


def _check_start(config: ConfigDict) -> None:
  """What begins where `model.init` says needs something to begin at, and a model that writes."""
  init = config.model.init
  if config.answer.form == "scored" and init != "random":
    raise ConfigError(
      f"--config.model.init: {init!r}, but a scored policy reads packed facts, which no published model does; set answer.form to written "
      "and midtrain.form to tokens, or leave it at random (stages of another run of the same config are taken over by --from=RUN)"
    )
  if config.midtrain.form == "packed" and init != "random":
    raise ConfigError(f"--config.midtrain.form: 'packed' begins at random numbers, and model.init is {init!r}; set it to tokens")
  for stage in load_stages():
    if stage.init is not None and value_at(config, stage.init.key) == FROM_MODEL and init == "random":
      raise ConfigError(
        f"--config.{stage.init.key}: {FROM_MODEL!r} begins where model.init says, which is 'random'; name a folder (hf:DIR) or another "
        "run's policy (run:RUN/STAGE) there"
      )
  if config.answer.form == "scored" and config.sft.init == FROM_MODEL:
    raise ConfigError(f"--config.sft.init: {FROM_MODEL!r} is for policies that write; leave it at midtrain")


def _check_answers(config: ConfigDict) -> None:
  """Which answers can be decoded."""
  if config.decoding.constraint == "slate" and config.prompt.answer != "compact":
    raise ConfigError(f"--config.decoding.constraint: 'slate' is for compact answers, not for {config.prompt.answer}; set it to none")
  if config.decoding.constraint != "facts":
    return
  if not is_reasoned(config):
    raise ConfigError(
      "--config.decoding.constraint: 'facts' is for reasonings before scored answers; set answer.form to scored and prompt.direct to "
      "False, or the constraint to none"
    )
  if not config.prompt.facts or config.prompt.fact_form != "words":
    raise ConfigError(
      "--config.decoding.constraint: 'facts' knows facts by their words; name some in prompt.facts, with prompt.fact_form at words, or "
      "set it to none"
    )
  if config.prompt.reference != "slot":
    raise ConfigError("--config.decoding.constraint: 'facts' knows candidates by the names of their slots; set prompt.reference to slot")


def _check_scored(config: ConfigDict) -> None:
  """What is done to written answers alone."""
  if config.answer.form != "scored":
    return
  if config.sft.without_reasoning:
    raise ConfigError("--config.sft.without_reasoning: True is for written answers; leave it out, or set answer.form to written")
  if config.compress.variants:
    raise ConfigError(
      f"--config.compress.variants: {config.compress.variants!r} shortens the history in a prompt, and scored answers read none: facts "
      "summarise the whole history, and a past item read by its text is one position already; leave it out, and to read less lower "
      "evidence.max_history or answer.past, or set answer.form to written"
    )


def _check_writer(config: ConfigDict) -> None:
  """What writes metrics elsewhere must be installed."""
  if config.wandb_project:
    check_records({"wandb_project": import_wandb}, config)


def _check_devices(config: ConfigDict) -> None:
  """The mesh must fit the machine and its processes, and each batch the mesh. Groups need divide nothing: they go with their prompt."""
  import jax

  if config.get("distributed") and not jax.distributed.is_initialized():
    return  # the other processes are not there yet; a run checks again once they are
  try:
    shape = make_mesh(**config.mesh).shape
  except ValueError as error:
    raise ConfigError(f"--config.mesh: {error}") from None
  check_on_mesh(config, shape, [stage.name for stage in load_stages()])


def check_on_mesh(config: ConfigDict, shape: Mapping[str, int], stages: Collection[str]) -> None:
  """The model's dimensions must divide over a mesh of this shape, and so must the batches of `stages`; raises ConfigError."""
  import jax

  try:
    check_parts(foreseen_model(config), shape["fsdp"], shape["tensor"])
  except ValueError as error:
    raise ConfigError(f"--config.mesh.{error}") from None
  parts, processes = shape["data"] * shape["fsdp"], jax.process_count()
  if parts % processes:
    raise ConfigError(
      f"--config.mesh: {parts} parts (data x fsdp) do not divide over {processes} processes, each of which feeds its own share of a batch; "
      f"make mesh.data x mesh.fsdp a multiple of {processes}"
    )
  asked = [stage.batches for stage in load_stages() if stage.batches is not None and stage.name in stages]
  batches = {key: batch for of_stage in asked for key, batch in of_stage(config).items()}
  for key, (rows, cuts) in batches.items():
    if rows % (cuts * parts):
      in_cuts = " in each of minibatches x microbatches" if cuts > 1 else ""
      raise ConfigError(
        f"--config.{key}: {rows // cuts} rows at once{in_cuts} do not divide over the {parts} parts of the mesh (mesh.data x mesh.fsdp); "
        f"make {key} a multiple of {cuts * parts}, or the mesh smaller"
      )
