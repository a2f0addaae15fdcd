"""Settings of packed mid-training, evidence and scored answers that do not go together are named before anything runs."""

import jax
import pytest
from small_runs import tiny_config

from experiments.check import check_values
from gr2_jax.errors import ConfigError

TREE = {"traces__source": "tree", "prompt__facts": ("popularity",), "evidence__tree__enabled": True}
SCORED = {"answer__form": "scored", "midtrain__form": "packed"}
CUT = SCORED | {"slates__source": "ctr", "midtrain__packed__folds": 2}

OPD = {"rl__init": "opd", "opd__teacher_run": "somewhere"}
AT_ONCE = SCORED | OPD | {"prompt__direct": True}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The check is against this machine's devices, and the tests' eight are not those of a user."""
  first = jax.devices()[:1]
  monkeypatch.setattr("gr2_jax.training.mesh.jax.devices", lambda: first)


@pytest.mark.parametrize(
  "changes",
  [
    SCORED,
    SCORED | {"midtrain__packed__whole_log": True},
    SCORED | {"evidence__facts": ("lm_score", "popularity")},
    CUT,
    {"answer__form": "scored"},
    AT_ONCE,
    SCORED | {"prune__enabled": True},
    SCORED | OPD | {"opd__init": "sft", "opd__distillation__kl": "top_k"},
    SCORED | {"rl__through": "target"},
    TREE,
    SCORED | TREE | {"prompt__facts": ("lm_score",)},
    SCORED | TREE | {"decoding__constraint": "facts", "prompt__reference": "slot", "answer__names": True, "rl__truth_weight": 0.5},
    {"prompt__facts": ("age",), "evidence__facts": ("gap", "age")},
    {"evidence__facts": ("popularity",), "slates__source": "ctr"},
    {"midtrain__packed__whole_log": True, "slates__source": "ctr"},  # unused: the model reads tokens
  ],
)
def test_what_goes_together_passes(changes):
  check_values(tiny_config(**changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      SCORED | {"compress__variants": ("rules",)},
      r"--config\.compress\.variants: \('rules',\) shortens the history in a prompt, and .* lower evidence\.max_history or answer\.past",
    ),
    (SCORED | {"sft__without_reasoning": True}, r"--config\.sft\.without_reasoning: True is for written answers"),
    ({"evidence__facts": ("lm_score",)}, r"--config\.evidence\.facts: 'lm_score' is a score of mid-training on packed items; set midtrain"),
    (
      TREE | {"evidence__tree__enabled": False},
      r"--config\.traces\.source: 'tree' needs the out-of-fold tree; set evidence\.tree\.enabled",
    ),
    (TREE | {"prompt__facts": ()}, r"--config\.traces\.source: 'tree' gives its reasons in .* prompt\.facts names none; name some"),
    (TREE | {"decoding__constraint": "facts"}, r"--config\.decoding\.constraint: 'facts' is for reasonings before scored answers"),
    (SCORED | {"decoding__constraint": "facts"}, r"--config\.decoding\.constraint: 'facts' knows facts by their words; name some in"),
    (
      SCORED | TREE | {"decoding__constraint": "facts", "prompt__fact_form": "sentences"},
      r"--config\.decoding\.constraint: 'facts' knows facts by their words; name some in prompt\.facts, with prompt\.fact_form at words",
    ),
    (
      SCORED | TREE | {"decoding__constraint": "facts", "prompt__reference": "sid"},
      r"--config\.decoding\.constraint: 'facts' knows candidates by the names of their slots",
    ),
    (
      SCORED | TREE | OPD | {"decoding__constraint": "facts", "opd__init": "sft"},
      r"--config\.decoding\.constraint: 'facts', but opd distils reasonings that may say anything",
    ),
    (
      SCORED | TREE | {"decoding__constraint": "facts", "prune__enabled": True},
      r"--config\.decoding\.constraint: 'facts', but prune distils reasonings",
    ),
    ({"rl__truth_weight": 0.5}, r"--config\.rl\.truth_weight: 0\.5 is of reasonings before scored answers"),
    (SCORED | {"prompt__direct": True, "rl__named_weight": 0.5}, r"--config\.rl\.named_weight: 0\.5 is of reasonings before scored"),
    ({"answer__names": True}, r"--config\.answer: names: written answers read them in the prompt|names: written answers"),
    ({"traces__source": "oracle"}, r"--config\.traces\.source: 'oracle' is not known; choose scripted or tree"),
    ({"prompt__facts": ("luck",)}, r"--config\.prompt\.facts: 'luck' is not known"),
    ({"prompt__facts": ("lm_score",)}, r"--config\.prompt\.facts: 'lm_score' is not among the facts that the stage evidence leaves"),
    ({"prompt__facts": ("age",), "evidence__facts": ("gap",)}, r"'age' is not among .*; add it to evidence\.facts, or name one of gap"),
    ({"evidence__facts": ("luck",)}, r"--config\.evidence\.facts: 'luck' is no fact; there are "),
    ({"evidence__tree__folds": 1}, r"--config\.evidence\.tree\.folds: 1 must be at least 2"),
    (
      CUT | {"midtrain__packed__whole_log": True},
      r"--config\.midtrain\.packed\.whole_log: True, but slates of 'ctr' have as their targets",
    ),
    (CUT | {"midtrain__packed__folds": 0}, r"--config\.midtrain\.packed\.folds: slates of 'ctr' are cut from the histories .*set it to 4"),
    (CUT | {"midtrain__packed__folds": 1}, r"--config\.midtrain\.packed\.folds: 1 leaves no other users to learn from"),
    ({"midtrain__form": "packed"}, r"--config\.midtrain\.form: 'packed' leaves no language model that written answers could start from"),
    (
      CUT | {"slates__source": "beam", "midtrain__packed__whole_log": True},
      r"--config\.midtrain\.packed\.whole_log: True, but slates of 'beam' have as their targets",
    ),
    (SCORED | {"rl__init": "midtrain"}, r"--config\.rl\.init: 'midtrain' leaves no scored policy to start from; use sft or opd"),
    ({"rl__through": "target"}, r"--config\.rl\.through: 'target' is of scored answers"),
    (
      SCORED | {"rl__slate__diversity": 0.5},
      r"--config\.rl\.slate\.diversity: 0\.5 is of the first places, and top names none; set top to 3",
    ),
    (SCORED | {"rl__slate__top": 3, "rl__through": "target"}, r"--config\.rl\.through: 'target', but rl\.slate looks at all of the first"),
    (SCORED | {"rl__feedback__weighing": "propensity"}, r"--config\.rl\.feedback\.weighing: 'propensity', but the rewards of rl\.reward"),
    (SCORED | {"rl__feedback__share": 0.0}, r"--config\.rl\.feedback\.share: 0\.0 must be above 0 and at most 1"),
    (SCORED | {"rl__feedback__clip": 0.5}, r"--config\.rl\.feedback\.clip: 0\.5 must be at least 1"),
    (CUT | {"rl__feedback__source": "clicks"}, r"--config\.rl\.feedback\.source: 'clicks' are drawn from the utilities of a synthetic"),
    ({"rl__slate__top": 3}, r"--config\.rl\.slate\.top: 3 is of scored answers"),
    ({"rl__feedback__share": 0.1}, r"--config\.rl\.feedback\.share: 0\.1 is of scored answers"),
    (SCORED | {"rl__through": "target", "rl__reward__condition": "eq7"}, r"--config\.rl\.through: 'target', but eq7 asks whether an"),
    (SCORED | OPD, r"--config\.opd\.init: 'midtrain' leaves no scored policy that could reason; use sft, or set prompt\.direct"),
    (AT_ONCE | {"opd__distillation__kl": "top_k"}, r"--config\.opd\.distillation\.kl: 'top_k' is of a vocabulary"),
    (AT_ONCE | {"opd__reward__fn": "mine:reward"}, r"--config\.opd\.reward\.fn: scored answers are judged by the built-in rewards"),
    (AT_ONCE | {"opd__microbatches": 2}, r"--config\.opd\.microbatches: 2, but a batch of scored answers is taken whole"),
    (
      SCORED | {"direct__enabled": True, "direct__targets": "label", "direct__init": "opd", "opd__teacher_run": "somewhere"},
      r"--config\.direct\.init: 'opd', but a scored direct policy starts anew",
    ),
    (SCORED | {"rl__reward__fn": "mine:reward"}, r"--config\.rl\.reward\.fn: scored answers are judged by the built-in rewards"),
    (SCORED | {"rl__minibatches": 2}, r"--config\.rl\.minibatches: 2, but a batch of scored answers is one gradient step; set it to 1"),
    (SCORED | {"rl__microbatches": 2}, r"--config\.rl\.microbatches: 2, but a batch"),
  ],
)
def test_what_does_not_is_named(changes, message):
  with pytest.raises(ConfigError, match=message):
    check_values(tiny_config(**changes))


@pytest.mark.parametrize("targets", ["tree", "mixture"])
@pytest.mark.parametrize("stage", ["sft", "direct"])
def test_targets_of_a_tree_need_the_tree(stage, targets):
  changes = SCORED | {"direct__enabled": True, "direct__targets": "label", f"{stage}__targets": targets}
  with pytest.raises(ConfigError, match=rf"^--config\.{stage}\.targets: '{targets}' needs the tree's scores; set evidence\.tree\.enabled"):
    check_values(tiny_config(**changes))
  check_values(tiny_config(**changes, evidence__tree__enabled=True))
  check_values(tiny_config(**changes | {f"{stage}__targets": "label"}))


def test_targets_count_for_scored_answers_alone():
  check_values(tiny_config(sft__targets="tree"))
  check_values(tiny_config(**SCORED, direct__enabled=False, direct__targets="tree"))
