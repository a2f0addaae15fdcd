"""What all stages share of a config; the sections of the stages stand in their files."""

import dataclasses

from gr2_jax.language.prompts import PromptStyle
from gr2_jax.models.config import PRESETS
from gr2_jax.runs.scored import AnswerOptions
from gr2_jax.settings import check_settings, setting
from gr2_jax.training.mesh import MeshOptions


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """The language model. Raises ValueError."""

  preset: str = setting("tiny", "its size", choices=PRESETS)

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
  """How answers are decoded, in every stage that does. Raises ValueError."""

  constraint: str = setting(
    "none",
    "slate: every answer is a full permutation by construction, with the same mask in every loss, and a rewritten history names its "
    "items by whole semantic IDs; facts: of reasonings before scored answers, likewise, words for facts stand only behind the name of a "
    "candidate of which they are true; none: free answers, strict parser",
    choices=("none", "slate", "facts"),
  )
  max_new_tokens: int = setting(48, "limit of an answer with its reasoning", unit="tokens", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """The settings outside the stages' sections. Raises ValueError."""

  name: str = setting("base", "of the experiment")
  seed: int = setting(0, "of all draws of the stages", low=0)
  distributed: bool = setting(False, "jax.distributed.initialize() before anything else")
  wandb_project: str = setting("", "of Weights & Biases, for the metrics; empty: none")
  mesh: MeshOptions = setting(MeshOptions(), "of devices")
  model: ModelOptions = setting(ModelOptions(), "of language")
  prompt: PromptStyle = setting(PromptStyle(), "how slates are put to the model")
  decoding: DecodingOptions = setting(DecodingOptions(), "of answers")
  answer: AnswerOptions = setting(AnswerOptions(), "of a policy")

  def __post_init__(self) -> None:
    check_settings(self)
