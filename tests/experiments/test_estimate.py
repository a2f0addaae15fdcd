"""An estimate of a run: its counts against exact ones, its shapes and bytes against what a real run leaves, and what the program prints."""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from small_runs import ROOT, write_dataset

from experiments import estimate as program
from experiments.estimates.data import count_data
from experiments.estimates.disk import count_bytes, disk_bytes
from experiments.estimates.estimate import estimate
from experiments.estimates.flops import count_flops
from experiments.estimates.table import format_amount, print_estimate
from experiments.flags import load_config
from experiments.stage_steps import list_steps
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import needed_stages
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.mesh import make_mesh

TINY = preset("tiny", 512)


def config_of(name):
  return load_config(str(ROOT / "configs" / name))


def one_device():
  return make_mesh(devices=jax.devices()[:1])


def steps_of(config, stage):
  return list_steps(config, count_data(config).sizes, stage)


def flops_of_decoder(config, rows, length):
  """By hand: the projections of every layer, and the products of queries with keys and of weights with values."""
  heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  a_token = config.width * (heads + 2 * kv) + heads * config.width + 3 * config.width * config.mlp_width
  return config.num_layers * rows * 2 * (length * a_token + 2 * length**2 * heads)


def test_flops_of_the_tiny_decoder_are_those_counted_by_hand():
  decoder = Decoder(TINY)
  params = jax.eval_shape(lambda key: init_params(decoder, key), jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((3, 40), jnp.int32)
  found = count_flops(lambda params, *of: decoder.apply({"params": params}, *of)[0], params, tokens, tokens, tokens)
  assert found == flops_of_decoder(TINY, 3, 40)


def test_a_gradient_without_loops_agrees_with_xla():
  def loss(weights, x):
    for weight in weights:
      x = jax.nn.relu(x @ weight)
    return jnp.sum(x**2)

  shapes = [jax.ShapeDtypeStruct((128, 128), jnp.float32)] * 3, jax.ShapeDtypeStruct((256, 128), jnp.float32)
  xla = jax.jit(jax.grad(loss)).lower(*shapes).cost_analysis()["flops"]
  assert count_flops(jax.grad(loss), *shapes) == pytest.approx(xla, rel=0.03)


def test_loops_count_as_often_as_they_run():
  x = jnp.ones((8, 8))
  once = 2 * 8**3
  scanned = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]
  assert count_flops(scanned, x) == 5 * once
  branched = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)
  assert count_flops(branched, x) == 2 * once
  inner = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)
  nested = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, inner, x)
  assert count_flops(inner, x) == once
  assert count_flops(nested, x, trips=(3, 2)) == 6 * once


def test_parameters_of_the_tiny_preset_are_those_counted_by_hand():
  config = config_of("written.py")
  config.model.preset = "tiny"
  update = steps_of(config, "midtrain")[-1]
  found = sum(math.prod(x.shape) for x in jax.tree.leaves(update.arguments[0].arrays.params))
  c = preset("tiny", 640)  # 512 text pieces, 14 frames, 10 candidates and 3 x 32 codes, in multiples of 128
  heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  layer = c.width * (2 * heads + 2 * kv) + 3 * c.width * c.mlp_width + 2 * c.width + 2 * c.head_dim
  assert found == c.vocab_size * c.width + c.num_layers * layer + c.width


def test_tokens_are_steps_times_rows_times_their_length():
  config = config_of("written.py")
  update = steps_of(config, "midtrain")[-1]
  assert update.calls * update.positions == config.midtrain.steps * config.midtrain.batch_size * config.midtrain.row_length
  config = config_of("amazon.py:beauty,small")
  config.data.source = "tfds:beauty"
  update = steps_of(config, "midtrain")[0]
  rows = config.midtrain.batch_size * config.midtrain.row_length
  assert update.calls * update.positions == (1 + config.midtrain.packed.folds) * config.midtrain.steps * rows


def test_a_folder_is_counted(tmp_path, small_market):
  config = config_of("own_data.py:" + str(write_dataset(tmp_path / "dataset", small_market)))
  sizes = count_data(config).sizes
  assert (sizes.items, sizes.users) == (len(small_market.catalogue), len(small_market.histories))
  assert sizes.interactions == sum(len(history.items) for history in small_market.histories)


def test_a_folder_that_is_not_there_is_named(tmp_path):
  config = config_of("amazon.py:beauty,small")
  config.data.source = str(tmp_path / "nothing")
  with pytest.raises(ConfigError, match=r"--config\.data\.source: .*nothing' is no folder"):
    count_data(config)


@pytest.mark.parametrize("name", ["quickstart.py", "written.py", "amazon.py:beauty,small,strong,seed=1", "rl_losses.py:grpo"])
def test_every_stage_that_trains_has_steps(name):
  config = config_of(name)
  if name.startswith("amazon"):
    config.data.source = "tfds:beauty"
  trained = {
    step.stage for stage in ("tokenize", "midtrain", "slates", "sft", "rl", "direct") for step in steps_of(config, stage) if step.trains
  }
  needed = {needed.name for needed in needed_stages(load_stages(), config)}
  assert {"tokenize", "midtrain", "sft", "rl"} <= trained
  assert ("slates" in trained) == (config.slates.source != "log")
  assert "direct" not in needed or "direct" in trained


def test_the_compressors_that_are_trained_have_steps_and_the_others_none():
  config = config_of("ablations/compressor.py:tiny")
  steps = {step.name: step for step in steps_of(config, "compress")}
  rewriter, soft_tokens = config.compress.rewriter, config.compress.soft_tokens
  assert {name: step.calls for name, step in steps.items() if step.trains} == {
    "rewriter: warm-up": rewriter.warmup.steps,
    "rewriter: update": rewriter.steps,
    "soft tokens: update": soft_tokens.steps,
  }
  assert steps["rewriter: judged texts"].calls == rewriter.steps * rewriter.group
  assert steps["rewriter: greedy texts"].calls == -(-config.data.market.test_slates // config.compress.batch_size)
  flops = {name: count_flops(step.function, *(of.arrays for of in step.arguments), trips=step.trips) for name, step in steps.items()}
  assert all(flops.values()), "every step can be traced on these shapes"
  evaluated = [step.name for step in steps_of(config, "evaluation")]
  assert "answers on compressed histories" in evaluated
  config.compress.rewriter.judge = "chat"
  assert not any("judged" in step.name for step in steps_of(config, "compress"))
  config.compress.variants = ("sids", "rules")
  assert steps_of(config, "compress") == []


def test_states_have_the_shapes_of_those_that_a_run_saved(scored_run):
  run = Run.open(scored_run)
  for stage in ("midtrain", "sft", "rl", "direct"):
    update = next(step for step in steps_of(run.config, stage) if step.trains)
    saved = Checkpointer(run.path(stage, "checkpoints_training"))
    restored = saved.restore_latest(on_one_device(update.arguments[0].arrays))
    assert restored is not None, stage


def on_one_device(shapes):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def test_bytes_are_those_of_saved_checkpoints(tmp_path):
  config = config_of("written.py")
  config.model.preset = "tiny"
  config.midtrain.update({"steps": 100, "save_every": 40})
  steps = steps_of(config, "midtrain")
  state = jax.tree.map(lambda x: np.asarray(np.random.default_rng(0).normal(size=x.shape), x.dtype), steps[-1].arguments[0].arrays)
  with Checkpointer(tmp_path / "checkpoints") as checkpoints:
    for step in (40, 80, 100):
      checkpoints.save(step, state, {})
  written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
  assert written == pytest.approx(2 * count_bytes(state), rel=0.12)
  assert disk_bytes(config, count_data(config).sizes, "midtrain", steps) == 2 * count_bytes(state)


def tiny_config():
  """Fewer policies, since what takes time here is compilation."""
  config = config_of("quickstart.py:at_once,tiny")
  config.rl.control = config.direct.enabled = False
  return config


@pytest.fixture(scope="module")
def tiny_estimate():
  return estimate(tiny_config(), seconds=0.5, mesh=one_device())


def test_an_estimate_tells_every_stage(tiny_estimate):
  config = tiny_config()
  assert [stage.name for stage in tiny_estimate.stages] == [needed.name for needed in needed_stages(load_stages(), config)]
  by_name = {stage.name: stage for stage in tiny_estimate.stages}
  for name in ("tokenize", "midtrain", "sft", "rl"):
    stage = by_name[name]
    assert stage.parameters and stage.positions and stage.flops, name
    assert 0 < stage.steps < 60 and stage.memory > 4 * stage.parameters
  assert by_name["data"].flops == 0 and by_name["data"].disk > 0
  assert 0 < tiny_estimate.machine.share <= 1


def test_what_is_printed_adds_up(tiny_estimate):
  out = io.StringIO()
  print_estimate(tiny_estimate, Console(file=out, width=120))
  text = out.getvalue()
  rows = [line for line in text.splitlines() if line.strip()]
  names = [line.split()[0] for line in rows]
  stages = [stage.name for stage in tiny_estimate.stages]
  assert [name for name in names if name in (*stages, "all")] == [*stages, "all"]
  total = rows[names.index("all")]
  assert format_amount(sum(stage.flops for stage in tiny_estimate.stages)) in total
  assert format_amount(sum(stage.disk for stage in tiny_estimate.stages), "B") in total
  assert format_amount(max(stage.memory for stage in tiny_estimate.stages), "B") in total
  assert "Nothing was written." in text and "market's settings" in text


def test_a_step_that_does_not_fit_is_scaled_and_said_so(monkeypatch):
  from experiments.estimates import measure

  steps = steps_of(tiny_config(), "sft")  # compiled already
  monkeypatch.setattr(measure, "_free_bytes", lambda: 0.0)
  found, machine = measure.measure_steps(steps, one_device(), seconds=0.2)
  assert not any(of.timed for of in found)
  assert [of.seconds for of in found] == pytest.approx([of.flops / machine.rate for of in found])


@pytest.mark.parametrize(("amount", "text"), [(0, "–"), (999, "999"), (1234, "1.23 k"), (5.6e9, "5.6 G")])
def test_amounts_have_three_digits(amount, text):
  assert format_amount(amount) == text


def test_a_stray_word_is_refused(capsys):
  assert program.main(["estimate", "quickstart"]) == 1
  assert "'quickstart' is no flag" in capsys.readouterr().err
