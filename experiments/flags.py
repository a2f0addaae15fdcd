"""`--config=file.py:args` with locked overrides, of files and single ones, checked before anything starts."""

import ast
import difflib
import importlib.util
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from gr2_jax.errors import ConfigError, UserError
from gr2_jax.printable import escape_controls

NAME = "config"
_FILES = "overrides"

# What flags may name, spelt out, since the packages that define it bring JAX, for which --help should not wait.
MODES = ("reason", "direct", "score")
COMPRESSORS = ("sids", "rules", "rewriter", "soft_tokens")

# So that --help of a program lists the flag that `define_config` defines for it.
flags.disclaim_key_flags()

_PARSERS = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}


def define_config() -> flags.FlagHolder:
  """The flags `--config`, whose value is the locked config with its overrides, and `--overrides`; parse them with `parse_flags`."""
  usage = (
    "experiment: FILE.py or FILE.py:args; FILE.gr2 or FILE.gr2:VARIANT/seed_N repeats a shared run; single values by --config.key=value"
  )
  of_files = "TOML file whose values go over the config's; of several (--overrides=A --overrides=B) the last wins, --config.key over all"
  flags.DEFINE_multi_string(_FILES, [], of_files)
  defined = config_flags.DEFINE_config_file(NAME, None, usage, lock_config=True)
  flags.FLAGS[NAME].parser = _ConfigParser()
  return defined


class _ConfigParser(flags.ArgumentParser):
  """Configs as `load_config` reads them, where ml_collections knows Python alone."""

  def parse(self, path: str) -> config_dict.ConfigDict:
    return load_config(path)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """For `absl.app.run(main, flags_parser=parse_flags)`: a wrong flag is one clear line and exit code 1, not a traceback."""
  try:
    asked = [arg for arg in argv if re.match(r"--?help", arg)]
    if asked:
      return flags.FLAGS([argv[0], *asked])  # alone, since a config brings JAX
    check_overrides(load_config(_config_path(argv)), _overrides(argv))
    others = flags.FLAGS(list(argv))
    _apply_files(flags.FLAGS[NAME], flags.FLAGS[_FILES].value)
    return others
  except (UserError, flags.Error) as error:
    print(f"ERROR: {error}", file=sys.stderr)
    sys.exit(1)


def load_config(path: str) -> config_dict.ConfigDict:
  """The locked config of `FILE.py` or `FILE.py:args`, or of a shared run, `FILE.gr2` or `FILE.gr2:VARIANT/seed_N`.

  Raises ConfigError for a missing file, and ArchiveError for a shared one that cannot be read.
  """
  if is_shared(path):
    from experiments.repeat import load_shared_config

    return load_shared_config(path)
  config = load_module(path).get_config(*path.split(":", 1)[1:])
  if not isinstance(config, config_dict.ConfigDict):
    raise ConfigError(f"--{NAME}: get_config() of {path} returned {type(config).__name__}; return an ml_collections.ConfigDict")
  return config.lock()


def is_shared(path: str) -> bool:
  """Whether a config's path means a file of `experiments.share`."""
  if ".gr2" not in path:
    return False
  from gr2_jax.runs.run_file import split_path  # here, since it brings JAX, for which other configs' errors should not wait

  return split_path(path) is not None


def load_module(path: str) -> ModuleType:
  """The config file of `FILE.py` or `FILE.py:args`, for what it holds besides `get_config`.

  Raises ConfigError for a missing file and for one that is no Python.
  """
  file = pathlib.Path(path.split(":", 1)[0])
  if not file.is_file():
    beside = sorted(str(p) for p in file.parent.glob("*.py") if p.name != "__init__.py") if file.parent.is_dir() else []
    raise ConfigError(f"--{NAME}: no file {str(file)!r}{_near(str(file), beside)}")
  spec = importlib.util.spec_from_file_location(f"{NAME}_file", file)
  if spec is None or spec.loader is None:
    raise ConfigError(f"--{NAME}: {str(file)!r} is no Python file; give a file that ends in .py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--{NAME}: {file} has no get_config(); write one that returns an ml_collections.ConfigDict")
  return module


def check_overrides(config: config_dict.ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
  """Raises ConfigError for a key that `config` lacks or a value of another type. `overrides`: (dotted key, text) pairs."""
  for key, text in overrides:
    flag = f"--{NAME}.{key}"
    _check_value(flag, *_find(config, key.split("."), flag), text)


def read_overrides(path: str, config: config_dict.ConfigDict) -> dict[str, Any]:
  """Dotted key -> value of a TOML file, sections as tables or dotted keys, arrays as tuples; nothing in it is executed.

  Raises ConfigError, naming file and key, for a file that is missing or no TOML, a key that `config` lacks or a value of another type.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    beside = sorted(str(p) for p in file.parent.glob("*.toml")) if file.parent.is_dir() else []
    raise ConfigError(f"--{_FILES}: no file {path!r}{_near(path, beside)}")
  try:
    given = list(_flatten(tomllib.loads(file.read_text(encoding="utf-8"))))
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(f"--{_FILES}={path}: no TOML ({escape_controls(str(error))}); write lines such as rl.steps = 200") from None
  values: dict[str, Any] = {}
  for parts, value in given:
    key = ".".join(parts)
    flag = f"--{_FILES}={path}: {escape_controls(key)}"
    kind, now = _find(config, parts, flag)
    if value == {} and kind is config_dict.ConfigDict:
      continue  # a table without a value
    _check_no_section(flag, kind, now)
    if _is_huge(value):
      raise ConfigError(f"{flag}: a whole number that does not fit 64 bits")
    fits = list if kind is tuple else (int, float) if kind is float else kind
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
      raise ConfigError(f"{flag}: expected {kind.__name__} (now {now!r}), got {type(value).__name__} {value!r}")
    values[key] = kind(value)
  return values


def command_of(program: str) -> list[str]:
  """The command as it was given, for the record, and after it what its files of overrides set, since they may change."""
  given = {key for key, _ in _overrides(sys.argv)}
  of_files = [f"--{NAME}.{key}={value}" for key, value in flags.FLAGS[NAME].override_values.items() if key not in given]
  return ["python", "-m", program, *sys.argv[1:], *of_files]


def parse_arg(arg: str | None, **defaults: Any) -> SimpleNamespace:
  """Reads the short argument of `get_config(arg)`: `"beauty,small,steps=100"`.

  A bare word switches on the default of that name, which must be a bool; `name=value` takes the type of its default.
  Raises ConfigError for an unknown name (listing near ones) or a value of another type.
  """
  values = dict(defaults)
  for word in filter(None, (arg or "").split(",")):
    name, given, text = word.strip().partition("=")
    if name not in defaults:
      raise ConfigError(f"config argument {name!r} is unknown{_near(name, list(defaults))}")
    kind = type(defaults[name])
    if not given and kind is not bool:
      raise ConfigError(f"config argument {name!r} needs a value: {name}={defaults[name]}")
    _check_value(f"config argument {name}", kind, defaults[name], text if given else "true")
    values[name] = True if not given else _PARSERS[kind].parse(text) if kind in _PARSERS else text
  return SimpleNamespace(**values)


def _apply_files(flag: Any, paths: Sequence[str]) -> None:
  """Sets what the files say in the parsed config and its `override_values`, but for keys that stand on the command line."""
  values: dict[str, Any] = {}
  for path in paths:
    values |= read_overrides(path, flag.value)
  values = {key: value for key, value in values.items() if key not in flag.override_values}
  flag.value.update_from_flattened_dict(values)
  flag.override_values.update(values)


def _flatten(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
  for name, value in table.items():
    if isinstance(value, Mapping) and value:
      yield from _flatten(value, (*above, name))
    else:
      yield (*above, name), value


def _is_huge(value: Any) -> bool:
  """Whether an integer is, or is in, the value that cannot even be printed."""
  return any(map(_is_huge, value)) if isinstance(value, list) else isinstance(value, int) and value.bit_length() > 63


def _find(config: config_dict.ConfigDict, parts: Sequence[str], flag: str) -> tuple[type, Any]:
  """(type, value) at a dotted key; raises ConfigError, which begins with `flag`, where there is none."""
  value: Any = config
  kind: type = config_dict.ConfigDict
  for depth, part in enumerate(parts):
    here = ".".join((NAME, *parts[:depth]))
    if not isinstance(value, config_dict.ConfigDict):
      raise ConfigError(f"{flag}: {here} is a {type(value).__name__}, not a section; it has no keys")
    if part not in value:
      raise ConfigError(f"{flag}: {here} has no key {part!r}{_near(part, list(value.keys()), _paths(config))}")
    kind, value = value.get_type(part), value[part]
  return kind, value


def _config_path(argv: Sequence[str]) -> str:
  for index, arg in enumerate(argv[1:], 1):
    match = re.fullmatch(rf"--?{NAME}(=(.*))?", arg)
    if match and (match[1] or index + 1 < len(argv)):
      return match[2] if match[1] else argv[index + 1]
  raise ConfigError(f"--{NAME} is missing; for example --{NAME}=configs/quickstart.py")


def _overrides(argv: Sequence[str]) -> list[tuple[str, str]]:
  """(key, text) of `--config.key=text`, `--config.key text`, and the bool forms `--config.key` and `--noconfig.key`."""
  found = []
  for index, arg in enumerate(argv):
    match = re.fullmatch(rf"--?(no)?{NAME}\.([^=]+)(=(.*))?", arg, re.DOTALL)
    if match is None:
      continue
    if match[3]:
      text = match[4]
    elif match[1]:
      text = "false"
    else:
      following = argv[index + 1] if index + 1 < len(argv) else "--"
      text = "true" if following.startswith("--") else following
    found.append((match[2], text))
  return found


def _check_no_section(flag: str, kind: type, now: Any) -> None:
  if kind is config_dict.ConfigDict:
    raise ConfigError(f"{flag} is a section; set one of its keys: {', '.join(now.keys())}")
  if kind is type(None):
    raise ConfigError(f"{flag} is None and has no type; declare it in the config as config_dict.placeholder(TYPE)")


def _check_value(flag: str, kind: type, now: Any, text: str) -> None:
  _check_no_section(flag, kind, now)
  try:
    if kind in _PARSERS:
      _PARSERS[kind].parse(text)
    elif kind in (tuple, list) and not isinstance(ast.literal_eval(text), tuple | list):
      raise ValueError
  except (ValueError, SyntaxError):
    raise ConfigError(f"{flag}: expected {kind.__name__} (now {now!r}), got {_type_name(text)} {text!r}") from None


def _type_name(text: str) -> str:
  try:
    return type(ast.literal_eval(text)).__name__
  except (ValueError, SyntaxError):
    return "str"


def _near(name: str, names: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
  """The remedy of an unknown name: near ones, here or as the last part of a dotted path, else all of them."""
  near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
  near += [path for path in elsewhere if path.rpartition(".")[2] == name and path not in near]
  if near:
    return f"; did you mean {' or '.join(near)}?"
  return f"; there are: {', '.join(names)}" if names else ""


def _paths(config: config_dict.ConfigDict, prefix: str = "") -> list[str]:
  paths: list[str] = []
  for key, value in config.items():
    paths += _paths(value, f"{prefix}{key}.") if isinstance(value, config_dict.ConfigDict) else [prefix + key]
  return paths
