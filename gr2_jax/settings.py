"""Settings: frozen records whose fields say what they mean and which values they hold, written to a config and read from one."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from ml_collections import config_dict

from gr2_jax.errors import ConfigError

Record = TypeVar("Record")
_INT32 = 2**31 - 1
_FLOAT32 = 3.4e38
_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


class Setting(NamedTuple):
  """A setting for its reader: the dotted key, and in words what may stand there, of which `choices` are the names."""

  key: str
  meaning: str
  unit: str
  default: Any
  values: str
  choices: tuple[str, ...]


class Section(NamedTuple):
  """A section of a config for its reader: the dotted key, empty for the outermost one, and the settings right in it."""

  key: str
  meaning: str
  settings: tuple[Setting, ...]


def setting(
  default: Any = dataclasses.MISSING,
  meaning: str = "",
  *,
  unit: str = "",
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  below: float | None = None,
  choices: Collection[str] = (),
) -> Any:
  """A field of a record that stands in a config: what it means, in which unit, and what it holds, each member of a tuple alike.

  Numbers lie in `low`..`high`, ends included, and between `above` and `below`, ends excluded; whatever the limits, they are finite and fit
  32 bits. `choices`: of text, as they are when a value is checked; those of a `Literal` need not be named. A field of another record is a
  section inside the section.
  """
  limits = {"low": low, "high": high, "above": above, "below": below}
  return dataclasses.field(default=default, metadata={"meaning": meaning, "unit": unit, "limits": limits, "choices": choices})


def spread(default: Any) -> Any:
  """A field of another record whose settings stand among those of the record that holds it."""
  return dataclasses.field(default=default, metadata={"spread": True})


def check_settings(record: Any) -> None:
  """For `__post_init__`. Raises ValueError with a line `field: fault` for every setting whose value cannot hold."""
  faults = [(field.name, _find_fault(getattr(record, field.name), hint, field.metadata)) for field, hint in settings_of(type(record))]
  lines = [f"{name}: {fault}" for name, fault in faults if fault]
  if lines:
    raise ValueError("\n".join(lines))


_SETTINGS: dict[Any, tuple[tuple[dataclasses.Field, Any], ...]] = {}  # of records that were asked about: hints take a while to resolve


def settings_of(kind: type) -> tuple[tuple[dataclasses.Field, Any], ...]:
  """The fields of a record that stand in a config, with their types; other fields are the code's own."""
  if kind not in _SETTINGS:
    hints = typing.get_type_hints(kind)
    _SETTINGS[kind] = tuple((field, hints[field.name]) for field in dataclasses.fields(kind) if field.metadata)
  return _SETTINGS[kind]


def to_section(record: Any) -> dict[str, Any]:
  """The record's settings as nested dicts for a ConfigDict; None is a placeholder of its type, so that it can be set."""
  section: dict[str, Any] = {}
  for field, hint in settings_of(type(record)):
    value = getattr(record, field.name)
    if "spread" in field.metadata:
      section |= to_section(value)
    elif dataclasses.is_dataclass(value):
      section[field.name] = to_section(value)
    else:
      section[field.name] = config_dict.placeholder(_kinds(hint)[0]) if value is None else value
  return section


def describe_sections(record: Any, key: str = "", meaning: str = "") -> list[Section]:
  """The record's section at a dotted key, and the sections inside, each after the one that holds it."""
  own: list[Setting] = []
  inside: list[Section] = []
  for field, hint in settings_of(type(record)):
    value, name = getattr(record, field.name), f"{key}.{field.name}" if key else field.name
    if "spread" in field.metadata:
      beside, *others = describe_sections(value, key)
      own += beside.settings
      inside += others
    elif dataclasses.is_dataclass(value):
      inside += describe_sections(value, name, field.metadata["meaning"])
    else:
      values, choices = _name_values(hint, field.metadata), tuple(_choices_of(_kinds(hint)[0], field.metadata))
      own.append(Setting(name, field.metadata["meaning"], field.metadata["unit"], value, values, choices))
  return [Section(key, meaning, tuple(own)), *inside]


def read_section(kind: type[Record], section: Mapping[str, Any], key: str = "") -> tuple[Record | None, list[str]]:
  """(the record of the config section at a dotted key, or None; its faults, each a line `--config.KEY: fault`)."""
  prefix = f"{key}." if key else ""
  values: dict[str, Any] = {}
  faults = [f"--config.{prefix}{name}: no such setting; there are {', '.join(_keys(kind))}" for name in section if name not in _keys(kind)]
  for field, hint in settings_of(kind):
    name = field.name
    if "spread" in field.metadata:
      inner, found = read_section(hint, {name: section[name] for name in _keys(hint) if name in section}, key)
    elif name not in section:
      inner, found = None, [f"--config.{prefix}{name}: missing; add it to the config"]
    elif dataclasses.is_dataclass(hint):
      inner, found = read_section(typing.cast(type, hint), section[name], prefix + name)
    else:
      value = section[name]
      inner, found = tuple(value) if isinstance(value, list) else value, []
    if found:
      faults += found  # and the default takes its place, so that the other fields are checked as well
    else:
      values[name] = inner
  try:
    record = kind(**values)
  except (TypeError, ValueError) as error:  # TypeError: a faulty setting has no default
    if not (faults and isinstance(error, TypeError)):
      faults += name_faults(error, key, _keys(kind))
  return (None, faults) if faults else (record, [])


def read_record(kind: type[Record], config: Mapping[str, Any], key: str) -> Record:
  """The record of the section at a dotted key; raises ConfigError with all that is wrong with it."""
  for part in key.split("."):
    config = config[part]
  record, faults = read_section(kind, config, key)
  if record is None:
    raise ConfigError("\n".join(faults))
  return record


def name_faults(error: Exception, key: str, names: Sequence[str]) -> list[str]:
  """The lines of an error about the section at a dotted key: where one begins with a setting of it, one of `names`, with its full key."""
  prefix, lines = f"{key}." if key else "", []
  for line in str(error).split("\n"):
    name, _, fault = line.partition(": ")
    lines.append(f"--config.{prefix}{name}: {fault}" if name in names else f"--config.{key}: {line}")
  return lines


def _keys(kind: type) -> tuple[str, ...]:
  keys: list[str] = []
  for field, hint in settings_of(kind):
    keys += _keys(hint) if "spread" in field.metadata else [field.name]
  return tuple(keys)


def _kinds(hint: Any) -> tuple[Any, ...]:
  """The types that a hint allows; of tuples the tuple."""
  return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _choices_of(kind: Any, metadata: Mapping[str, Any]) -> Collection[str]:
  return typing.get_args(kind) if typing.get_origin(kind) is Literal else metadata["choices"]


def _name_values(hint: Any, metadata: Mapping[str, Any]) -> str:
  """What may stand there, in words."""
  kind, limits = _kinds(hint)[0], _name_limits(metadata["limits"])
  choices, members, is_tuple = _choices_of(kind, metadata), typing.get_args(kind), typing.get_origin(kind) is tuple
  if choices:
    text = f"{'any' if is_tuple else 'one'} of {', '.join(choices)}"
  elif is_tuple:
    text = _PLURALS[members[0]] if Ellipsis in members else f"{len(members)} {_PLURALS[members[0]]}"
    text += f", each {limits}" if limits else ""
  else:
    text = _NAMES[kind] + (f", {limits}" if limits else "")
  return text + (", or None" if types.NoneType in _kinds(hint) else "")


def _name_limits(limits: Mapping[str, float | None]) -> str:
  low, high, above, below = (limits[name] for name in ("low", "high", "above", "below"))
  wanted = [f"at least {low:g}"] if low is not None else [f"above {above:g}"] if above is not None else []
  wanted += [f"at most {high:g}"] if high is not None else [f"below {below:g}"] if below is not None else []
  return " and ".join(wanted)


def _find_fault(value: Any, hint: Any, metadata: Mapping[str, Any]) -> str | None:
  """What is wrong with a value, or None."""
  if "spread" in metadata or dataclasses.is_dataclass(hint):
    return None  # it has checked itself
  kinds = _kinds(hint)
  if value is None:
    return None if types.NoneType in kinds else "None is no value here"
  kind = kinds[0]
  choices = _choices_of(kind, metadata)
  if typing.get_origin(kind) is tuple or isinstance(value, list | tuple):
    return _find_fault_in_tuple(value, kind, metadata)
  if choices:
    return None if value in choices else f"{value!r} is not known; choose {' or '.join(choices)}"
  if not _is_of(value, kind):
    return f"{value!r} is not {_NAMES[kind]}"
  return _find_fault_of_number(value, metadata["limits"]) if kind in (int, float) else None


def _find_fault_in_tuple(value: Any, kind: Any, metadata: Mapping[str, Any]) -> str | None:
  members = typing.get_args(kind)
  if not (members and isinstance(value, list | tuple)):
    return f"{value!r} is not {_NAMES[tuple] if members else _NAMES[kind]}"
  if Ellipsis not in members and len(value) != len(members):
    return f"{value!r} must have {len(members)} members"
  return next((fault for member in value if (fault := _find_fault(member, members[0], metadata))), None)


def _is_of(value: Any, kind: type) -> bool:
  if kind in (int, float):
    return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
  return isinstance(value, kind)


def _find_fault_of_number(value: Any, limits: Mapping[str, float | None]) -> str | None:
  if not isinstance(value, numbers.Integral) and not math.isfinite(value):
    return f"{value} must be a finite number"
  if abs(value) > (_INT32 if isinstance(value, numbers.Integral) else _FLOAT32):
    return f"{value} does not fit 32 bits"
  low, high, above, below = (limits[name] for name in ("low", "high", "above", "below"))
  if (
    (low is not None and value < low)
    or (above is not None and value <= above)
    or (high is not None and value > high)
    or (below is not None and value >= below)
  ):
    return f"{value} must be {_name_limits(limits)}"
  return None
