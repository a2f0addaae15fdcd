"""One line a step, none twice, none half-written."""

import json
import sys
import types

import pytest

from gr2_jax.errors import ConfigError
from gr2_jax.training.writers import MetricWriter, read_metrics


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_have_step_time_and_values(tmp_path):
  path = tmp_path / "metrics" / "sft.jsonl"
  with MetricWriter(path) as writer:
    writer.resume(0)
    writer.write(10, {"loss": 2.5})
    writer.write(20, {"loss": float("nan"), "kept": 1})
  first, second = read(path)
  assert (first["step"], first["loss"]) == (10, 2.5)
  assert second == {"step": 20, "time": second["time"], "loss": None, "kept": 1.0}
  assert 0 <= first["time"] <= second["time"]


def test_resume_drops_what_will_be_written_again_and_time_goes_on(tmp_path):
  path = tmp_path / "rl.jsonl"
  rows = [{"step": s, "time": 100.0 * s, "loss": 1.0} for s in (1, 2, 3)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "ti')
  with MetricWriter(path) as writer:
    writer.resume(2)
    writer.write(3, {"loss": 7.0})
  lines = read(path)
  assert [line["step"] for line in lines] == [1, 2, 3]
  assert lines[:2] == rows[:2]
  assert lines[2]["loss"] == 7.0
  assert lines[2]["time"] >= 200.0


def test_metrics_are_read_back_without_a_half_written_line(tmp_path):
  path = tmp_path / "rl.jsonl"
  assert read_metrics(path) == []
  with MetricWriter(path) as writer:
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": float("inf")})
  with path.open("a") as file:
    file.write('{"step": 3, "lo')
  assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 2.5), (2, None)]


def test_an_inactive_writer_leaves_nothing(tmp_path):
  with MetricWriter(tmp_path / "x.jsonl", active=False) as writer:
    writer.resume(0)
    writer.write(1, {"loss": 1.0})
  assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_values_when_installed(tmp_path):
  pytest.importorskip("tensorboardX")
  with MetricWriter(tmp_path / "sft.jsonl") as writer:
    writer.write(1, {"loss": 1.0})
  assert [p for p in (tmp_path / "sft").iterdir() if "tfevents" in p.name]


def test_missing_tensorboard_is_no_error(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with MetricWriter(tmp_path / "sft.jsonl") as writer:
    writer.write(1, {"loss": 1.0})
  assert [p.name for p in tmp_path.iterdir()] == ["sft.jsonl"]


def test_missing_wandb_names_the_remedy(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match=r"pip install 'gr2_jax\[wandb\]'"):
    MetricWriter(tmp_path / "x.jsonl", wandb_project="p")


def test_wandb_that_refuses_is_an_error_of_the_config(tmp_path, monkeypatch):
  class Refused(Exception):
    pass

  def init(**_):
    raise Refused("no API key")

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Refused))
  with pytest.raises(ConfigError, match=r"wandb_project: .*no API key"):
    MetricWriter(tmp_path / "x.jsonl", wandb_project="p")


def test_wandb_gets_the_values(tmp_path, monkeypatch):
  calls = []
  run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
  module = types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or run)
  monkeypatch.setitem(sys.modules, "wandb", module)
  with MetricWriter(tmp_path / "x.jsonl", wandb_project="gr2", run_name="a/rl") as writer:
    writer.write(3, {"loss": 1.0})
  assert calls == [{"project": "gr2", "name": "a/rl", "id": "a-rl", "resume": "allow"}, (3, {"loss": 1.0}), "finish"]
