"""A config's steps compiled for a TPU pod on a machine without one: HBM of a chip, FLOPs, bytes, collectives, and the time at least.

    python -m experiments.compile_pod --config=CONFIG --topology=v5p:4x4x4 [--step=rl] [--mesh=data,fsdp,tensor] [--to=FILE.json]
    python -m experiments.compile_pod --config=CONFIG --topology=v5p:4x4x4 --step="rl: update" --search [--compilations=12]

Weights and data are shapes only; needs libtpu (`pip install 'gr2_jax[aot]'`). See docs/pods.md.
"""

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags

from experiments.compilation_cache import OFF, use_compilation_cache
from experiments.exit_code import exit_code_of
from experiments.flags import define_config, parse_flags

if TYPE_CHECKING:
  from experiments.pods.chips import Topology

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "slice of chips, CHIP:SIZES: v4, v5e, v5p, v6e or tpu7x, such as v5p:4x4x4 or v5e:16x16")
_STEP = flags.DEFINE_list("step", [], "stages, or single steps as 'STAGE: STEP', with commas between; none: all that a run compiles")
_MESH = flags.DEFINE_string("mesh", None, "data,fsdp,tensor: how the devices are arranged, one of them -1; none: as config.mesh says")
_TEACHER = flags.DEFINE_string("teacher", None, "preset of the model that teaches in opd; none: as large as the student")
_SEARCH = flags.DEFINE_bool("search", False, "try meshes, microbatches and model.remat for one step, and print the ten best that fit")
_COMPILATIONS = flags.DEFINE_integer("compilations", 12, "most programs that --search compiles", lower_bound=1)
_TO = flags.DEFINE_string("to", None, "JSON file for all figures")


def main(argv: Sequence[str]) -> int:
  """Compiles and prints."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --config=FILE.py, --topology=CHIP:SIZES and --config.key=value", file=sys.stderr)
    return 1
  return exit_code_of(_compile, _TO.value)


def _compile() -> None:
  # Here, since --help should not wait for JAX.
  import jax
  from rich.console import Console

  from experiments.pods.chips import parse_topology
  from experiments.pods.compiled import compile_step
  from experiments.pods.devices import arrange, list_devices, parse_mesh
  from experiments.pods.plan import plan
  from experiments.pods.report import print_found, to_record
  from gr2_jax.errors import ConfigError
  from gr2_jax.files import write_json

  jax.config.update("jax_platforms", "cpu")  # libtpu would look for a TPU here
  use_compilation_cache(OFF)  # nothing is written, and compile times are those of a first run
  config = _CONFIG.value
  if not _TOPOLOGY.value:
    raise ConfigError("--topology is missing; for example --topology=v5p:4x4x4")
  topology = parse_topology(_TOPOLOGY.value)
  if _SEARCH.value:
    return _search(topology)
  sizes = parse_mesh(_MESH.value) if _MESH.value else dict(config.mesh)
  mesh = arrange(sizes, topology, list_devices(topology))
  planned = plan(config, mesh.shape, _STEP.value, _TEACHER.value)
  console = Console()
  found = []
  for number, step in enumerate(planned.steps, 1):
    console.print(f"{number} of {len(planned.steps)}: {step.stage}: {step.name}", style="dim", highlight=False, markup=False)
    found.append(compile_step(step, mesh, topology.chip))
    if _TO.value:  # of every step once it is there
      write_json(_TO.value, to_record(topology, found, planned.notes))
  print_found(topology, found, planned.notes, console)


def _search(topology: "Topology") -> None:
  from experiments.pods.devices import list_devices
  from experiments.pods.report import to_record
  from experiments.pods.search import describe_best, search
  from gr2_jax.files import write_json

  say = functools.partial(print, flush=True)
  devices = list_devices(topology)
  tried = search(_CONFIG.value, topology, devices, _STEP.value, teacher=_TEACHER.value, most=_COMPILATIONS.value, tell=say)
  print("\n".join(["", *describe_best(tried)]))
  if _TO.value:
    settings = [of.setting._asdict() for of in tried]
    write_json(_TO.value, to_record(topology, [of.compiled for of in tried], ()) | {"settings": settings})


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
