"""What decides a run's numbers besides its config: versions, device, commit."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

_CODE = ("gr2_jax", "experiments", "configs")  # what of the repository decides numbers
PACKAGES = ("gr2_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def compute_versions() -> dict[str, str | None]:
  """Versions of Python and of the libraries that decide numbers, the machine, and the code's git commit and whether it was changed since.

  `git_tree` is `clean` or `changed`; None, as the commit, for code outside a repository.
  """
  import jax

  device = jax.devices()[0]
  return {
    "python": platform.python_version(),
    **{name: version_of(name) for name in PACKAGES},
    "system": platform.platform(),
    "platform": device.platform,
    "device_kind": device.device_kind,
    "devices": str(jax.device_count()),
    "processor": _processor(),
    "git_commit": _ask_git("rev-parse", "HEAD"),
    "git_tree": None if (changes := _ask_git("status", "--porcelain", "--", *_CODE)) is None else "changed" if changes else "clean",
  }


def describe_machine(packages: tuple[str, ...]) -> dict[str, Any]:
  """Devices, processor count and the versions of those packages that are installed."""
  import jax

  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processors": os.cpu_count(),
    "python": platform.python_version(),
    "versions": {package: version_of(package) for package in packages},
  }


def version_of(package: str) -> str | None:
  """The installed version of a package; None where it is not installed."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _processor() -> str | None:
  """What the processor is called: programs compiled for one kind add up in another order than for the next."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  except OSError:
    lines = []
  return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor() or None)


def _ask_git(*question: str) -> str | None:
  """What git says of the code's repository; None where there is none."""
  command = ["git", "-C", str(pathlib.Path(__file__).parents[2]), *question]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
