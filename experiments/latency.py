"""Latency against quality: policies, modes and compressors of one or several runs on the test slates, as points of the card's plot.

python -m experiments.latency --run=RUN [--compare=OTHER_RUN,THIRD_RUN]

Writes `RUN/evaluation/latency.json` and makes the card again where there is one. `--compare`: runs over the same test slates, for example
students of other sizes; each is measured by what it has of what is named. A point's latency is that of requests sent one after the other,
by users whose compressed history is remembered; R@1 is over all test slates, in batches.
"""

from collections.abc import Sequence

from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.exit_code import exit_code_of
from experiments.flags import MODES
from gr2_jax.errors import UserError
from gr2_jax.files import check_writable

_RUN = flags.DEFINE_string("run", None, "run directory of a trained policy")
_COMPARE = flags.DEFINE_list("compare", [], "further runs over the same test slates")
_STAGES = flags.DEFINE_list("stages", None, "stages whose policies are measured (all but those that others may start from)")
_COMPRESSORS = flags.DEFINE_list("compressors", None, "how histories are shortened; full: not (full and all that the run has)")
_MODES = flags.DEFINE_list("modes", None, "modes to measure (those that each policy was trained to answer in)")
_FORCE = flags.DEFINE_boolean("force", False, "measure also modes that a policy was not trained for, outside the Pareto front")
_PRESENTATIONS = flags.DEFINE_list(
  "presentations", ["1", "3"], "in how many orders a slate is shown; above 1 to the first policy alone, in its own mode, on full histories"
)
_REQUESTS = flags.DEFINE_integer("requests", 100, "requests that are timed one by one for a point", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "slates ranked together for R@1", lower_bound=1)
_CACHE = define_compilation_cache()


def main(argv: Sequence[str]) -> int:
  """Measures what the flags name."""

  def program() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; write --run=RUN")
    if not _RUN.value:
      raise UserError("--run is missing; for example --run=runs/quickstart")
    if not _PRESENTATIONS.value or not all(count.isdecimal() and int(count) for count in _PRESENTATIONS.value):
      raise UserError(f"--presentations: {','.join(_PRESENTATIONS.value)}: write whole numbers from 1 on, as in 1,3")
    wrong = next((mode for mode in _MODES.value or () if mode not in MODES), None)
    if wrong is not None:
      raise UserError(f"--modes: {wrong!r} is not known; choose from {', '.join(MODES)}")
    # Here, since --help should not wait for JAX.
    from gr2_jax.reports.card import write_card
    from gr2_jax.runs.run import Run
    from gr2_jax.serving.measure import measure
    from gr2_jax.training.progress import Progress

    check_writable(Run.open(_RUN.value).path("evaluation"))
    use_compilation_cache(_CACHE.value)
    progress = Progress()
    path = measure(
      _RUN.value,
      _COMPARE.value,
      stages=_STAGES.value,
      compressors=_COMPRESSORS.value,
      modes=_MODES.value,
      force=_FORCE.value,
      presentations=[int(count) for count in _PRESENTATIONS.value],
      requests=_REQUESTS.value,
      batch_size=_BATCH_SIZE.value,
      progress=progress,
    )
    if (path.parent / "results.json").exists():
      path = write_card(_RUN.value)
    progress.note(str(path))

  return exit_code_of(program, _RUN.value)


if __name__ == "__main__":
  app.run(main)
