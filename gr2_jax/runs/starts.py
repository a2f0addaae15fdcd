"""Where a run's policies begin (`config.model.init`): at random numbers, at a published model, or at the policy of another run."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gr2_jax.errors import ConfigError, UserError
from gr2_jax.language.text_pieces import CONFIG_FILE, read_pieces
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import ModelConfig, preset
from gr2_jax.models.hf_folders import open_folder, parse_config
from gr2_jax.models.transformer import Decoder
from gr2_jax.runs.policies import PolicyRecord, find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.steps.start import PublishedStart, Start
from gr2_jax.training.checkpoints import Checkpointer

FROM_MODEL = "model"  # as a stage's `init`: config.model.init itself


class ModelInit(NamedTuple):
  """`kind`: random, hf (a folder as Hugging Face lays it out) or run; `path` of the folder or run, and the `stage` of the run."""

  kind: str
  path: pathlib.Path = pathlib.Path()
  stage: str = ""


def read_init(text: str) -> ModelInit:
  """What `config.model.init` says; raises ValueError for anything else than random, hf:DIR and run:RUN/STAGE."""
  kind, _, rest = text.partition(":")
  if text == "random":
    return ModelInit("random")
  if kind == "hf" and rest:
    return ModelInit("hf", pathlib.Path(rest))
  if kind == "run" and "/" in rest.strip("/"):
    path = pathlib.Path(rest)
    return ModelInit("run", path.parent, path.name)
  raise ValueError(f"init: {text!r} is none of random, hf:DIR (a folder with config.json and safetensors) and run:RUN/STAGE")


def model_config(config: ConfigDict, vocabulary: Vocabulary) -> ModelConfig:
  """The decoder of a run: that of the published model whose tokens the vocabulary has, else the preset."""
  if not vocabulary.pieces.rows:
    return preset_config(config, vocabulary.size)
  raw = json.loads(vocabulary.pieces.files()[CONFIG_FILE])
  published = parse_config(raw, pathlib.Path(CONFIG_FILE))[1]
  return _as_trained(config, dataclasses.replace(published, vocab_size=vocabulary.size))


def preset_config(config: ConfigDict, rows: int) -> ModelConfig:
  """The preset of a config with so many token rows."""
  return _as_trained(config, preset(config.model.preset, rows))


def foreseen_model(config: ConfigDict) -> ModelConfig:
  """`model_config` before there is a vocabulary, of which only that it divides is known; raises ConfigError where nothing begins so."""
  init = read_init(config.model.init)
  if init.kind == "random":
    return preset_config(config, 128)
  try:
    if init.kind == "hf":
      return _as_trained(config, dataclasses.replace(open_folder(init.path).config, vocab_size=128))
    other, _ = _open_other(init)
    return model_config(config, Vocabulary.load(other.path("tokenize", "vocabulary")))
  except UserError as error:
    raise ConfigError(f"--config.model.init: {error}") from None


def _as_trained(config: ConfigDict, model: ModelConfig) -> ModelConfig:
  changes = {name: value for name in ("dtype", "remat") if (value := config.model[name]) not in ("", None)}
  return dataclasses.replace(model, **changes)


def read_tokenizer(config: ConfigDict, **shape: Any) -> Vocabulary | None:
  """The tokens that come with what a run begins at: a published model's, then those of `shape` (see Vocabulary), or another run's.

  None where a run has its own.
  """
  init = read_init(config.model.init)
  if init.kind == "run":
    return Vocabulary.load(init.path / "tokenize" / "vocabulary")
  return Vocabulary(read_pieces(init.path), **shape) if init.kind == "hf" else None


def tokens_elsewhere(config: ConfigDict) -> pathlib.Path | None:
  """Where the run lies whose tokens and semantic IDs this one takes over with its policy."""
  init = read_init(config.model.init)
  return init.path if init.kind == "run" else None


def open_start(config: ConfigDict, decoder: Decoder, vocabulary: Vocabulary) -> Start | None:
  """Where `config.model.init` has the decoder begin; None: at random numbers.

  Raises RunError for another run's policy that is no such decoder.
  """
  init = read_init(config.model.init)
  if init.kind == "random":
    return None
  if init.kind == "hf":
    return PublishedStart(init.path, vocabulary.new_token_start, config.seed, vocabulary.named_like())
  other, record = _open_other(init)
  if record.layers is not None:
    raise RunError(f"--config.model.init: the policy of {init.stage!r} in {init.path} is pruned; name the stage that it was cut from")
  if differing := _differences(model_config(other.config, vocabulary), decoder.config):
    raise RunError(
      f"--config.model.init: the policy of {init.path} has another model ({', '.join(differing)}); set --config.model.preset to "
      f"{other.config.model.preset}"
    )
  return Checkpointer(other.path(record.stage, record.checkpoints))


def _open_other(init: ModelInit) -> tuple[Run, PolicyRecord]:
  other = Run.open(init.path)
  return other, find_policy(other, init.stage)


def _differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
  """`field: theirs, here ours` of what decides the parameters."""
  changed = dataclasses.asdict(dataclasses.replace(theirs, dtype=ours.dtype, remat=ours.remat, attention=ours.attention))
  return [f"{name}: {value}, here {mine}" for name, mine in dataclasses.asdict(ours).items() if (value := changed[name]) != mine]
