"""Steps of a tiny model compiled for TPUs through libtpu, on a machine without one."""

import json

import pytest
from small_runs import ROOT

from experiments.flags import load_config
from experiments.pods.chips import GIB, parse_topology
from experiments.pods.compiled import compile_step
from experiments.pods.devices import arrange, list_devices
from experiments.pods.plan import plan
from experiments.pods.report import to_record
from experiments.stage_steps.step import Argument, StageStep, shape

pytestmark = pytest.mark.aot


@pytest.mark.parametrize(
  ("topology", "mesh", "config"),
  [
    ("v5e:2x2", {"data": 4, "fsdp": 1, "tensor": 1}, "pods.py:tiny"),
    ("v5p:2x2x1", {"data": 2, "fsdp": 1, "tensor": 2}, "pods.py:tiny"),
    ("v5e:2x2", {"data": 2, "fsdp": 2, "tensor": 1}, "quickstart.py:tiny"),  # its reward is the Pallas kernel
  ],
)
def test_an_update_compiles_and_has_the_models_flops(topology, mesh, config):
  pytest.importorskip("libtpu", reason="libtpu is missing: pip install 'gr2_jax[aot]'")
  slice_of_chips, settings = parse_topology(topology), load_config(str(ROOT / "configs" / config))
  settings.rl.update({"prompts": 4, "group": 2})
  planned = plan(settings, mesh, ["rl: update"])
  devices = arrange(mesh, slice_of_chips, list_devices(slice_of_chips))
  found = compile_step(planned.steps[0], devices, slice_of_chips.chip)
  assert found.fits
  assert found.memory.aliased > 0.9 * planned.steps[0].arguments[0].bytes_on(devices)
  assert found.work.flops > 0.95 * found.model_flops > 0  # but for what nothing reads
  assert found.work.sent > 0  # gradients, at least
  assert 0 < found.floor.seconds < 1e-3
  json.dumps(to_record(slice_of_chips, [found], planned.notes), allow_nan=False)


def test_what_does_not_fit_says_how_much_it_needs():
  pytest.importorskip("libtpu", reason="libtpu is missing: pip install 'gr2_jax[aot]'")
  one = parse_topology("v5e:1x1")
  mesh = arrange({"data": 1, "fsdp": 1, "tensor": 1}, one, list_devices(one))
  product = StageStep("rl", "product", lambda x: x @ x, (Argument("whole", shape(65_536, 65_536)),), 1)
  found = compile_step(product, mesh, one.chip)
  assert not found.fits and found.memory is None
  assert found.needed >= 2 * 16 * GIB  # the matrix and its square
  assert found.held == pytest.approx(one.chip.hbm, rel=0.02)
  assert "exceeds available HBM" in found.why
  json.dumps(to_record(one, [found], []), allow_nan=False)
