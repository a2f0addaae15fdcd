"""What decides a run's numbers besides its config: versions, device, commit."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

PACKAGES = ("gr2_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def compute_versions() -> dict[str, str | None]:
  """Versions of Python and of the libraries that decide numbers, the device kind, and the git commit of the code if any."""
  import jax

  device = jax.devices()[0]
  return {
    "python": platform.python_version(),
    **{name: _version_of(name) for name in PACKAGES},
    "system": platform.platform(),
    "platform": device.platform,
    "device_kind": device.device_kind,
    "devices": str(jax.device_count()),
    "git_commit": _git_commit(),
  }


def describe_machine(packages: tuple[str, ...]) -> dict[str, Any]:
  """Devices, processor count and the versions of those packages that are installed."""
  import jax

  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processors": os.cpu_count(),
    "python": platform.python_version(),
    "versions": {package: _version_of(package) for package in packages},
  }


def _version_of(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_commit() -> str | None:
  command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
