"""Serves a run's policy over HTTP on this machine; needs the extra `serving`.

python -m experiments.serve --run=RUN --port=8000
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.exit_code import exit_code_of
from experiments.flags import COMPRESSORS, MODES
from experiments.listening import BACKLOG, listen, run_beside
from gr2_jax.errors import UserError

_RUN = flags.DEFINE_string("run", None, "run directory of a trained policy")
_STAGE = flags.DEFINE_string("stage", "rl", "the stage whose policy ranks")
_COMPRESSOR = flags.DEFINE_enum("compressor", None, COMPRESSORS, "by which histories are shortened; the run must have it (none)")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; the default is reached from this machine alone")
_PORT = flags.DEFINE_integer("port", 8000, "port to listen at; 0: any that is free", lower_bound=0, upper_bound=65535)
_MODE = flags.DEFINE_enum("mode", None, MODES, "how requests are ranked that name no mode (as the policy was trained to answer)")
_MODES = flags.DEFINE_list("modes", None, "modes that requests may name (those that the policy was trained to answer in)")
_PRESENTATIONS = flags.DEFINE_integer("presentations", 1, "in how many orders a slate is shown", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "rows that the device works on at once", lower_bound=1)
_PREFIX_CACHE = flags.DEFINE_integer("prefix_cache", 0, "slates that stay on the device for reuse; 0: none", lower_bound=0)
_QUEUE = flags.DEFINE_integer("queue", 1024, "requests that may wait; more are refused with 429", lower_bound=1)
_MAX_WAIT = flags.DEFINE_float("max_wait_ms", 5.0, "how long a batch waits for more requests", lower_bound=0)
_TIMEOUT = flags.DEFINE_float("timeout_ms", 10_000.0, "after which a request gets the upstream order", lower_bound=1)
_MAX_BODY = flags.DEFINE_integer("max_body", 256 * 1024, "bytes of a request", lower_bound=1)
_CACHE = define_compilation_cache()


def serve() -> None:
  """Listens, loads, compiles while `/health` says so, answers until a signal comes, and lets the requests under way end."""
  if not _RUN.value:
    raise UserError("--run is missing; for example --run=runs/quickstart")
  listening = listen(_HOST.value, _PORT.value)  # before anything that takes time
  # Here, since neither --help nor a taken port should wait for JAX.
  from gr2_jax.serving.reranker import Options, Reranker
  from gr2_jax.training.progress import Progress

  try:
    import uvicorn

    from gr2_jax.serving.server import ServerOptions, make_app
  except ImportError as error:
    raise UserError(f"{error.name} is not installed; pip install 'gr2_jax[serving]'") from None
  use_compilation_cache(_CACHE.value)
  options = Options(
    mode=_MODE.value,
    modes=_MODES.value and tuple(dict.fromkeys([_MODE.value] * bool(_MODE.value) + _MODES.value)),
    presentations=_PRESENTATIONS.value,
    batch_size=_BATCH_SIZE.value,
    prefix_cache=_PREFIX_CACHE.value,
  )
  reranker = Reranker.load(_RUN.value, stage=_STAGE.value, compressor=_COMPRESSOR.value, options=options)
  limits = ServerOptions(queue=_QUEUE.value, max_wait=_MAX_WAIT.value / 1000, timeout=_TIMEOUT.value / 1000, max_body=_MAX_BODY.value)
  grace = int(limits.timeout) + 1
  server = uvicorn.Server(
    uvicorn.Config(make_app(reranker, limits), log_level="info", access_log=False, timeout_graceful_shutdown=grace, backlog=BACKLOG)
  )

  def warm_up() -> None:
    with Progress().task("compile", 1, "programs") as task:

      def on_progress(done: int, total: int) -> None:
        task.total = total
        task.update(done)
        if server.should_exit:
          raise InterruptedError

      reranker.warm_up(on_progress)

  run_beside(server, listening, warm_up)


def main(argv: Sequence[str]) -> int:
  """Serves what the flags name."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --run=RUN", file=sys.stderr)
    return 1
  return exit_code_of(serve)


if __name__ == "__main__":
  app.run(main)
