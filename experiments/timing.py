"""How every benchmark measures: first calls apart, the runs of all peers interleaved, medians."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
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


def describe_machine(packages: tuple[str, ...]) -> dict[str, Any]:
  """Devices, processor count and the versions of those packages that are installed."""
  versions = {}
  for package in packages:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      versions[package] = None
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processors": os.cpu_count(),
    "python": platform.python_version(),
    "versions": versions,
  }
