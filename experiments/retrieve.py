"""How a run's mid-trained model of packed items retrieves from the whole catalogue, beside rankers that are made for this alone.

    python -m experiments.retrieve --run=RUN

Test requests, items of the history masked. Rows: the dense head; beams of the semantic-ID decoder; the same beams ordered by the dense
head, and by it and their own log-probability; the transition graph with text, which needs no training; SASRec with text, trained here
(some minutes; `--nosasrec` leaves it out). Writes RUN/retrieval.json: R@5, R@10 and N@10 with 95 % intervals over users, and paired
differences.
"""

from collections.abc import Sequence

from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError

_RUN = flags.DEFINE_string("run", None, "run directory with a finished mid-training on packed items")
_BEAMS = flags.DEFINE_integer("beams", 200, "of the search over semantic IDs", lower_bound=1)
_BEAM_WEIGHT = flags.DEFINE_float("beam_weight", 0.5, "of a beam's log-probability beside the dense head's", lower_bound=0)
_USERS = flags.DEFINE_integer("users", None, "whose requests are asked, drawn by the run's seed (all)", lower_bound=2)
_SPLIT = flags.DEFINE_enum("split", "test", ("validation", "test"), "whose requests are asked; settings are chosen on those of validation")
_SASREC = flags.DEFINE_bool("sasrec", True, "SASRec with text is trained and measured as well")
_CACHE = define_compilation_cache()


def main(argv: Sequence[str]) -> int:
  """Measures the run that the flag names."""

  def program() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; write --run=RUN")
    if not _RUN.value:
      raise UserError("--run is missing; for example --run=runs/beauty")
    from rich.console import Console  # here, since --help should not wait for JAX

    from gr2_jax.evaluation.retrieval_rows import measure_retrieval
    from gr2_jax.reports.retrieval import render_retrieval_table
    from gr2_jax.training.interrupts import StopSignal
    from gr2_jax.training.progress import Progress

    use_compilation_cache(_CACHE.value)
    with StopSignal() as stop:
      found = measure_retrieval(
        _RUN.value,
        Progress(),
        stop,
        beams=_BEAMS.value,
        beam_weight=_BEAM_WEIGHT.value,
        users=_USERS.value,
        split=_SPLIT.value,
        sasrec=_SASREC.value,
      )
    Console().print(render_retrieval_table(found))

  return exit_code_of(program, _RUN.value)


if __name__ == "__main__":
  app.run(main)
