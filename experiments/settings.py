"""What all stages share of a config; the sections of the stages stand in their files."""

import dataclasses

from gr2_jax.language.prompts import PromptStyle
from gr2_jax.models.adapters import LoraOptions
from gr2_jax.models.config import PRESETS
from gr2_jax.runs.scored import AnswerOptions
from gr2_jax.runs.starts import read_init
from gr2_jax.settings import check_settings, setting
from gr2_jax.training.mesh import MeshOptions


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """The language model. Raises ValueError."""

  preset: str = setting("tiny", "the model's size where it begins at random numbers, a name in gr2_jax/models/config.py", choices=PRESETS)
  init: str = setting(
    "random",
    "where the first training begins. random; hf:DIR: a published model in a folder as Hugging Face lays it out, with its tokenizer and "
    "chat template; run:RUN/STAGE: the policy, tokens and semantic IDs of another run about the same items",
  )
  dtype: str = setting(
    "", "type of activations; empty: that of the preset, of a published model float32", choices=("", "float32", "bfloat16")
  )
  remat: bool | None = setting(None, "whether layers are computed again in the backward pass, to save memory; None: as the preset does")
  lora: LoraOptions = setting(LoraOptions(), "low-rank adapters, trained in place of all parameters")

  def __post_init__(self) -> None:
    check_settings(self)
    read_init(self.init)


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
  """How answers are decoded, in every stage that does. Raises ValueError."""

  constraint: str = setting(
    "none",
    "what can be written. none: anything, read by a strict parser; slate: full permutations alone, by the same mask in every loss, and "
    "rewritten histories name their items by whole semantic IDs; facts, of reasonings before scored answers: words for facts stand only "
    "behind the name of a candidate of which they are true",
    choices=("none", "slate", "facts"),
  )
  max_new_tokens: int = setting(48, "limit of an answer with its reasoning", unit="tokens", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """The settings outside the stages' sections. Raises ValueError."""

  name: str = setting("base", "name of the experiment")
  seed: int = setting(0, "seed of all draws of the stages", low=0)
  distributed: bool = setting(False, "whether several processes share the run: jax.distributed.initialize() comes before anything else")
  wandb_project: str = setting("", "project of Weights & Biases that gets the metrics; empty: none")
  mesh: MeshOptions = setting(MeshOptions(), "how devices are arranged")
  model: ModelOptions = setting(ModelOptions(), "the language model")
  prompt: PromptStyle = setting(PromptStyle(), "how slates are put to the model")
  decoding: DecodingOptions = setting(DecodingOptions(), "how answers are decoded")
  answer: AnswerOptions = setting(AnswerOptions(), "the form of a policy's answers")

  def __post_init__(self) -> None:
    check_settings(self)
