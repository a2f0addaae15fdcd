"""Measures one part of the system against its peers; prints one JSON object a line.

python -m experiments.benchmark --suite=ranking
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from absl import app, flags

from experiments import benchmarks

_SUITE = flags.DEFINE_string("suite", None, "a file of experiments/benchmarks, without .py")


def list_suites() -> list[str]:
  """Names of the suites: the modules of `experiments.benchmarks` with a `run()`, which yields JSON-able lines."""
  return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if hasattr(_load(module.name), "run"))


def _load(name: str) -> ModuleType:
  return importlib.import_module(f"{benchmarks.__name__}.{name}")


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --suite=NAME", file=sys.stderr)
    return 1
  if _SUITE.value not in list_suites():
    print(f"ERROR: --suite: {_SUITE.value!r} is none of {', '.join(list_suites())}", file=sys.stderr)
    return 1
  for line in _load(_SUITE.value).run():
    print(json.dumps({"suite": _SUITE.value} | line), flush=True)
  return 0


if __name__ == "__main__":
  app.run(main)
