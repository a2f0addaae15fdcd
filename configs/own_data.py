"""Purpose: your own data: the main line on a folder of JSONL files, with the settings of `amazon.py:beauty,small`.
Paper: no figure.
Expected: depends on the log; `amazon.py:beauty,small` on its own: direct policy over the upstream order R@1 +108 % [90, 128], N@3 +67 %
  [59, 75] (95 % intervals).
Hardware: 2 CPU cores, under an hour for a log like Amazon Beauty's (22,363 users, 12,101 items); hardly less for a smaller one, since steps
  are counted, not passes. `tiny`: minutes.
Command: python -m experiments.run --config=configs/own_data.py:FOLDER --workdir=runs/mine
Measured: docs/results/beauty.md

FOLDER (without a comma in its name) holds items.jsonl and interactions.jsonl, slates_*.jsonl or both, plain or gzip; README.md has their
fields. Slates that are there are re-ranked; without any a click model is fitted on the log, and its ten best items are.
`FOLDER,tiny` shows whether everything runs and learns next to nothing; `tiny` alone, without a FOLDER, takes a synthetic log.
`candidates=N`: the most that a logged slate has (10); prompts and answers get room for as many. `seed=N`: other draws.
"""

import pathlib

from configs import amazon
from experiments.flags import parse_arg
from gr2_jax.data.folders import find_slates
from gr2_jax.data.schema import DataError
from gr2_jax.errors import ConfigError


def get_config(arg=None):
  first, _, rest = (arg or "").partition(",")
  named = bool(first) and first != "tiny" and "=" not in first
  args = parse_arg(rest if named else arg, tiny=False, seed=0, candidates=10)
  if not named and not args.tiny:
    raise ConfigError("config argument: name the folder with your files, for example configs/own_data.py:my_data")
  config = amazon.get_config(f"beauty,small,seed={args.seed},tiny={args.tiny}")
  config.name = "own_data"
  config.tokenize.text_pieces = 2048  # at most; a small catalogue gives fewer
  config.tokenize.rqvae.update({"levels": None, "codebook_size": None})  # by the size of the catalogue
  make_room(config, args.candidates)
  config.traces.max_slates, config.evaluation.max_slates = (200, 40) if args.tiny else (20_000, 2_000)
  if named:
    read_folder(config, pathlib.Path(first))
  return config


def make_room(config, candidates):
  """A candidate takes some twenty tokens of a prompt, and at most four of an answer."""
  config.tokenize.num_candidates = candidates
  config.prompt.max_prompt_tokens = 184 + 20 * candidates
  config.decoding.max_new_tokens = 56 + 4 * candidates
  config.sft.row_length = config.prompt.max_prompt_tokens + config.decoding.max_new_tokens + 16


def read_folder(config, folder):
  """The folder as the source, and its slates where it has some. Raises ConfigError for one that is not there."""
  if not folder.is_dir():
    raise ConfigError(f"config argument: there is no folder {str(folder)!r}; name the one with your files")
  try:
    logged = find_slates(folder)
  except DataError as error:
    raise ConfigError(f"config argument: {error}") from None
  config.data.source = str(folder)
  config.slates.source = "log" if logged else "ctr"
  config.midtrain.packed.folds = 0 if logged else config.midtrain.packed.folds  # no slate is cut from the log
  config.slates.size = min(config.slates.size, config.tokenize.num_candidates)
  config.slates.ctr.epochs = 20
