"""Pods: topologies and meshes, the work that is read from compiled programs, the time that follows, and what doesn't divide."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_runs import ROOT

from experiments.estimates.flops import count_flops
from experiments.flags import load_config
from experiments.pods import search
from experiments.pods.chips import CHIPS, GIB, parse_topology
from experiments.pods.compiled import Compiled, Floor, Memory, read_needed, time_floor
from experiments.pods.devices import arrange, list_devices, parse_mesh
from experiments.pods.hlo import Collective, Work, read_work
from experiments.pods.plan import check_rows, plan
from experiments.stage_steps.step import Argument, StageStep, integers, shape
from gr2_jax.errors import ConfigError
from gr2_jax.training.mesh import make_mesh

GOLDEN = (ROOT / "tests/golden/scanned_layers.hlo").read_text()


@pytest.mark.parametrize(
  ("text", "name", "chips", "devices"),
  [
    ("v5p:4x4x4", "v5p:4x4x4", 64, 64),
    ("v5p:8x8x4", "v5p:4x8x8", 256, 256),
    ("v4:1x2x2", "v4:2x2x1", 4, 4),
    ("v5e:16x8", "v5e:8x16", 128, 128),
    ("v6e:1x1", "v6e:1x1", 1, 1),
    ("tpu7x:4x4x4", "tpu7x:4x4x4", 64, 128),
  ],
)
def test_a_topology_is_read_with_its_axes_in_any_order(text, name, chips, devices):
  topology = parse_topology(text)
  assert (topology.name, topology.chips, topology.devices) == (name, chips, devices)


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("v9:2x2", "'v9:2x2' names no chip; write CHIP:SIZES, for example v5p:4x4x4, with one of v4, v5e, v5p, v6e, tpu7x"),
    ("v5p", "'v5p' has no sizes; slices of v5p are 2x2x1"),
    ("v5p:", "has no sizes"),
    ("v5p:4x4", "has 2 axes, and v5p has 3; slices of v5p are 2x2x1, 2x2x2, 2x2x4, 2x4x4, and three multiples of 4"),
    ("v5e:4x4x4", "has 3 axes, and v5e has 2; slices of v5e are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
    ("v5e:5x5", "does not exist; slices of v5e are 1x1"),
    ("v5p:4x4x6", "does not exist"),
    ("v5p:0x4x4", "does not exist"),
    ("v5p:8x8x16", "has 1,024 chips; choose one of 512 chips at most"),
  ],
)
def test_a_topology_that_there_is_not_is_named_with_those_that_there_are(text, told):
  with pytest.raises(ConfigError, match=re.escape(told)):
    parse_topology(text)


@pytest.mark.parametrize("text", ["", "4", "4,4", "4,4,4,4", "a,b,c", "0,1,1", "-1,-1,1", "4,-2,1"])
def test_a_mesh_is_three_sizes(text):
  with pytest.raises(ConfigError, match=r"--mesh: .* write data,fsdp,tensor, for example 16,4,1"):
    parse_mesh(text)


def test_a_mesh_must_be_the_size_of_the_topology():
  devices, topology = jax.devices(), parse_topology("v5e:2x4")
  assert dict(arrange(parse_mesh("-1,2,2"), topology, devices).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  with pytest.raises(ConfigError, match="data 3 x fsdp 2 x tensor 1 is not the size of v5e:2x4, which has 8 devices; give sizes whose"):
    arrange(parse_mesh("3,2,1"), topology, devices)
  chiplets = parse_topology("tpu7x:2x2x1")
  with pytest.raises(ConfigError, match="tpu7x:2x2x1, which has 8 devices, 2 a chip; give sizes whose product is 8, for example 8,1,1"):
    arrange(parse_mesh("4,1,1"), chiplets, devices)


def test_libtpu_is_asked_for_where_it_is_missing(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=re.escape("install it with: pip install 'gr2_jax[aot]'")):
    list_devices(parse_topology("v5e:2x2"))


# Five layers of x [16, 64] W [64, 64], rows over 4 and columns over 2 of 8 devices, each gathered over columns; then the sum of all.
FLOPS = 5 * 2 * 4 * 64 * 32
# A layer gathers [4, 32] floats of two devices; the sum is reduced over four, each of which sends 2 (4 - 1) / 4 of 4 bytes.
GATHERED, REDUCED = Collective(5, 5 * 4 * 32 * 4), Collective(1, 6)
# Of a layer: its kernel read and written as it is cut out of the stack; the product; a copy; the gather; tanh; the counter, twice.
KERNEL, ROWS, PART, COUNTER = 64 * 32 * 4, 4 * 64 * 4, 4 * 32 * 4, 4
LAYER = (2 * KERNEL + COUNTER) + (ROWS + KERNEL + PART) + 2 * PART + (PART + ROWS) + 2 * ROWS + (2 * COUNTER + 3 * COUNTER)
# Around them: two copies, the sum in two steps with their initial values, and the reduction.
AROUND = (2 * COUNTER + 2 * ROWS) + (ROWS + 4 + 8) + (8 + 4 + 4) + 2 * 4


@pytest.mark.parametrize("told", [True, False], ids=["trip count told", "read from the condition"])
def test_the_work_of_a_compiled_loop_is_that_counted_by_hand(told):
  text = GOLDEN if told else GOLDEN.replace("known_trip_count", "unknown")
  work = read_work(text)
  assert work.flops == FLOPS
  assert work.collectives == {"all-gather": GATHERED, "all-reduce": REDUCED}
  assert work.sent == GATHERED.bytes + REDUCED.bytes
  assert work.hbm == 5 * LAYER + AROUND


def test_a_loop_whose_end_nothing_tells_runs_as_often_as_the_step_says():
  text = GOLDEN.replace("known_trip_count", "unknown").replace("direction=LT", "direction=NE")
  assert read_work(text).flops == FLOPS / 5
  assert read_work(text, trips=(7,)).flops == FLOPS / 5 * 7


def test_other_memories_than_hbm_cost_nothing_there():
  text = GOLDEN.replace("%wrapped_copy = f32[4,32]{0,1} ", "%wrapped_copy = f32[4,32]{0,1:T(8,128)S(1)} ")
  assert read_work(text).hbm == 5 * (LAYER - 2 * PART) + AROUND  # neither its copy nor what the gather reads


# As TPUs write products: 256 x 16 heads of 128, the heads as places of a window that is padded; and the same with holes between inputs.
CONVOLUTIONS = {
  """HloModule a, num_partitions=4

ENTRY %main (x: bf16[256,1024,1], w: bf16[1024,16,128]) -> bf16[256,16,128] {
  %x = bf16[256,1024,1]{0,1,2:T(8,128)(2,1)} parameter(0)
  %w = bf16[1024,16,128]{0,2,1:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[256,16,128]{0,2,1:T(8,128)(2,1)} convolution(%x, %w), window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=bf0_i0o->b0f
}
""": 2 * 256 * 1024 * 16 * 128,
  """HloModule b, num_partitions=4

ENTRY %main (q: bf16[8,512,128], k: bf16[8,256,128]) -> f32[8,512,256] {
  %q = bf16[8,512,128]{2,1,0} parameter(0)
  %k = bf16[8,256,128]{2,1,0} parameter(1)
  ROOT %c = f32[8,512,256]{1,2,0} convolution(%q, %k), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
""": 2 * 8 * 512 * 256 * 128,
}


@pytest.mark.parametrize(("text", "flops"), CONVOLUTIONS.items(), ids=["heads in a window", "a batch by dilation"])
def test_a_product_that_is_written_as_a_convolution_costs_its_own_flops(text, flops):
  assert read_work(text).flops == flops


@pytest.mark.parametrize(
  ("groups", "sent"),
  [("{{0,1},{2,3}}", 1000), ("[1,4]<=[4]", 1500), ("mesh['a'=2,'b'=2] {'b'}", 1000), ("{}", 1500)],
)
def test_groups_are_read_in_every_form(groups, sent):
  text = f"""HloModule c, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[250]) -> f32[250] {{
  %x = f32[250]{{0}} parameter(0)
  %start = f32[250]{{0}} all-reduce-start(%x), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add
  ROOT %done = f32[250]{{0}} all-reduce-done(%start)
}}
"""
  assert read_work(text).collectives == {"all-reduce": Collective(1, sent)}


def test_a_compiled_program_has_the_flops_of_its_trace():
  mesh = make_mesh(4, 1, 2)
  rows, columns = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec(None, None, "tensor"))

  def loss(layers, x):
    def layer(x, kernel):
      return jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), rows), None

    return jnp.sum(jax.lax.scan(layer, x, layers)[0] ** 2)

  shapes = jax.ShapeDtypeStruct((3, 32, 32), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss), in_shardings=(columns, rows), out_shardings=columns).lower(*shapes).compile()
  assert read_work(compiled.as_text()).flops == count_flops(jax.grad(loss), *shapes) / mesh.size


def test_time_by_hand():
  work = Work(flops=459e12, hbm=2 * 2765e9, collectives={"all-gather": Collective(1, 300e9), "all-reduce": Collective(1, 600e9)})
  floor = time_floor(work, CHIPS["v5p"])
  assert (floor.compute, floor.hbm, floor.ici) == pytest.approx((1.0, 2.0, 1.5))
  assert (floor.seconds, floor.bound) == (pytest.approx(2.0), "hbm")
  half_a_chip = time_floor(dataclasses.replace(work, flops=2307e12), CHIPS["tpu7x"])
  assert (half_a_chip.compute, half_a_chip.bound) == (pytest.approx(2.0), "ici")


def test_memory_counts_what_takes_an_arguments_place_once():
  assert Memory(arguments=10, outputs=8, aliased=7, temporaries=5, program=1).total == 17


def test_what_does_not_fit_is_read_from_the_compilers_words():
  needed, held = read_needed(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.23G) exceeds available HBM (15.75G)."
  )
  assert (needed, held) == (pytest.approx(17.23 * GIB), pytest.approx(15.75 * GIB))
  assert read_needed("RESOURCE_EXHAUSTED: something else") == (0.0, 0.0)


POD = {"data": 64, "fsdp": 1, "tensor": 1}


def pod_config(arg=""):
  """With few text pieces, which say nothing here and take seconds to make."""
  config = load_config(f"{ROOT / 'configs/pods.py'}" + (f":{arg}" if arg else ""))
  config.tokenize.text_pieces = 512
  return config


@pytest.mark.parametrize(
  ("asked", "steps"),
  [(["rl"], ["rollout", "update"]), (["rl: update"], ["update"]), (["rl:update", "sft"], ["update", "update"])],
)
def test_steps_are_asked_for_by_stage_or_name_and_need_no_data(asked, steps):
  planned = plan(pod_config(), POD, asked)
  assert [step.name for step in planned.steps] == steps
  assert any("as long as they may be" in note for note in planned.notes)


@pytest.mark.parametrize(
  ("asked", "mesh", "told"),
  [
    (["training"], POD, "--step: 'training' begins with no stage; choose one of data, tokenize, midtrain"),
    (["rl: updates"], POD, "--step: 'rl: updates' compiles nothing with this config; its stage has rl: rollout, rl: update"),
    (["data"], POD, "--step: 'data' compiles nothing with this config; its stage has no compiled step"),
    (["rl"], {"data": 96, "fsdp": 1, "tensor": 1}, "--config.rl.prompts: 256 rows at once do not divide over the 96 parts of the mesh"),
    (
      ["rl"],
      {"data": 4, "fsdp": 1, "tensor": 16},
      "--config.mesh.tensor: 16 parts do not divide the model's 8 key heads; use a divisor of 8",
    ),
    (
      ["rl"],
      {"data": 1, "fsdp": 48, "tensor": 1},
      "--config.mesh.fsdp: 48 parts do not divide the model's 1024 width; use a divisor of 1024",
    ),
  ],
)
def test_what_does_not_go_with_the_pod_is_one_sentence(asked, mesh, told):
  with pytest.raises(ConfigError) as error:
    plan(pod_config(), mesh, asked)
  assert str(error.value).startswith(told), error.value
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("file", "teacher", "told"),
  [("pods.py", "qwen3_32", "'qwen3_32' is no preset; choose one of"), ("quickstart.py", "tiny", "scored answers are taught by a model of")],
)
def test_a_teacher_that_cannot_be_is_named(file, teacher, told):
  with pytest.raises(ConfigError, match=f"--teacher: {told}"):
    plan(load_config(str(ROOT / "configs" / file)), POD, ["opd"], teacher)


def test_a_batch_that_no_key_of_the_config_names_is_checked_too():
  step = StageStep("evaluation", "answers", lambda x: x, (Argument("batch", integers(20, 3)),), 1)
  check_rows(step, {"data": 2, "fsdp": 2, "tensor": 8})
  with pytest.raises(ConfigError, match="evaluation: answers reads 20 rows at once, which do not divide over the 8 parts of the mesh"):
    check_rows(step, {"data": 4, "fsdp": 2, "tensor": 1})


def test_the_teacher_of_opd_may_be_another_model():
  config = pod_config("qwen3_1_7b")
  small, large = (plan(config, POD, ["opd: update"], teacher).steps[0] for teacher in (None, "qwen3_32b"))
  mesh = make_mesh(1, 8, 1)
  more = (_parameters(large.arguments[2]) - _parameters(small.arguments[2])) * 4 / 8
  assert large.arguments[2].bytes_on(mesh) - small.arguments[2].bytes_on(mesh) == pytest.approx(more, rel=0.01)
  assert _parameters(large.arguments[2]) > 30e9


def _parameters(argument):
  return sum(x.size for x in jax.tree.leaves(argument.arrays))


def test_a_device_holds_its_share_of_an_argument():
  mesh = make_mesh(4, 2, 1)
  assert Argument("batch", {"x": shape(16, 4), "y": integers(8)}).bytes_on(mesh) == (16 * 4 + 8) * 4 / 8
  assert Argument("whole", integers(5)).bytes_on(mesh) == 5 * 4


@pytest.fixture
def searched(monkeypatch):
  """`searched(gib, **options)`: what a search finds, and what it tells meanwhile, where temporaries take so many GiB over the number of
  microbatches, a third of it with remat, and a step as many seconds as the mesh has parts along data."""

  def run(gib, **options):
    def compile_step(step, mesh, chip):
      remat, cut = re.fullmatch(r"remat (True|False), microbatches (\d+)", step.name).groups()
      needed = gib * GIB / int(cut) / (3 if remat == "True" else 1)
      floor = Floor(compute=mesh.shape["data"], hbm=0, ici=0) if needed < chip.hbm else None
      about = {"stage": step.stage, "name": step.name, "mesh": dict(mesh.shape), "calls": 1, "seconds": 0.0, "model_flops": 1.0}
      return Compiled(**about, needed=needed, held=chip.hbm, fits=needed < chip.hbm, floor=floor)

    of = search._Steps.of
    monkeypatch.setattr(search, "compile_step", compile_step)
    monkeypatch.setattr(search._Steps, "of", lambda self, setting: dataclasses.replace(of(self, setting), name=str(setting)))
    config, lines = pod_config("tiny"), []
    config.rl.prompts = 32
    found = search.search(config, parse_topology("v5e:2x4"), jax.devices(), ["rl: update"], tell=lines.append, **options)
    return [(tuple(tried.compiled.mesh.values()), str(tried.setting), tried.compiled.fits) for tried in found], lines

  return run


# Eight devices: two key heads divide over one or two parts along tensor.
MESHES = {(1, 8, 1), (2, 4, 1), (4, 2, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2), (4, 1, 2)}


def test_a_search_leaves_a_mesh_at_the_first_setting_that_fits_and_ranks_meshes_by_time(searched):
  found, lines = searched(10, most=20)
  assert {mesh for mesh, _, _ in found} == MESHES
  assert {setting for _, setting, _ in found} == {"remat False, microbatches 1"}
  assert [mesh[0] for mesh, _, _ in found] == sorted(mesh[0] for mesh in MESHES)
  assert lines[0] == "7 meshes hold the step's arguments; at most 20 compilations, the meshes that send least first"
  assert len(lines) == 1 + len(found)


def test_a_search_passes_over_what_would_not_fit_by_what_others_took(searched):
  found, _ = searched(100, most=40)
  of_one = [(setting, fits) for mesh, setting, fits in found if mesh == (8, 1, 1)]
  # Without remat 100 GiB; half of that, and a quarter, would not fit into 16 either, even at 70 %. With it 33, 17, then 8.
  tried = ["remat True, microbatches 4", "remat False, microbatches 1", "remat True, microbatches 1", "remat True, microbatches 2"]
  assert of_one == [(setting, place == 0) for place, setting in enumerate(tried)]


def test_a_search_compiles_no_more_than_it_may_and_says_where_nothing_fits(searched):
  found, lines = searched(10_000, most=3)
  assert [fits for _, _, fits in found] == [False] * 3 and len(lines) == 4
  assert search.describe_best([])[0].startswith("None of those that were compiled fits; take more chips")


def test_a_search_is_for_one_step():
  with pytest.raises(ConfigError, match=re.escape("--search: 2 steps were asked for (rl: rollout, rl: update); name one by")):
    search.search(pod_config("tiny"), parse_topology("v5e:2x4"), jax.devices(), ["rl"])
