"""Rewards of one's own: what such a function gets and gives, on the device or on the host, and how one is named in a config."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gr2_jax.data.schema import Catalogue, Slate
from gr2_jax.errors import ConfigError


class Answers(NamedTuple):
  """G answers to each of P slates.

  `rankings [P, G, K]`: candidate indices best first, -1 throughout where the answer is invalid, and at the end for a slate of fewer than
  K candidates. `valid [P, G]`: whether the answer is a full permutation. `lengths [P, G]`: tokens of the completion, EOS included.
  `texts`: on the host, P lists of G completions as text up to EOS, with their frames (`<think> ... </think> <answer> ...`); on the device
  None.
  """

  rankings: jax.Array
  valid: jax.Array
  lengths: jax.Array
  texts: Sequence[Sequence[str]] | None = None


class Slates(NamedTuple):
  """The P slates, of up to K candidates; a candidate's index is its place in the upstream order.

  `labels [P, K]`: by candidate (0 none, positive otherwise), -1 at padding. `shown [P, K]`: the candidate at each slot, padding last.
  `mask [P, K]`: which candidates there are. `records` and `catalogue`: on the host the slates and the items that they name; on the device
  None. Of scored answers besides, `[P, K]` each: `gains`, what the labels are worth, weighed by propensity where that is asked, -1 at
  padding; and `brands`, `prices`, `small`, see `data.attributes`.
  """

  labels: jax.Array
  shown: jax.Array
  mask: jax.Array
  records: Sequence[Slate] | None = None
  catalogue: Catalogue | None = None
  gains: jax.Array | None = None
  brands: jax.Array | None = None
  prices: jax.Array | None = None
  small: jax.Array | None = None


class Rewards(NamedTuple):
  """What the answers earn, each finite and `[P, G]`: `total` is optimised; a group whose `raw` does not vary is not learnt from."""

  total: jax.Array
  raw: jax.Array


RewardFn = Callable[[Answers, Slates], Rewards]


class _OnHost:
  """A reward function that is called with numpy arrays and texts."""

  def __init__(self, fn: RewardFn) -> None:
    functools.update_wrapper(self, fn)
    self._fn = fn

  def __call__(self, answers: Answers, slates: Slates) -> Rewards:
    return self._fn(answers, slates)


def on_host(fn: RewardFn) -> RewardFn:
  """Marks a reward function that runs on the host, in plain Python.

  It gets numpy arrays, the answers' texts, and the slates' records with their catalogue; it gives arrays or nested lists. One that is not
  marked is traced by JAX and compiled into the step: it is pure, and sees arrays alone.
  """
  return _OnHost(fn)


def runs_on_host(fn: object) -> bool:
  """Whether it is a function marked by `on_host`; a built-in reward is not."""
  return isinstance(fn, _OnHost)


def describe_reward(fn: RewardFn) -> str:
  """`package.module:function`, for messages."""
  return f"{getattr(fn, '__module__', '?')}:{getattr(fn, '__qualname__', repr(fn))}"


def load_reward(path: str) -> RewardFn:
  """The function that `package.module:function` names.

  Raises ConfigError for another form, a module that cannot be imported, a name that it lacks, and what cannot be called.
  """
  module_name, colon, name = path.partition(":")
  if not colon or not all(part.isidentifier() for part in [*module_name.split("."), name]):
    raise ConfigError(f"reward.fn: {path!r} is not of the form package.module:function, such as docs.examples.reciprocal_rank:reward")
  try:
    module = importlib.import_module(module_name)
  except ImportError as error:
    raise ConfigError(
      f"reward.fn: {module_name} cannot be imported ({error}); modules are looked up from where the program runs"
    ) from error
  fn = getattr(module, name, None)
  if fn is None:
    raise ConfigError(f"reward.fn: {module_name} has no {name!r}; name a function of it")
  if not callable(fn):
    raise ConfigError(f"reward.fn: {path} is {type(fn).__name__}, which cannot be called; name a function")
  return fn
