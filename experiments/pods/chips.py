"""TPU chips as data: what one holds and reaches by the published figures, and the slices that there are.

Figures: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x, read in November 2026; the links of v4, which its page leaves out:
six of 50 GB/s each (Jouppi et al., arXiv 2304.01433).
"""

import dataclasses
import math
import re

from gr2_jax.errors import ConfigError

GIB = 2.0**30
MOST_CHIPS = 512  # of a topology that is compiled for

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # below a cube of 4 x 4 x 4, of which larger slices are made


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPU; all figures are a chip's.

  `hbm` bytes; `flops` of bfloat16 a second; `hbm_bandwidth` bytes a second; `ici_bandwidth` bytes a second that its links send, half of
  the published figure where that counts both directions. `devices`: those that JAX sees in it, which share all of this alike; `axes` of
  its torus; `layout`: how libtpu has a chip's cores work, as one device or apart.
  """

  name: str
  hbm: float
  flops: float
  hbm_bandwidth: float
  ici_bandwidth: float
  axes: int
  devices: int = 1
  layout: str = "default"


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", 32 * GIB, 275e12, 1200e9, 300e9, axes=3, layout="megacore"),
    Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, axes=2),
    Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, axes=3),
    Chip("v6e", 32 * GIB, 918e12, 1638e9, 400e9, axes=2),
    Chip("tpu7x", 192 * GIB, 2307e12, 7380e9, 600e9, axes=3, devices=2),
  )
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice: so many chips along each axis."""

  chip: Chip
  sizes: tuple[int, ...]

  @property
  def name(self) -> str:
    """As libtpu reads it, an axis of one chip last."""
    sizes = sorted(self.sizes) if self.sizes.count(1) != 1 else [*sorted(self.sizes)[1:], 1]
    return f"{self.chip.name}:{'x'.join(map(str, sizes))}"

  @property
  def chips(self) -> int:
    """All of them."""
    return math.prod(self.sizes)

  @property
  def devices(self) -> int:
    """As JAX counts them."""
    return self.chips * self.chip.devices


def parse_topology(text: str) -> Topology:
  """`v5p:4x4x4`, its axes in any order. Raises ConfigError for one that does not exist, with those that do."""
  name, _, rest = text.partition(":")
  if name not in CHIPS:
    raise ConfigError(f"--topology: {text!r} names no chip; write CHIP:SIZES, for example v5p:4x4x4, with one of {', '.join(CHIPS)}")
  chip = CHIPS[name]
  there = _describe_slices(chip)
  if not re.fullmatch(r"\d{1,4}(x\d{1,4})*", rest):
    raise ConfigError(f"--topology: {text!r} has no sizes; {there}")
  sizes = tuple(map(int, rest.split("x")))
  if len(sizes) != chip.axes:
    raise ConfigError(f"--topology: {text!r} has {len(sizes)} axes, and {name} has {chip.axes}; {there}")
  ordered = tuple(sorted(sizes))
  cubes = chip.axes == 3 and all(size and size % 4 == 0 for size in sizes)
  if not (cubes or ordered in (_FLAT if chip.axes == 2 else _SMALL)):
    raise ConfigError(f"--topology: {text!r} does not exist; {there}")
  if math.prod(sizes) > MOST_CHIPS:
    raise ConfigError(f"--topology: {text!r} has {math.prod(sizes):,} chips; choose one of {MOST_CHIPS} chips at most")
  return Topology(chip, sizes)


def _describe_slices(chip: Chip) -> str:
  if chip.axes == 2:
    return f"slices of {chip.name} are {', '.join('x'.join(map(str, sizes)) for sizes in _FLAT)}"
  return f"slices of {chip.name} are 2x2x1, 2x2x2, 2x2x4, 2x4x4, and three multiples of 4 such as 4x4x4 and 4x4x8"
