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
  """Seconds: `first` holds compilation, `median` is that of the later calls."""

  first: float
  median: float


def time_interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int = 9) -> dict[str, Timing]:
  """Times each function once a round, so that a slow spell of the machine falls on all alike; waits for device results."""

  def seconds(function):
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start

  first = {name: seconds(function) for name, function in functions.items()}
  later = [{name: seconds(function) for name, function in functions.items()} for _ in range(rounds)]
  return {name: Timing(first[name], statistics.median(times[name] for times in later)) for name in functions}


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
