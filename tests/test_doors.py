"""Each package's door: what it exports is there, documented, and its example runs; importing the package alone is light."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import gr2_jax

DOORS = ("data", "language", "models", "objectives", "rewards", "rollout", "rl", "serving", "evaluation")
PACKAGES = tuple(module.name for module in pkgutil.iter_modules(gr2_jax.__path__) if module.ispkg)


def door(package):
  return importlib.import_module(f"gr2_jax.{package}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_and_exports_what_is_there(package):
  module = door(package)
  assert module.__doc__, package
  for name in getattr(module, "__all__", ()):
    exported = getattr(module, name)
    if inspect.isclass(exported) or inspect.isfunction(exported):
      own = inspect.getdoc(exported) or ""
      assert own and not own.startswith(f"{name}("), f"{package}.{name} has no docstring of its own"


@pytest.mark.parametrize("package", DOORS)
def test_a_door_has_a_few_names_and_an_example_that_runs(package):
  module = door(package)
  assert 5 <= len(module.__all__) <= 12
  tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
  assert tried.attempted > 2 and tried.failed == 0


def test_public_classes_and_functions_have_docstrings():
  silent = []
  for found in pkgutil.walk_packages(gr2_jax.__path__, "gr2_jax."):
    module = importlib.import_module(found.name)
    for name, value in vars(module).items():
      if name.startswith("_") or getattr(value, "__module__", None) != found.name:
        continue
      if (inspect.isclass(value) or inspect.isfunction(value)) and not (value.__doc__ and value.__doc__.strip()):
        silent.append(f"{found.name}.{name}")
  assert not silent


def test_importing_the_package_starts_nothing():
  check = "import sys, time; began = time.perf_counter(); import gr2_jax; print('jax' in sys.modules, time.perf_counter() - began < 0.3)"
  done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
  assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_example_of_the_package_runs():
  assert doctest.testmod(gr2_jax).failed == 0
  assert gr2_jax.Reranker.__name__ == "Reranker"
  with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
    gr2_jax.Rerankr  # noqa: B018
