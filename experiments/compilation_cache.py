"""The flag `--compilation_cache` of all programs: where JAX keeps what it compiled, so that the next process need not compile it again."""

import os
import pathlib
import sys
import tempfile
import time
import warnings

from absl import flags

NAME = "compilation_cache"
OFF = "off"
UNUSED_DAYS = 30

MIN_COMPILE_SECONDS = 0.0

# So that --help of a program lists the flag that `define_compilation_cache` defines for it.
flags.disclaim_key_flags()


def define_compilation_cache() -> flags.FlagHolder:
  """The flag; a program gives its value to `use_compilation_cache` before it computes."""
  usage = f"folder of compiled programs, shared by all runs; {OFF}: none (JAX_COMPILATION_CACHE_DIR, or gr2_jax/xla in the user's cache)"
  return flags.DEFINE_string(NAME, None, usage)


def use_compilation_cache(folder: str | None) -> None:
  """Lets JAX read and keep compiled programs in a folder.

  `off`: nowhere; None: where the user's environment says, else in the user's cache, from which entries go that nobody read for a month.
  A folder that cannot be written is a warning, and everything is compiled. JAX's key of an entry holds the program, the versions, the
  flags and the device with its features, so another machine that sees the folder compiles its own.
  """
  import jax

  if folder == OFF:
    jax.config.update("jax_enable_compilation_cache", False)
    return
  own = folder is None
  if own and jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]  # JAX adds its options as it is imported
    return
  path = default_folder() if folder is None else pathlib.Path(folder)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
    if own:
      _drop_unused(path)
  except OSError as error:
    print(f"WARNING: --{NAME}: {path} cannot be written ({error.strerror}), so programs are compiled anew", file=sys.stderr)
    jax.config.update("jax_enable_compilation_cache", False)
    return
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
  # A disk that fills up, or an entry that a killed process cut short: the program is compiled instead, which needs no line each.
  warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def default_folder() -> pathlib.Path:
  """In the user's cache."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "gr2_jax" / "xla"


def _drop_unused(folder: pathlib.Path) -> None:
  oldest = time.time() - UNUSED_DAYS * 24 * 3600
  for path in folder.iterdir():
    if path.is_file() and max((used := path.stat()).st_atime, used.st_mtime) < oldest:
      path.unlink(missing_ok=True)
