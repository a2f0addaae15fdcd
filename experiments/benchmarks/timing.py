"""How every benchmark measures: first calls apart, the runs of all peers interleaved, medians."""

import pathlib
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
  """Seconds by the clock, and of processor time over all threads, which neighbours on the machine disturb less."""

  wall: float
  processor: float


def time_call(function: Callable[[], Any]) -> tuple[Timing, Any]:
  """Times one call, waiting for what it computes on devices, and returns its result too; the first call holds compilation."""
  wall, processor = time.perf_counter(), time.process_time()
  result = jax.block_until_ready(function())
  return Timing(time.perf_counter() - wall, time.process_time() - processor), result


def time_interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, Timing]:
  """Medians for each function, called once a round, so that a slow spell of the machine falls on all alike."""
  times = [{name: time_call(function)[0] for name, function in functions.items()} for _ in range(rounds)]
  return {name: Timing(*map(statistics.median, zip(*(of_round[name] for of_round in times), strict=True))) for name in functions}


def compare_lines(case: str, first: Mapping[str, Timing], medians: Mapping[str, Timing], rounds: int) -> Iterator[dict[str, Any]]:
  """A line for each peer: its first call, its median over the rounds, and how many times as long as gr2_jax it takes."""
  for name, median in medians.items():
    yield {
      "case": case,
      "peer": name,
      "rounds": rounds,
      "first_call_s": round(first[name].wall, 3),
      "median_s": round(median.wall, 4),
      "times_ours": round(median.wall / medians["gr2_jax"].wall, 2),
      "processor_s": round(median.processor, 4),
      "times_our_processor": round(median.processor / medians["gr2_jax"].processor, 2),
    }


def peak_gb() -> float:
  """The most memory that this process ever held, by the system's own count."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # Linux, whose getrusage gives a process that was just started the peak of the one that started it
    return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024 / 1e9  # type: ignore[index]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
