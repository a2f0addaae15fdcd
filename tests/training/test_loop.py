"""A resumed run equals an uninterrupted one bit for bit, and a diverged one says where."""

import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.training import guard
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.guard import DivergedError, skip_if_not_finite
from gr2_jax.training.interrupts import Interrupted, StopSignal
from gr2_jax.training.loop import StepResult, batch_step, fit
from gr2_jax.training.metric import Metric
from gr2_jax.training.progress import Progress
from gr2_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer
from gr2_jax.training.writers import MetricWriter

OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.05, schedule="cosine", warmup_steps=2), total_steps=9)
RECORDS = np.random.default_rng(0).integers(1, 7, size=17)


def example(size, rng):
  return {"tokens": rng.integers(0, 16, size), "parts": np.ones(size)}


def make_batches():
  return make_pipeline(RECORDS, seed=5, batch_size=4, map_fn=example, pack_length=8)


def start():
  """Predicts a token from the one before, with noise from a key folded from the step: everything a resume could lose."""
  return init_state({"table": jnp.zeros((16, 16))}, OPTIMIZER)


@jax.jit
def toy_update(state, batch):
  def loss_fn(params):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), state.step), (16, 16))
    logits = (params["table"] + batch["noise"] * noise)[batch["tokens"][:, :-1]]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
    return (metric := Metric.of(nll, batch["segment_ids"][:, 1:] > 0)).mean(), metric

  (_, metric), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
  new = (optax.apply_updates(state.params, updates), opt_state)
  metrics = {"loss": metric, "grad_norm": Metric(optax.global_norm(grads), 1.0)}
  (params, opt_state), metrics = skip_if_not_finite((state.params, state.opt_state), new, metrics)
  return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics


update = jax.jit(toy_update, donate_argnums=0)


def run(directory, *, steps=9, step_fn=update, save_every=4, max_skips=3, spoilt=(), drawn=None, on_step=None, state=None):
  """`spoilt`: steps whose batch holds a NaN; `drawn`: what a step measures beside its number of rows."""
  batches = make_batches()

  def step(state):
    noise = np.float32(np.nan if int(state.step) + 1 in spoilt else 0.1)
    batch = next(batches) | {"noise": noise}
    new, metrics = step_fn(state, batch)
    return StepResult(new, batch, {"rows": Metric(4.0, 1.0)} | (drawn or {}), metrics)

  with (
    StopSignal() as stop,
    MetricWriter(directory / "metrics.jsonl") as writer,
    Checkpointer(directory / "checkpoints") as checkpointer,
    Progress(Console(file=io.StringIO())).task("toy", steps) as progress,
  ):
    return fit(
      start() if state is None else state,
      step,
      position=batches,
      steps=steps,
      checkpointer=checkpointer,
      writer=writer,
      progress=progress,
      save_every=save_every,
      log_every=2,
      max_skips=max_skips,
      stop=stop,
      section="sft",
      on_step=on_step,
    )


def read(directory):
  return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same_bits(x, y):
  assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def assert_same(a, b):
  jax.tree.map(lambda x, y: assert_same_bits(np.asarray(x), np.asarray(y)), a, b)


def interrupt_at(when, number):
  def on_step(step, state):
    if step == when:
      os.kill(os.getpid(), number)

  return on_step


@pytest.mark.parametrize(("when", "number", "code"), [(3, signal.SIGTERM, 143), (5, signal.SIGINT, 130), (8, signal.SIGTERM, 143)])
def test_interrupted_and_resumed_equals_straight_bit_for_bit(tmp_path, when, number, code):
  straight = run(tmp_path / "straight")
  with pytest.raises(Interrupted) as caught:
    run(tmp_path / "resumed", on_step=interrupt_at(when, number))
  assert caught.value.exit_code == code
  seen = []
  resumed = run(tmp_path / "resumed", on_step=lambda step, _: seen.append(step))
  assert seen == list(range(when + 1, 10))
  assert_same(straight, resumed)
  lines = read(tmp_path / "resumed")
  steps = [line["step"] for line in lines]
  assert steps == sorted(set(steps))
  assert steps[-1] == 9


class Killed(BaseException):
  """Stands for SIGKILL: nothing is saved on the way out."""


def kill_at(when):
  def on_step(step, state):
    if step == when:
      raise Killed

  return on_step


@pytest.mark.parametrize("when", [2, 7])
def test_killed_without_warning_goes_on_from_the_last_save(tmp_path, when):
  straight = run(tmp_path / "straight")
  with pytest.raises(Killed):
    run(tmp_path / "killed", on_step=kill_at(when))
  seen = []
  resumed = run(tmp_path / "killed", on_step=lambda step, _: seen.append(step))
  assert seen[0] == (1 if when < 4 else 5)
  assert_same(straight, resumed)

  def untimed(directory):
    return [line | {"time": 0} for line in read(directory)]

  assert untimed(tmp_path / "killed") == untimed(tmp_path / "straight")


def test_a_finished_run_does_nothing(tmp_path):
  done = run(tmp_path)
  seen = []
  assert_same(done, run(tmp_path, on_step=lambda step, _: seen.append(step)))
  assert seen == []


def test_a_signal_in_the_last_step_lets_the_stage_finish(tmp_path):
  state = run(tmp_path, on_step=interrupt_at(9, signal.SIGTERM))
  assert int(state.step) == 9


def test_metrics_are_means_over_the_counts_of_the_window(tmp_path):
  # Steps 1 and 2: (2 + 12) / (1 + 3) = 3.5, not the mean of 2 and 4. `rare` has no count in the first window, so no entry there.
  def counted(state, batch):
    step = state.step + 1
    weight = jnp.where(step == 1, 1.0, 3.0)
    rare = Metric(jnp.where(step > 2, 6.0, 0.0), jnp.where(step > 2, 1.0, 0.0))
    return state.replace(step=step), {"loss": Metric(jnp.where(step == 1, 2.0, 12.0), weight), "rare": rare, "skipped": Metric(0.0, 1.0)}

  run(tmp_path, steps=4, step_fn=counted)
  first, second = read(tmp_path)
  assert {k: first[k] for k in ("step", "loss", "rows")} == {"step": 2, "loss": 3.5, "rows": 4.0}
  assert "rare" not in first
  assert second["rare"] == 6.0


def test_an_updates_metric_goes_before_a_drawn_one_of_its_name(tmp_path):
  def counted(state, batch):
    return state.replace(step=state.step + 1), {"loss": Metric(2.0, 1.0), "skipped": Metric(0.0, 1.0)}

  run(tmp_path, steps=2, step_fn=counted, drawn={"loss": Metric(9.0, 1.0), "reward": Metric(3.0, 2.0)})
  (line,) = read(tmp_path)
  assert (line["loss"], line["reward"], line["rows"]) == (2.0, 1.5, 4.0)


def test_a_step_that_updates_on_given_batches():
  def double(state, batch):
    return state + 2 * batch, {"loss": Metric(1.0 * batch, 1.0)}

  assert batch_step(double, lambda state: state + 1)(3) == StepResult(11, 4, {}, {"loss": Metric(4.0, 1.0)})


@pytest.fixture
def any_share(monkeypatch):
  """However many updates are skipped, only those in a row end a training."""
  monkeypatch.setattr(guard, "MOST_SKIPPED", 1.0)


def test_single_bad_batches_are_skipped_and_counted(tmp_path, any_share):
  spoilt, states = (3, 4, 6, 8, 9), {}
  run(tmp_path, spoilt=spoilt, on_step=lambda step, state: states.update({step: jax.tree.map(np.array, state)}))
  for step in range(2, 10):
    before, after = ((states[s].params, states[s].opt_state) for s in (step - 1, step))
    if step in spoilt:
      assert_same(before, after)
    else:
      assert not np.array_equal(before[0]["table"], after[0]["table"])
    assert states[step].step == step
  lines = read(tmp_path)
  # Windows of two steps, and the last step alone.
  assert [(line["step"], line["skipped"]) for line in lines] == [(2, 0), (4, 1), (6, 0.5), (8, 0.5), (9, 1)]
  # A window of skipped steps only has no loss, and no other window has a loss that is no number.
  assert ["loss" in line for line in lines] == [True, False, True, True, False]
  assert all(line.get("loss", 0) is not None for line in lines)


def test_skips_in_a_row_stop_the_run_with_the_batch_saved(tmp_path, any_share):
  # The third in a row is step 7; it is noticed when step 8 is logged, and step 8 is not saved.
  with pytest.raises(DivergedError, match="in 3 steps in a row, up to step 7,") as caught:
    run(tmp_path, spoilt=(2, 3, 5, 6, 7))
  path = tmp_path / "skipped_step7_process0.npz"
  assert str(path) in str(caught.value)
  stream = make_batches()
  expected = [next(stream) for _ in range(7)][-1]
  saved = np.load(path)
  for name, value in expected.items():
    np.testing.assert_array_equal(saved[name], value)
  assert read(tmp_path)[-1]["step"] == 8
  assert Checkpointer(tmp_path / "checkpoints").steps() == [4]


def test_too_many_skips_fail_the_training_and_are_counted_over_sessions(tmp_path):
  # Two of twenty are borne, the third, step 13, is not; it is noticed when step 14 is logged.
  run(tmp_path / "borne", steps=20, spoilt=(3, 7))
  with pytest.raises(Interrupted):
    run(tmp_path / "resumed", steps=20, spoilt=(3, 7, 13), on_step=interrupt_at(9, signal.SIGTERM))
  with pytest.raises(DivergedError, match=r"--config\.sft\.optimizer\.learning_rate") as caught:
    run(tmp_path / "resumed", steps=20, spoilt=(3, 7, 13))
  assert str(tmp_path / "resumed" / "skipped_step13_process0.npz") in str(caught.value)
  assert Checkpointer(tmp_path / "resumed" / "checkpoints").steps() == [9, 12]


def test_learns_the_toy_task(tmp_path):
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.3), 40)

  @jax.jit
  def regress(state, batch):
    def loss_fn(params):
      return (params["w"] - 3.0) ** 2

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": Metric(loss, 1.0), "skipped": Metric(0.0, 1.0)}
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

  run(tmp_path, steps=40, step_fn=regress, save_every=40, state=init_state({"w": jnp.zeros(())}, optimizer))
  lines = read(tmp_path)
  assert lines[0]["loss"] > 5
  assert lines[-1]["loss"] < 0.5
