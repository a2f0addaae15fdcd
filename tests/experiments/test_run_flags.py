"""Every wrong flag is told apart before anything starts."""

import pathlib
import subprocess
import sys

import pytest

from experiments.flags import check_overrides, load_config, parse_arg, read_overrides
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


def write(path, text):
  path.write_text(text, encoding="utf-8")
  return str(path)


def test_a_file_of_overrides_is_read_with_the_types_of_the_config(config_file, tmp_path):
  config = load_config(str(config_file))
  lines = ("seed = 3", "rl.steps = 7", "[data]", "share = 1", "shuffle = false", "sizes = [3]", 'name = "3"', "limit = 4")
  values = read_overrides(write(tmp_path / "small.toml", "\n".join(lines)), config)
  assert values == {
    **{"seed": 3, "rl.steps": 7, "data.share": 1.0, "data.shuffle": False, "data.sizes": (3,), "data.name": "3", "data.limit": 4}
  }
  assert type(values["data.share"]) is float
  assert read_overrides(write(tmp_path / "empty.toml", "[data]\n"), config) == {}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("data.usrs = 3", r"data\.usrs: config\.data has no key 'usrs'; did you mean users\?"),
    ("[dta]", r"dta: config has no key 'dta'; did you mean data\?"),
    ('"rl.steps" = 3', r"rl\.steps: config has no key 'rl\.steps'"),
    ("seed.x = 3", r"seed\.x: config\.seed is a int, not a section"),
    ("data = 3", r"data is a section; set one of its keys: .*users"),
    ('data.users = "5"', r"data\.users: expected int \(now 5\), got str '5'"),
    ("data.users = 2.0", r"data\.users: expected int \(now 5\), got float 2\.0"),
    ("data.users = true", r"data\.users: expected int \(now 5\), got bool True"),
    ("data.users = 0x" + "f" * 5000, r"data\.users: a whole number that does not fit 64 bits"),
    ("data.sizes = [1, 0x" + "f" * 5000 + "]", r"data\.sizes: a whole number that does not fit 64 bits"),
    ("data.share = true", r"data\.share: expected float"),
    ("data.shuffle = 1", r"data\.shuffle: expected bool \(now True\), got int 1"),
    ("data.sizes = 3", r"data\.sizes: expected tuple \(now \(1, 2\)\), got int 3"),
    ("data.name = 3", r"data\.name: expected str \(now 'a'\), got int 3"),
    ("data.name = 2020-01-01", r"data\.name: expected str .* got date"),
    ("data.untyped = 3", r"data\.untyped is None and has no type"),
    ("data.users: 3", r"no TOML \(.*line 1.*write lines such as rl\.steps = 200"),
    ("data.users = __import__('os')", "no TOML"),
    ("data.users = " + "[" * 5000, "no TOML"),
    (".".join("a" * 5000) + " = 1", "no TOML"),
  ],
)
def test_a_wrong_file_of_overrides_is_named_with_its_key(config_file, tmp_path, text, message):
  with pytest.raises(ConfigError, match=rf"^--overrides=\S*small\.toml: {message}") as error:
    read_overrides(write(tmp_path / "small.toml", text), load_config(str(config_file)))
  assert "\n" not in str(error.value)


def test_a_file_of_overrides_that_is_missing_or_no_text_is_named(config_file, tmp_path):
  config = load_config(str(config_file))
  write(tmp_path / "small.toml", "")
  with pytest.raises(ConfigError, match=r"--overrides: no file '.*smal\.toml'; did you mean .*small\.toml"):
    read_overrides(str(tmp_path / "smal.toml"), config)
  (tmp_path / "small.toml").write_bytes(b"\xff\xfe")
  with pytest.raises(ConfigError, match=r"small\.toml: no TOML"):
    read_overrides(str(tmp_path / "small.toml"), config)


PROGRAM = """
from absl import app
from experiments.flags import command_of, define_config, parse_flags
CONFIG = define_config()
def main(argv):
  c = CONFIG.value
  print(c.data.users, c.data.share, c.data.shuffle, c.data.sizes, c.rl.steps)
  if argv[1:]: print(*command_of("program")[3:])
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


def test_files_go_over_the_config_in_the_order_given_and_single_values_over_all(config_file, tmp_path):
  first = write(tmp_path / "first.toml", "rl.steps = 4\n[data]\nusers = 6\nsizes = [8]\nshare = 0.1\n")
  second = write(tmp_path / "second.toml", "data.users = 7\ndata.shuffle = false\n")
  files = [f"--overrides={first}", f"--overrides={second}"]
  # Single values win wherever they stand, and a tuple of the command line does not grow by that of a file.
  given = ["--config.data.sizes=(9,)", *files, "--config.data.share=0.5", "told"]
  result = program(f"--config={config_file}:steps=3", *given)
  told, command = result.stdout.splitlines()
  assert told == "7 0.5 False (9,) 4", result.stderr
  # What is recorded says the same without what the files hold at another time.
  assert command.split()[1:] == [*given, "--config.rl.steps=4", "--config.data.users=7", "--config.data.shuffle=False"]
  for file in (first, second):
    pathlib.Path(file).write_text("")
  assert program(f"--config={config_file}:steps=3", *command.split()[1:]).stdout.splitlines()[0] == told


def test_a_wrong_flag_is_one_line_and_exit_code_1(config_file):
  wrong = {
    "--config.data.usrs=3": "ERROR: --config.data.usrs: config.data has no key 'usrs'; did you mean users?",
    "--confg.data.users=3": "ERROR: Unknown command line flag 'confg.data.users'",
    "--overrides=nowhere.toml": "ERROR: --overrides: no file 'nowhere.toml'",
  }
  for flag, message in wrong.items():
    result = program(f"--config={config_file}", flag)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
  assert program().stderr == "ERROR: --config is missing; for example --config=configs/quickstart.py\n"
