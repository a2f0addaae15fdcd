"""Compiles steps for this machine and times them within a few seconds: what a call takes, and how much memory."""

import functools
import math
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.estimates.flops import count_flops
from experiments.stage_steps import StageStep

Result = TypeVar("Result")

_PROBE = 1024  # rows and columns of the matrix product that is timed first
_SHARE_OF_PROBE = 0.1  # of its rate, which the first step is taken to reach
# What the work of `_work_on_host` takes on the machine on which the costs of `estimates.host` were measured.
_REFERENCE_SECONDS = 0.034


class Measured(NamedTuple):
  """Of one step: `flops` and `seconds` of a call, whether these were `timed` or follow from the rate of others, seconds of its compilation,
  and the bytes that it takes on a device beside the state.
  """

  flops: float
  seconds: float
  timed: bool
  compile_seconds: float
  memory: float


class Machine(NamedTuple):
  """What was found of this machine: `host_pace`, times as long as the reference one takes for work on the host; the `rate` of a large
  matrix product in FLOP/s; the `share` of a processor that it had while it was `measured` for so many seconds.
  """

  host_pace: float
  rate: float
  share: float
  measured: float


def measure_steps(steps: Sequence[StageStep], mesh: Mesh, seconds: float) -> tuple[list[Measured], Machine]:
  """Measures for about so many `seconds`, compilations apart.

  A step that does not fit into memory, or of which two calls would take longer than what is left, is not run: it is taken to reach the
  middle rate of those that were, or of a large matrix product where none was.
  """
  flops = [count_flops(step.function, *(argument.arrays for argument in step.arguments), trips=step.trips) for step in steps]
  clock = _Clock()
  pace = clock.time(_work_on_host)[0] / _REFERENCE_SECONDS
  rate = _probe_rate(clock)
  rates: list[float] = []
  found: dict[int, Measured] = {}
  order = sorted(range(len(steps)), key=flops.__getitem__)  # small ones first: the rates of these say which of the others can be run
  for place, index in enumerate(order):
    compile_seconds, compiled = _Clock().time(functools.partial(_compile, steps[index], mesh))
    memory, whole = _memory_of(compiled, steps[index], mesh)
    guess = flops[index] / (statistics.median(rates) if rates else _SHARE_OF_PROBE * rate)
    left = seconds - clock.spent
    timed = 2 * guess < left and whole < _free_bytes()
    per_call = math.nan
    if timed:
      per_call = _time_calls(steps[index], compiled, mesh, clock, left / (len(order) - place))
      rates.append(flops[index] / per_call)
    found[index] = Measured(flops[index], per_call, timed, compile_seconds, memory)
  reached = statistics.median(rates) if rates else rate
  measured = [of if of.timed else of._replace(seconds=of.flops / reached) for of in (found[index] for index in range(len(steps)))]
  return measured, Machine(pace, rate, clock.share, clock.spent)


class _Clock:
  """Seconds that calls took, `spent` all together, and the share of a processor that they had."""

  def __init__(self) -> None:
    self.spent = self._wall = self._processor = 0.0

  def time(self, function: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a call and its result: by the clock, or on a CPU by the processor where that is less, since what waits for others is no
    work of the call."""
    wall, processor = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    self._wall, self._processor = self._wall + wall, self._processor + processor
    taken = min(wall, processor) if jax.default_backend() == "cpu" else wall
    self.spent += taken
    return taken, result

  @property
  def share(self) -> float:
    """At most 1, where several were held."""
    return min(1.0, self._processor / self._wall)


def _compile(step: StageStep, mesh: Mesh) -> jax.stages.Compiled:
  return step.lower(mesh).compile()


def _time_calls(step: StageStep, compiled: Any, mesh: Mesh, clock: _Clock, seconds: float) -> float:
  """Median seconds of calls for about so long, at least two, of which the first, that warms up, does not count."""
  arguments = [_make(argument.arrays, argument.on(mesh)) for argument in step.arguments]
  jax.block_until_ready(arguments)
  times: list[float] = []

  def call() -> Any:
    result = compiled(*arguments)
    if step.trains:
      arguments[0] = result[0]  # the state that was given is gone
    return result

  until = clock.spent + seconds
  while len(times) < 2 or clock.spent < until:
    times.append(clock.time(call)[0])
  return statistics.median(times[1:])


def _make(shapes: Any, shardings: Any) -> Any:
  """Arrays of these shapes: real places, and parameters that prefer no token, so that decoding goes on to its limit."""

  def fill(x: Any) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    return jnp.zeros(x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.ones(x.shape, x.dtype)

  return jax.jit(lambda: jax.tree.map(fill, shapes), out_shardings=shardings)()


def _memory_of(compiled: Any, step: StageStep, mesh: Mesh) -> tuple[float, float]:
  """Bytes on a device: beside the step's state or parameters, and with them."""
  of = compiled.memory_analysis()
  whole = of.argument_size_in_bytes + of.output_size_in_bytes - of.alias_size_in_bytes + of.temp_size_in_bytes
  return max(whole - step.arguments[0].bytes_on(mesh), 0), whole


def _free_bytes() -> float:
  """Of a device; on a CPU what the system has left."""
  stats = jax.devices()[0].memory_stats()
  if stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  path = pathlib.Path("/proc/meminfo")
  found = re.search(r"MemAvailable:\s*(\d+) kB", path.read_text()) if path.exists() else None
  return 1024.0 * int(found[1]) if found else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _probe_rate(clock: _Clock) -> float:
  """FLOP/s of a large matrix product, the best of three."""
  x = jnp.ones((_PROBE, _PROBE))
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(x, x))
  return 2.0 * _PROBE**3 / min(clock.time(lambda: product(x, x))[0] for _ in range(3))


def _work_on_host() -> int:
  """What stages do that compute on no device: dictionaries, sorting, small objects."""
  counts: dict[int, int] = {}
  for number in range(300_000):
    key = number * 2_654_435_761 % 10_007
    counts[key] = counts.get(key, 0) + 1
  return len(sorted(counts.items(), key=lambda pair: (pair[1], pair[0])))
