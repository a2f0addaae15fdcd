"""Records as config sections: what a field refuses, how a record becomes a section and comes back, and how faults name their keys."""

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.errors import ConfigError
from gr2_jax.settings import Setting, check_settings, describe_sections, read_record, read_section, setting, spread, to_section


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = setting(0.5, "of change", above=0, high=1)
  kind: Literal["a", "b"] = setting("a", "of inner")

  def __post_init__(self):
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class Outer:
  size: int = setting(2, "of all", unit="items", low=1)
  limit: int | None = setting(None, "None: no limit", low=1)
  flag: bool = setting(False, "on or off")
  widths: tuple[int, ...] = setting((4, 2), "of layers", low=1)
  pair: tuple[float, float] = setting((0.0, 1.0), "from and to", low=0, below=2)
  fields: tuple[str, ...] = setting((), "shown", choices=("title", "brand"))
  code: int = 3  # no setting: the code's own
  inner: Inner = setting(Inner(), "a section inside")
  beside: Inner = spread(Inner(rate=0.25))

  def __post_init__(self):
    check_settings(self)
    if self.limit is not None and self.limit < self.size:
      raise ValueError(f"limit: {self.limit} is below size {self.size}")


def section(**changes):
  config = ConfigDict({"outer": to_section(Outer())})
  config.outer.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


@pytest.mark.parametrize(
  ("name", "value"),
  [
    *(("size", value) for value in (0, -1, 10**20, 1.5, True, None, "2")),
    *(("limit", value) for value in (0, 1, math.nan)),
    *(("flag", value) for value in (1, None)),
    *(("widths", value) for value in ((4, 0), 4, ("4",))),
    *(("pair", value) for value in ((0.0,), (0.0, 2.0), (math.nan, 1.0))),
    *(("fields", value) for value in (("price",), "title")),
  ],
)
def test_a_value_that_cannot_hold_is_named(name, value):
  with pytest.raises(ValueError, match=f"^{name}: "):
    Outer(**{name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400, 0.0, 1.1, "x", None])
def test_a_number_is_finite_and_in_its_range(value):
  with pytest.raises(ValueError, match=r"^rate: "):
    Inner(value)


def test_values_at_their_limits_and_of_other_number_types_hold():
  Outer(size=1, limit=1, widths=[np.int64(1)], pair=(0, 1.5), fields=("brand", "title"))
  Outer(size=np.int32(3))
  assert Inner(1).rate == 1 and Inner(np.float32(0.5))


def test_all_faults_of_a_record_are_told_at_once():
  with pytest.raises(ValueError) as error:
    Outer(size=0, widths=(0,))
  assert [line.partition(":")[0] for line in str(error.value).split("\n")] == ["size", "widths"]


def test_a_record_is_a_section_and_comes_back():
  config = section()
  assert config.outer.to_dict() == {
    **{"size": 2, "limit": None, "flag": False, "widths": (4, 2), "pair": (0.0, 1.0), "fields": ()},
    **{"inner": {"rate": 0.5, "kind": "a"}, "rate": 0.25, "kind": "a"},
  }
  assert read_record(Outer, config, "outer") == Outer()
  changed = read_record(Outer, section(limit=5, rate=1.0, inner__kind="b"), "outer")
  assert changed == Outer(limit=5, inner=Inner(kind="b"), beside=Inner(rate=1.0))
  assert read_record(Outer, {"outer": config.outer.to_dict() | {"widths": [4, 2]}}, "outer") == Outer()  # as in config.json


def test_what_is_none_can_be_set_in_its_type_alone():
  config = section()
  config.outer.limit = 7
  with pytest.raises(TypeError):
    section(limit="many")
  assert section().outer.limit is None


def test_faults_of_all_depths_have_their_full_keys():
  record, faults = read_section(Outer, section(size=0, rate=math.nan, inner__kind="c").outer, "a.outer")
  assert record is None
  assert sorted(fault.partition(": ")[0] for fault in faults) == [
    *("--config.a.outer.inner.kind", "--config.a.outer.rate", "--config.a.outer.size")
  ]


def test_what_goes_with_what_is_named_by_its_key_too():
  with pytest.raises(ConfigError, match=r"^--config\.outer\.limit: 1 is below size 2$"):
    read_record(Outer, section(limit=1), "outer")


def test_missing_and_unknown_settings_are_faults():
  values = section().outer.to_dict() | {"sise": 3}
  del values["size"], values["kind"]
  faults = read_section(Outer, values, "outer")[1]
  assert [fault.partition(": ")[0] for fault in faults] == ["--config.outer.sise", "--config.outer.size", "--config.outer.kind"]


def test_sections_are_described_with_full_keys_limits_and_choices_in_words():
  outer, inner = describe_sections(Outer(), "outer", "the whole")
  assert (outer.key, outer.meaning, inner.key, inner.meaning) == ("outer", "the whole", "outer.inner", "a section inside")
  assert [setting.key for setting in outer.settings] == [
    *(f"outer.{name}" for name in ("size", "limit", "flag", "widths", "pair", "fields", "rate", "kind"))
  ]
  assert outer.settings[0] == Setting("outer.size", "of all", "items", 2, "a whole number, at least 1", ())
  assert {setting.key.rpartition(".")[2]: setting.values for setting in outer.settings[1:]} == {
    "limit": "a whole number, at least 1, or None",
    "flag": "True or False",
    "widths": "whole numbers, each at least 1",
    "pair": "2 numbers, each at least 0 and below 2",
    "fields": "any of title, brand",
    "rate": "a number, above 0 and at most 1",
    "kind": "one of a, b",
  }
  assert [setting.default for setting in inner.settings] == [0.5, "a"] and inner.settings[1].choices == ("a", "b")
  assert [section.key for section in describe_sections(Outer())] == ["", "inner"]
