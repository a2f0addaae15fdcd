"""What is saved comes back, where it belongs; damage costs one checkpoint, not the run."""

import errno
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gr2_jax.training.checkpoints import Checkpointer, CheckpointError
from gr2_jax.training.state import OptimizerConfig, init_state, make_optimizer


def make_state(scale=1.0, width=4):
  params = {"dense": {"kernel": jnp.arange(8.0 * width).reshape(8, width) * scale, "bias": jnp.ones(width, jnp.bfloat16) * scale}}
  return init_state(params, make_optimizer(OptimizerConfig(learning_rate=0.1), 10))


def abstract(state, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def test_round_trip_and_the_newest_are_kept(tmp_path):
  with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
    assert checkpointer.restore_latest(abstract(make_state())) is None
    for step in (1, 2, 3):
      checkpointer.save(step, make_state(step), {"next": step})
  reader = Checkpointer(tmp_path / "c")
  assert reader.steps() == [2, 3]
  state, data_state, step = reader.restore_latest(abstract(make_state()))
  assert (step, data_state) == (3, {"next": 3})
  assert_equal(state, make_state(3))


def test_looking_for_a_checkpoint_makes_no_folder(tmp_path):
  assert Checkpointer(tmp_path / "c").restore_latest(abstract(make_state())) is None
  with pytest.raises(CheckpointError, match="no checkpoint here"):
    Checkpointer(tmp_path / "c").load_params(abstract(make_state().params))
  assert not (tmp_path / "c").exists()


def test_arrays_are_born_in_the_given_shardings(tmp_path):
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = NamedSharding(mesh, PartitionSpec())
  state = make_state()
  sharded = jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim == 2 else whole), state)
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, sharded, None)
  restored, _, _ = Checkpointer(tmp_path).restore_latest(abstract(sharded))
  assert restored.params["dense"]["kernel"].sharding == rows
  assert_equal(restored, state)
  single, _, _ = Checkpointer(tmp_path).restore_latest(abstract(state))
  assert len(single.params["dense"]["kernel"].sharding.device_set) == 1
  params = Checkpointer(tmp_path).load_params(abstract(sharded.params))
  assert params["dense"]["kernel"].sharding == rows
  assert_equal(params, state.params)


def damage(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize("part", ["state", "data"])
def test_damage_falls_back_to_the_one_before_and_loses_nothing(tmp_path, caplog, part):
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, make_state(1), {"next": 1})
    checkpointer.save(2, make_state(2), {"next": 2})
  damage(tmp_path / "2" / part)
  with Checkpointer(tmp_path) as checkpointer:
    with caplog.at_level(logging.WARNING):
      state, data_state, step = checkpointer.restore_latest(abstract(make_state()))
    assert "going on from step 1" in caplog.text
    assert (step, data_state) == (1, {"next": 1})
    assert_equal(state, make_state(1))
    checkpointer.save(2, make_state(5), {"next": 5})
  assert (tmp_path / "damaged-2").is_dir()
  state, _, step = Checkpointer(tmp_path).restore_latest(abstract(make_state()))
  assert step == 2
  assert_equal(state, make_state(5))


def test_where_all_are_damaged_it_says_so(tmp_path):
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, make_state(), None)
  damage(tmp_path / "1" / "state")
  with pytest.raises(CheckpointError, match="damaged"):
    Checkpointer(tmp_path).restore_latest(abstract(make_state()))


@pytest.mark.parametrize("part", ["", "state/_METADATA"])
def test_damaged_parameters_are_told_with_their_stage_and_no_older_ones_taken(tmp_path, part):
  folder = tmp_path / "sft" / "checkpoints"
  with Checkpointer(folder) as checkpointer:
    for step in (1, 2):
      checkpointer.save(step, make_state(step), None)
  if part:
    (folder / "2" / part).write_bytes(b"")
  else:
    damage(folder / "2" / "state")
  with pytest.raises(CheckpointError, match=r"step 2 is damaged.*remove .*sft and run the stage 'sft'"):
    Checkpointer(folder).load_params(abstract(make_state().params))
  assert Checkpointer(folder).steps() == [1, 2]


def test_a_save_that_was_cut_off_is_not_seen(tmp_path):
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, make_state(1), None)
  (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  assert Checkpointer(tmp_path).restore_latest(abstract(make_state()))[2] == 1


def test_another_model_is_an_error_and_renames_nothing(tmp_path):
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, make_state(), None)
  with pytest.raises(CheckpointError, match=r"does not fit this model.*another --workdir"):
    Checkpointer(tmp_path).restore_latest(abstract(make_state(width=6)))
  with pytest.raises(CheckpointError, match=r"does not fit this model \(params.dense.bias"):
    Checkpointer(tmp_path).load_params(abstract(make_state(width=6).params))
  assert Checkpointer(tmp_path).steps() == [1]


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
  state = make_state()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  usage = shutil.disk_usage(tmp_path)
  with Checkpointer(tmp_path / "new") as checkpointer:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(OSError, match="new") as caught:
      checkpointer.save(1, state, None)
    assert caught.value.errno == errno.ENOSPC and checkpointer.steps() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
    checkpointer.save(1, state, None)
    assert checkpointer.steps() == [1]


def test_another_format_is_an_error(tmp_path):
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, make_state(), None)
  (path,) = [p for p in (tmp_path / "1" / "format").iterdir() if "train_state.2" in p.read_text()]
  path.write_text('{"format": "gr2_jax.train_state.0"}')
  with pytest.raises(CheckpointError, match=r"train_state\.0"):
    Checkpointer(tmp_path).restore_latest(abstract(make_state()))
