"""What a compiled program does, from the text of its optimised HLO: matrix products, bytes of HBM and collectives, as often as loops run.

XLA's own cost analysis counts the body of a loop once, and a scan over layers is a loop.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all", "collective-broadcast")
# What moves nothing: names of what is there, or the ends of what a `-start` has counted.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier"),
  *("domain", "add-dependency", "iota"),
}
_PARTS = ("dynamic-slice", "slice", "gather")  # of a large operand, only what they give is read


class Array(NamedTuple):
  """Of a type: its name, sizes, and whether it lies in HBM (TPUs have other memories, which layouts name `S(n)`)."""

  dtype: str
  sizes: tuple[int, ...]
  in_hbm: bool

  @property
  def bytes(self) -> float:
    """Without the padding of tiles."""
    width = _BYTES.get(self.dtype)
    if width is None:
      digits = re.search(r"\d+", self.dtype)
      width = int(digits[0]) / 8 if digits else 0
    return width * math.prod(self.sizes)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """`name = arrays opcode(operands), rest`."""

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  inside: str
  rest: str

  @property
  def called(self) -> tuple[str, ...]:
    """Computations that it runs."""
    branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
    listed = re.findall(r"[\w.\-]+", branches[1]) if branches else []
    return (*listed, *_CALLED.findall(self.rest))

  def hbm(self) -> float:
    """Bytes there of what it gives."""
    return sum(array.bytes for array in self.arrays if array.in_hbm)


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, the last of which, or the one so marked, is its `root`."""

  instructions: Mapping[str, Instruction]
  root: Instruction

  @functools.cached_property
  def users(self) -> Mapping[str, list[Instruction]]:
    """Who reads a value."""
    found: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        found.setdefault(operand, []).append(instruction)
    return found

  @functools.cached_property
  def parameters(self) -> Mapping[int, str]:
    """Names by number."""
    return {int(of.inside): of.name for of in self.instructions.values() if of.opcode == "parameter"}


class Collective(NamedTuple):
  """Collectives of a kind: how many are `run` in a call, and bytes that a device sends for them in rings."""

  run: float
  bytes: float


@dataclasses.dataclass(frozen=True)
class Work:
  """Of a call, on a device: `flops` of matrix products, bytes read from and written to `hbm`, and `collectives` by kind."""

  flops: float = 0.0
  hbm: float = 0.0
  collectives: Mapping[str, Collective] = dataclasses.field(default_factory=dict)

  @property
  def sent(self) -> float:
    """Bytes of all collectives."""
    return sum(of.bytes for of in self.collectives.values())

  def __add__(self, other: "Work") -> "Work":
    kinds = {*self.collectives, *other.collectives}
    nothing = Collective(0, 0)
    both = {kind: (self.collectives.get(kind, nothing), other.collectives.get(kind, nothing)) for kind in kinds}
    summed = {kind: Collective(one.run + two.run, one.bytes + two.bytes) for kind, (one, two) in both.items()}
    return Work(self.flops + other.flops, self.hbm + other.hbm, summed)

  def times(self, number: float) -> "Work":
    """As often."""
    return Work(
      self.flops * number,
      self.hbm * number,
      {kind: Collective(of.run * number, of.bytes * number) for kind, of in self.collectives.items()},
    )


def read_work(text: str, trips: Sequence[float] = ()) -> Work:
  """The work of a compiled program. `trips`: see `stage_steps.StageStep`, for loops whose end the text does not tell."""
  return _Program(text).work_of(None, tuple(trips), fused=False)


class _Program:
  """A module's computations; the walk over them."""

  def __init__(self, text: str) -> None:
    self.computations, self.entry = _parse(text)
    devices = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    self.devices = int(devices[1]) if devices else 1
    self._known: dict[tuple[str, tuple[float, ...], bool], Work] = {}

  def work_of(self, name: str | None, trips: tuple[float, ...], fused: bool) -> Work:
    """Of a computation, by default the program's; what is `fused` touches HBM only where the fusion does."""
    name = self.entry if name is None else name
    if (name, trips, fused) not in self._known:
      computation = self.computations[name]
      total = Work()
      for instruction in computation.instructions.values():
        total += self._work_of(computation, instruction, trips, fused)
      self._known[name, trips, fused] = total
    return self._known[name, trips, fused]

  def _work_of(self, computation: Computation, of: Instruction, trips: tuple[float, ...], fused: bool) -> Work:
    opcode = of.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
      return Work()
    if opcode == "while":
      return self._work_of_loop(of, trips, fused)
    if opcode == "conditional":
      branches = [self.work_of(name, trips, fused) for name in of.called]
      return max(branches, key=lambda work: (work.flops, work.hbm))
    kind = opcode.removesuffix("-start")
    if kind in KINDS:
      return Work(hbm=0 if fused else self._touched(computation, of), collectives={kind: self._sent(kind, computation, of)})
    if opcode == "dot":
      return Work(_dot_flops(computation, of), 0 if fused else self._touched(computation, of))
    if opcode == "convolution":
      return Work(_convolution_flops(computation, of), 0 if fused else self._touched(computation, of))
    if opcode == "fusion":
      inner = self.work_of(of.called[0], trips, True)
      return inner if fused else inner + Work(hbm=self._touched_by_fusion(computation, of))
    if opcode in ("call", "async-start", "call-start"):
      return sum((self.work_of(name, trips, fused) for name in of.called), Work())
    return Work() if fused else Work(hbm=self._touched(computation, of))

  def _work_of_loop(self, of: Instruction, trips: tuple[float, ...], fused: bool) -> Work:
    number, body = self._trips(of), re.search(r"body=%?([\w.\-]+)", of.rest)
    assert body is not None
    if number is None:
      number, trips = (trips[0] if trips else 1), trips[1:]
    return self.work_of(body[1], trips, fused).times(number)

  def _trips(self, of: Instruction) -> float | None:
    """How often a loop runs: as XLA says, or as its condition, which counts up to a constant from 0; None where neither tells."""
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', of.rest):
      return int(told[1])
    named = re.search(r"condition=%?([\w.\-]+)", of.rest)
    condition = self.computations[named[1]] if named else None
    if condition is None:
      return None
    root = condition.root
    if root.opcode == "fusion":
      root = self.computations[root.called[0]].root
    constants = [
      int(one.inside) for one in condition.instructions.values() if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside)
    ]
    if root.opcode == "compare" and "direction=LT" in root.rest and len(constants) == 1:
      return constants[0]
    return None

  def _touched(self, computation: Computation, of: Instruction) -> float:
    """Bytes of HBM that an instruction by itself reads and writes."""
    given = computation.instructions
    if of.opcode in _PARTS:
      return 2 * of.hbm()
    if of.opcode == "dynamic-update-slice":
      return 2 * given[of.operands[1]].hbm()
    if of.opcode == "copy-start":  # its type names both ends
      return sum(array.bytes for array in of.arrays[:2] if array.in_hbm)
    return of.hbm() + sum(given[name].hbm() for name in of.operands if name in given)

  def _touched_by_fusion(self, computation: Computation, of: Instruction) -> float:
    inner = self.computations[of.called[0]]
    read = sum(
      min(self._read_of(inner, inner.parameters[number]), computation.instructions[name].hbm())
      for number, name in enumerate(of.operands)
      if number in inner.parameters and name in computation.instructions
    )
    return read + min(self._written_by(inner, inner.root), of.hbm())

  def _read_of(self, computation: Computation, name: str) -> float:
    """Bytes that a computation reads of one of its values."""
    total = 0.0
    for user in computation.users.get(name, ()):
      if user.opcode in _PARTS and user.operands[0] == name:
        total += sum(array.bytes for array in user.arrays)
      elif user.opcode in ("bitcast", "reshape"):
        total += self._read_of(computation, user.name)
      elif user.opcode == "fusion":
        inner = self.computations[user.called[0]]
        total += sum(self._read_of(inner, inner.parameters[n]) for n, operand in enumerate(user.operands) if operand == name)
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        continue  # written in place
      else:
        return math.inf
    return total

  def _written_by(self, computation: Computation, root: Instruction) -> float:
    """Bytes that a computation's result writes: of what is updated in place, the part that is new."""
    if root.opcode == "tuple":
      return sum(self._written_by(computation, computation.instructions[name]) for name in root.operands)
    if root.opcode in ("bitcast", "reshape"):
      return self._written_by(computation, computation.instructions[root.operands[0]])
    if root.opcode == "fusion":
      inner = self.computations[root.called[0]]
      return self._written_by(inner, inner.root)
    if root.opcode == "dynamic-update-slice":
      return sum(array.bytes for array in computation.instructions[root.operands[1]].arrays)
    return sum(array.bytes for array in root.arrays)

  def _sent(self, kind: str, computation: Computation, of: Instruction) -> Collective:
    """Bytes that a device sends: of a ring of n, the share (n - 1) / n of what it goes round with."""
    own = sum(array.bytes for name in of.operands if name in computation.instructions for array in computation.instructions[name].arrays)
    group = self._group(of)
    share = (group - 1) / group
    if kind == "all-gather":
      return Collective(1, own * (group - 1))
    if kind == "all-reduce":
      return Collective(1, 2 * own * share)
    return Collective(1, own if kind in ("collective-permute", "collective-broadcast") else own * share)

  def _group(self, of: Instruction) -> int:
    """Devices of a group, in any of the forms in which XLA writes groups."""
    if mesh := re.search(r"replica_groups=(?:[\w.]*)?mesh\[([^\]]*)\][^{]*\{([^}]*)\}", of.rest):
      sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
      return math.prod(sizes[name] for name in re.findall(r"'([^']*)'", mesh[2])) or 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", of.rest):
      return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", of.rest)
    return len(listed[1].split(",")) if listed else self.devices


def _parse(text: str) -> tuple[dict[str, Computation], str]:
  computations: dict[str, Computation] = {}
  found: dict[str, Instruction] = {}
  root: Instruction | None = None
  entry = name = ""
  for line in text.splitlines():
    if line.startswith("}") and name:
      computations[name] = Computation(found, root or list(found.values())[-1])
      name = ""
    elif not name and line.endswith("{") and (header := _HEADER.match(line)) and not line.startswith("HloModule"):
      name, found, root = header[2], {}, None
      entry = name if header[1] else entry
    elif name and (match := _INSTRUCTION.match(line)):
      instruction = _parse_instruction(match[2], match[3])
      found[instruction.name] = instruction
      root = instruction if match[1] else root
  return computations, entry


def _parse_instruction(name: str, text: str) -> Instruction:
  end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
  arrays = tuple(_read_arrays(text[:end]))
  text = text[end:].lstrip()
  start = text.index("(")
  close = _closing(text, start)
  inside = text[start + 1 : close]
  operands = re.findall(r"%([\w.\-]+)", inside)
  return Instruction(name, arrays, text[:start], tuple(operands), inside, text[close + 1 :])


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if not depth:
      return place
  return len(text) - 1


def _read_arrays(text: str) -> Iterator[Array]:
  for dtype, sizes, layout in _ARRAY.findall(text):
    yield Array(dtype, tuple(map(int, filter(None, sizes.split(",")))), re.search(r"S\([1-9]\d*\)", layout) is None)


def _dot_flops(computation: Computation, of: Instruction) -> float:
  contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", of.rest)
  left = computation.instructions[of.operands[0]].arrays[0].sizes
  axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
  return 2.0 * math.prod(of.arrays[0].sizes) * math.prod(left[axis] for axis in axes)


def _convolution_flops(computation: Computation, of: Instruction) -> float:
  """Of a convolution, as which TPUs compute every matrix product: padding and the holes of dilation cost nothing."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", of.rest)
  assert labels is not None
  left, right, out = (computation.instructions[of.operands[0]].arrays[0], computation.instructions[of.operands[1]].arrays[0], of.arrays[0])
  window = _read_window(of.rest)
  pairs = 1.0
  for axis, (size, stride, low, base, spread) in enumerate(window):
    outputs, inputs = out.sizes[labels[3].index(str(axis))], left.sizes[labels[1].index(str(axis))]
    pairs *= _count_pairs(outputs, inputs, size, stride, low, base, spread)
  groups = re.search(r"batch_group_count=(\d+)", of.rest)
  batch = left.sizes[labels[1].index("b")] / (int(groups[1]) if groups else 1)
  return 2.0 * batch * right.sizes[labels[2].index("o")] * right.sizes[labels[2].index("i")] * pairs


def _read_window(rest: str) -> list[tuple[int, int, int, int, int]]:
  """Of each spatial axis: size, stride, padding before, dilation of the base and of the window."""
  found = re.search(r"window=\{([^}]*)\}", rest)
  told = dict(part.split("=") for part in found[1].split()) if found else {}
  sizes = [int(size) for size in told["size"].split("x")] if told else []

  def of_axes(name: str, default: str) -> list[int]:
    return [int(part.split("_")[0]) for part in told.get(name, "x".join([default] * len(sizes))).split("x")]

  if not sizes:
    return []
  return list(zip(sizes, of_axes("stride", "1"), of_axes("pad", "0"), of_axes("lhs_dilate", "1"), of_axes("rhs_dilate", "1"), strict=True))


def _count_pairs(outputs: int, inputs: int, size: int, stride: int, low: int, base: int, spread: int) -> int:
  """Pairs of an output and a place in the window that meet an input."""
  last = (inputs - 1) * base
  return sum(
    1 for out in range(outputs) for place in range(size) if 0 <= (at := out * stride + place * spread - low) <= last and at % base == 0
  )
