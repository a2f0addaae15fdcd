"""Values that some stage could not use, found before anything is written instead of after an hour of training."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.checks import check_choice, check_records
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.writers import import_wandb

# Sizes, wherever they stand in the config, that cannot be 0; None stands for no limit where a key allows it.
_SIZES = {
  *("attempts", "batch", "batch_size", "beams", "corpus_epochs", "epochs", "eval_users", "group", "log_every", "max_history"),
  *("max_new_tokens", "max_rounds", "max_skips", "max_slates", "microbatches", "minibatches", "num_candidates", "packed_rows", "per_item"),
  *("prompts", "report_every", "resamples", "row_length", "save_every", "text_pieces"),
}


def check_values(config: ConfigDict) -> None:
  """Raises ConfigError naming the key of a value that is out of range, unknown, or does not go with another one."""
  for key, value in _leaves(config):
    if key.rpartition(".")[2] in _SIZES and value is not None and value < 1:
      raise ConfigError(f"--config.{key}: {value} must be at least 1")
  _check_answers(config)
  if config.get("wandb_project"):
    check_records({"wandb_project": import_wandb})
  for stage in load_stages():
    if stage.init is not None:
      check_choice(config, stage.init.key, stage.init.choices)
    if stage.check is not None:
      stage.check(config)
  _check_devices(config)


def _check_answers(config: ConfigDict) -> None:
  """The sections that all stages share: how prompts and answers are written, and which answers can be decoded."""
  check_records({"prompt": lambda: PromptStyle(**config.prompt)})
  check_choice(config, "decoding.constraint", ("none", "slate"))
  if config.decoding.constraint == "slate" and config.prompt.answer != "compact":
    raise ConfigError(f"--config.decoding.constraint: 'slate' is for compact answers, not for {config.prompt.answer}; set it to none")


def _check_devices(config: ConfigDict) -> None:
  """The mesh must fit the machine and its processes, and each batch the mesh. Groups need divide nothing: they go with their prompt."""
  import jax

  if config.get("distributed") and not jax.distributed.is_initialized():
    return  # the other processes are not there yet; a run checks again once they are
  try:
    shape = make_mesh(**config.mesh).shape
  except ValueError as error:
    raise ConfigError(f"--config.mesh: {error}") from None
  parts, processes = shape["data"] * shape["fsdp"], jax.process_count()
  if parts % processes:
    raise ConfigError(
      f"--config.mesh: {parts} parts (data x fsdp) do not divide over {processes} processes, each of which feeds its own share of a batch; "
      f"make mesh.data x mesh.fsdp a multiple of {processes}"
    )
  batches = {key: batch for stage in load_stages() if stage.batches is not None for key, batch in stage.batches(config).items()}
  for key, (rows, cuts) in batches.items():
    if rows % (cuts * parts):
      in_cuts = " in each of minibatches x microbatches" if cuts > 1 else ""
      raise ConfigError(
        f"--config.{key}: {rows // cuts} rows at once{in_cuts} do not divide over the {parts} parts of the mesh (mesh.data x mesh.fsdp); "
        f"make {key} a multiple of {cuts * parts}, or the mesh smaller"
      )


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of everything that is no section."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value
