"""Writes docs/config.md, the page of all settings, from the records that hold them and from what the stages say that they read.

python -m experiments.config_page
"""

import argparse
import inspect
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from gr2_jax.files import replacing
from gr2_jax.settings import Section, Setting, describe_sections

if TYPE_CHECKING:  # it brings JAX, for which --help should not wait
  from gr2_jax.runs.stages import Stage

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "config.md"

_INTRO = """# Settings

Every key of a config: what it means, its unit, its default in [`configs/base.py`](../configs/base.py), what may stand there, and which
stages of a run read it. Written by `python -m experiments.config_page`; the texts stand in the records of the code, so change them there.

- A config file is a short list of changes to these defaults. Over it go files of changes, in the order given, and over them single values:
  `python -m experiments.run --config=configs/quickstart.py --overrides=FILE.toml --config.rl.steps=200 --workdir=RUN`. The file is TOML,
  with a table for a section (`[rl]`, then `steps = 200`) or dotted keys (`rl.steps = 200`); arrays are tuples.
- `None` is the default of a key, or set by a config file; neither a file of changes nor the command line can write it.
- *Read by*: the stages whose files a key decides; a changed value makes these anew, and all that follow them. In brackets stands the one
  setting on which it depends whether they look at the key, the others at their defaults. A key that no stage reads (-) changes no result.
"""


def render_page(config: ConfigDict) -> str:
  """The page as Markdown; `config`: all defaults, left as it was."""
  from experiments.settings import RunOptions
  from experiments.stages import load_stages

  stages = load_stages()
  sections = describe_sections(RunOptions(), meaning="What stands outside of all sections.")
  for stage in stages:
    if stage.options is not None:
      sections += describe_sections(stage.options(), stage.name, _introduce(stage))
  readers = find_readers(config, [setting for section in sections for setting in section.settings], stages)
  names = [section.key for section in sections if section.key and "." not in section.key]
  contents = "Sections: " + ", ".join(f"[`{name}`](#{name})" for name in names) + ".\n"
  return "\n".join((_INTRO, contents, *(line for section in sections for line in _render_section(section, readers))))


def find_readers(config: ConfigDict, settings: Sequence[Setting], stages: Sequence["Stage"]) -> dict[str, str]:
  """Dotted key -> the stages that read it, in words.

  Which keys a stage leaves unused may depend on the config, so each setting that can switch something is changed, one at a time.
  """
  unused: dict[str, list[_Unused]] = {stage.name: [] for stage in stages}
  for setting in settings:
    for value in (setting.default, *_other_values(setting)):
      config.update_from_flattened_dict({setting.key: value})
      for stage in stages:
        unused[stage.name].append(_Unused(setting, value, stage.unused(config) if stage.unused is not None else ()))
    config.update_from_flattened_dict({setting.key: setting.default})
  readers = {}
  for setting in settings:
    reading = [stage.name for stage in stages if setting.key.partition(".")[0] in stage.reads]
    conditions = {name: _find_condition(setting.key, unused[name], name) for name in reading}
    readers[setting.key] = ", ".join(f"`{name}`{condition}" for name, condition in conditions.items() if condition is not None)
  return readers


class _Unused(NamedTuple):
  """The keys that a stage leaves unused where a setting has a value and all others their defaults."""

  setting: Setting
  value: Any
  keys: tuple[str, ...]

  def holds(self, key: str) -> bool:
    return any(key == unused or key.startswith(f"{unused}.") for unused in self.keys)


def _find_condition(key: str, unused: Sequence[_Unused], stage: str) -> str | None:
  """When the stage reads the key, in words, empty for always; None for a key of another section that it never reads."""
  is_left = unused[0].holds(key)  # at the defaults
  deciding: dict[str, list[_Unused]] = {}
  for change in unused:
    if change.holds(key) != is_left:
      deciding.setdefault(change.setting.key, []).append(change)
  if not deciding:
    return None if is_left and not key.startswith(f"{stage}.") else ""
  return f" ({' or '.join(_name_condition(changes, is_left) for changes in deciding.values())})"


def _other_values(setting: Setting) -> Iterator[Any]:
  """Values besides the default that may switch something on or off."""
  default, choices = setting.default, setting.choices
  if isinstance(default, bool):
    yield not default
  elif isinstance(default, tuple):
    yield from ((choice,) for choice in choices if (choice,) != default)
  elif choices:
    yield from (choice for choice in choices if choice != default)
  elif isinstance(default, str):
    yield "another"
  elif default == 0:
    yield type(default)(1)


def _name_condition(changes: Sequence[_Unused], is_read: bool) -> str:
  """`if` the setting has one of the changed values where the key `is_read` with these, else `unless`."""
  setting = changes[0].setting
  key, others = f"`{setting.key}`", list(_other_values(setting))
  if len(changes) == len(others) and not isinstance(setting.default, bool) and not (is_read and setting.choices and len(others) == 1):
    default = "empty" if setting.default in ((), "") else _render_value(setting.default)
    return f"if {key} is {'not ' if is_read else ''}{default}"
  names = " or ".join(_render_value(change.value[0] if isinstance(change.value, tuple) else change.value) for change in changes)
  return f"{'if' if is_read else 'unless'} {key} {'has' if isinstance(setting.default, tuple) else 'is'} {names}"


def _introduce(stage: "Stage") -> str:
  text = (inspect.getdoc(stage.options) or "").partition(" Raises ValueError")[0]
  return text + (f" The stage runs where another needs it, or `{stage.when}` is set." if stage.when else "")


def _render_section(section: Section, readers: Mapping[str, str]) -> Iterator[str]:
  level = "##" if "." not in section.key else "###"
  yield f"{level} {section.key or 'General'}\n\n{section.meaning[:1].upper()}{section.meaning[1:].removesuffix('.')}.\n"
  if section.settings:
    yield "| key | meaning | unit | default | values | read by |\n|---|---|---|---|---|---|"
    for setting in section.settings:
      text = (setting.meaning, setting.unit, _render_value(setting.default), setting.values, readers[setting.key] or "-")
      yield f"| `{setting.key}` | {' | '.join(text)} |"
    yield ""


def _render_value(value: Any) -> str:
  return "empty" if value == "" else f"`{value}`"


def main() -> None:
  """Writes the page and says where."""
  argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
  from configs.base import base

  with replacing(PAGE) as partial:
    partial.write_text(render_page(base()), encoding="utf-8")
  print(PAGE)


if __name__ == "__main__":
  main()
