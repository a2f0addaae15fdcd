"""The stages of a run, one file each: a module here that has a `STAGE` is one, and what it declares is all that others know of it."""

import functools
import importlib
import pkgutil

from gr2_jax.runs.stages import Stage, sort_stages


@functools.cache
def load_stages() -> tuple[Stage, ...]:
  """All stages, each after those that it may read."""
  modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
  return tuple(sort_stages(module.STAGE for module in modules if hasattr(module, "STAGE")))
