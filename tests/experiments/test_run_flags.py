"""Every wrong flag is told apart before anything starts."""

import pathlib
import subprocess
import sys

import pytest

from experiments.flags import check_overrides, load_config, parse_arg
from gr2_jax.errors import ConfigError

CONFIG = """
from ml_collections import ConfigDict, config_dict
from experiments.flags import parse_arg

def get_config(arg=None):
  args = parse_arg(arg, tiny=False, steps=100)
  limit = config_dict.placeholder(int)
  return ConfigDict({
      "seed": 0,
      "tiny": args.tiny,
      "data": {"users": 5, "share": 0.5, "shuffle": True, "sizes": (1, 2), "name": "a", "untyped": None, "limit": limit},
      "rl": {"steps": args.steps, "group": 8},
  })
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "toy.py"
  path.write_text(CONFIG)
  return path


def test_arguments_after_the_colon(config_file):
  config = load_config(f"{config_file}:tiny,steps=7")
  assert config.tiny
  assert config.rl.steps == 7
  assert config.is_locked
  assert load_config(str(config_file)).rl.steps == 100


@pytest.mark.parametrize(
  ("key", "text", "message"),
  [
    ("data.usrs", "3", r"--config.data.usrs: config.data has no key 'usrs'; did you mean users\?"),
    ("dta.users", "3", r"config has no key 'dta'; did you mean data\?"),
    ("group", "3", r"config has no key 'group'; did you mean rl.group\?"),
    ("rl.zzzzz", "3", r"config.rl has no key 'zzzzz'; there are: group, steps"),
    ("seed.x", "3", r"config.seed is a int, not a section"),
    ("data", "3", r"--config.data is a section; set one of its keys: .*users"),
    ("data.users", "many", r"--config.data.users: expected int \(now 5\), got str 'many'"),
    ("data.users", "2.5", r"--config.data.users: expected int \(now 5\), got float '2.5'"),
    ("data.share", "half", r"expected float \(now 0.5\), got str 'half'"),
    ("data.shuffle", "3", r"expected bool \(now True\), got int '3'"),
    ("data.sizes", "3", r"expected tuple \(now \(1, 2\)\), got int '3'"),
    ("data.limit", "x", r"expected int \(now None\), got str 'x'"),
    ("data.untyped", "3", r"is None and has no type; .*placeholder"),
  ],
)
def test_wrong_overrides_name_key_expected_and_got(config_file, key, text, message):
  with pytest.raises(ConfigError, match=message):
    check_overrides(load_config(str(config_file)), [(key, text)])


def test_right_overrides_pass(config_file):
  right = [
    ("data.users", "3"),
    ("data.share", "1"),
    ("data.shuffle", "false"),
    ("data.sizes", "(3, 4)"),
    ("data.name", "3"),
    ("data.limit", "3"),
  ]
  check_overrides(load_config(str(config_file)), right)


def test_missing_files_and_functions(tmp_path, config_file):
  with pytest.raises(ConfigError, match=r"no file '.*toi\.py'; did you mean .*toy\.py"):
    load_config(str(tmp_path / "toi.py"))
  (tmp_path / "toy.json").write_text("{}")
  with pytest.raises(ConfigError, match=r"toy\.json' is no Python file"):
    load_config(str(tmp_path / "toy.json"))
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(ConfigError, match="has no get_config"):
    load_config(str(tmp_path / "empty.py"))
  (tmp_path / "none.py").write_text("def get_config(): pass")
  with pytest.raises(ConfigError, match=r"returned NoneType; return an ml_collections\.ConfigDict"):
    load_config(str(tmp_path / "none.py"))


def test_parse_arg_takes_the_types_of_its_defaults():
  parsed = parse_arg(
    "beauty, small,steps=100,rate=0.5,name=x,shuffle=false", beauty=False, small=False, steps=1, rate=1.0, name="", shuffle=True
  )
  assert vars(parsed) == {"beauty": True, "small": True, "steps": 100, "rate": 0.5, "name": "x", "shuffle": False}
  assert vars(parse_arg(None, steps=1)) == {"steps": 1}


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("beuaty", r"'beuaty' is unknown; did you mean beauty\?"),
    ("steps", r"'steps' needs a value: steps=1"),
    ("steps=many", r"steps: expected int \(now 1\), got str 'many'"),
  ],
)
def test_parse_arg_errors(arg, message):
  with pytest.raises(ConfigError, match=message):
    parse_arg(arg, beauty=False, steps=1)


PROGRAM = """
from absl import app
from experiments.flags import define_config, parse_flags
CONFIG = define_config()
def main(argv):
  c = CONFIG.value
  print(c.data.users, c.data.share, c.data.shuffle, c.data.sizes, c.rl.steps)
app.run(main, flags_parser=parse_flags)
"""


def run_python(*args):
  root = pathlib.Path(__file__).parents[2]
  return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, cwd=root)


def program(*flags):
  return run_python("-c", PROGRAM, *flags)


def test_overrides_arrive_in_every_form(config_file):
  flags = ["--config.data.users=9", "--config.data.share", "0.25", "--noconfig.data.shuffle", "--config.data.sizes=(7,)"]
  result = program(f"--config={config_file}:steps=3", *flags)
  assert result.stdout == "9 0.25 False (7,) 3\n", result.stderr


def test_a_wrong_flag_is_one_line_and_exit_code_1(config_file):
  wrong = {
    "--config.data.usrs=3": "ERROR: --config.data.usrs: config.data has no key 'usrs'; did you mean users?",
    "--confg.data.users=3": "ERROR: Unknown command line flag 'confg.data.users'",
  }
  for flag, message in wrong.items():
    result = program(f"--config={config_file}", flag)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
  assert program().stderr == "ERROR: --config is missing; for example --config=configs/quickstart.py\n"
