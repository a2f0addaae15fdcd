"""Re-ranks the slates of a JSONL file with a run's policy; killed and started again, it goes on where it stopped.

    python -m experiments.rerank --run=RUN --input=slates.jsonl --output=ranked.jsonl

A line holds `history` and `candidates` (ids of the catalogue, or objects with `item` and its text), and `id`, `timestamp`, `mode`,
`presentations`, `upstream_scores`, `last_time` if wanted; a slates file will do. The output has one line for each input line, in its order:
`{"line", "id", "order", "scores", "reasoning", "fallback", "reason", "history_tokens", "dropped_history", "compressor",
"unknown_history", "assigned", "guessed"}`, or `{"line", "id", "error": {"kind", "message"}}` for a line that cannot be ranked. `id` is the
line's `id`, or else its `user`.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.exit_code import exit_code_of
from experiments.flags import COMPRESSORS, MODES
from gr2_jax.errors import UserError
from gr2_jax.files import check_writable

_RUN = flags.DEFINE_string("run", None, "run directory of a trained policy")
_INPUT = flags.DEFINE_string("input", None, "slates to rank, .jsonl or .jsonl.gz")
_OUTPUT = flags.DEFINE_string("output", None, "where the ranked slates go, .jsonl")
_STAGE = flags.DEFINE_string("stage", "rl", "the stage whose policy ranks")
_COMPRESSOR = flags.DEFINE_enum("compressor", None, COMPRESSORS, "by which histories are shortened; the run must have it (none)")
_MODE = flags.DEFINE_enum("mode", None, MODES, "how lines are ranked that name no mode (as the policy was trained to answer)")
_PRESENTATIONS = flags.DEFINE_integer("presentations", 1, "in how many orders a slate is shown", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "rows that the device works on at once", lower_bound=1)
_CACHE = define_compilation_cache()


def main(argv: Sequence[str]) -> int:
  """Ranks the file that the flags name."""

  def program() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; write --input=FILE")
    for name, value in (("run", _RUN.value), ("input", _INPUT.value), ("output", _OUTPUT.value)):
      if not value:
        raise UserError(f"--{name} is missing; for example --run=runs/quickstart --input=slates.jsonl --output=ranked.jsonl")
    if _OUTPUT.value.endswith(".gz"):
      raise UserError("--output: written line by line, so not compressed; give a .jsonl name")
    source, target = pathlib.Path(_INPUT.value), pathlib.Path(_OUTPUT.value)
    if not source.is_file():
      raise UserError(f"--input: no file {str(source)!r}; give a .jsonl or .jsonl.gz file of slates")
    check_writable(target.parent)
    # Here, since --help should not wait for JAX.
    from gr2_jax.runs.fingerprints import hash_path
    from gr2_jax.runs.run import Run
    from gr2_jax.serving.ranked_file import rerank_file
    from gr2_jax.serving.reranker import Options, Reranker
    from gr2_jax.training.interrupts import StopSignal
    from gr2_jax.training.progress import Progress

    def fingerprint(stage: str) -> str:
      """Of a finished stage of the run."""
      return (Run.open(_RUN.value).done(stage) or {})["fingerprint"]

    use_compilation_cache(_CACHE.value)
    options = Options(mode=_MODE.value, presentations=_PRESENTATIONS.value, batch_size=_BATCH_SIZE.value, max_presentations=64)
    reranker = Reranker.load(_RUN.value, stage=_STAGE.value, compressor=_COMPRESSOR.value, options=options)
    settings = {
      "policy": fingerprint(_STAGE.value),
      "input": hash_path(source),
      "mode": reranker.options.mode,
      "presentations": options.presentations,
      "compressor": _COMPRESSOR.value and f"{_COMPRESSOR.value} of {fingerprint('compress')}",
    }
    progress = Progress()
    with StopSignal() as stop:
      rerank_file(reranker, source, target, settings, progress, stop)
    progress.note(_OUTPUT.value)

  return exit_code_of(program, _OUTPUT.value)


if __name__ == "__main__":
  app.run(main)
