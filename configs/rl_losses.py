"""Purpose: the published RL algorithms by name, each a diff on `config.rl` and a config: the small market's main line with it.
Paper: trained by DAPO (Eq 8 and 9); no figure of the others.
Expected: not measured; `dapo` is `small_market.py`, and the others differ from it in `config.rl` alone.
Hardware: 2 CPU cores, two minutes.
Command: python -m experiments.run --config=configs/rl_losses.py:grpo --workdir=runs/grpo
Measured: nothing yet; docs/results/README.md lists what is.

`dapo`, `grpo`, `dr_grpo`, `gspo` or `tis`; `seed=N`: another market with other draws; `tiny`: for tests.
None has a KL term: no initial policy is kept beside the trained one. The elements of DAPO have a switch each: clip-higher
`loss.clip_high`, token-level loss `loss.aggregation`, refilled groups `dynamic_sampling`, overlong shaping `overlong_zone`, and, in its
place, overlong filtering `loss.mask_truncated`.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import small_market
from experiments.flags import parse_arg
from gr2_jax.errors import ConfigError


def dapo(config: ConfigDict) -> None:
  """arXiv 2503.14476; what `base()` holds."""
  config.rl.update({"dynamic_sampling": True, "overlong_zone": 8})
  config.rl.loss.update({"aggregation": "token_mean", "ratio": "token", "clip_low": 0.2, "clip_high": 0.28, "divide_by": "std"})


def grpo(config: ConfigDict) -> None:
  """arXiv 2402.03300: every sequence weighs the same, the clip is symmetric, groups without a signal stay in the mean."""
  config.rl.update({"dynamic_sampling": False, "overlong_zone": 0})
  config.rl.loss.update({"aggregation": "sequence_mean", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "divide_by": "std"})


def dr_grpo(config: ConfigDict) -> None:
  """arXiv 2503.20783: GRPO without its two biases, by length and by standard deviation."""
  grpo(config)
  config.rl.loss.update({"aggregation": "constant_length", "divide_by": "none"})


def gspo(config: ConfigDict) -> None:
  """arXiv 2507.18071: GRPO with the ratio of the whole sequence, whose clip is narrow since a mean over tokens varies little.

  Made for several gradient steps on a batch: with one, the gap between sampler and trainer alone can pass the clip.
  """
  grpo(config)
  config.rl.loss.update({"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4})


def tis(config: ConfigDict) -> None:
  """DAPO with truncated importance weights (Ionides 2008), against the gap between the probabilities of sampler and trainer."""
  dapo(config)
  config.rl.loss.importance_cap = 2.0


RL_LOSSES: dict[str, Callable[[ConfigDict], None]] = {"dapo": dapo, "grpo": grpo, "dr_grpo": dr_grpo, "gspo": gspo, "tis": tis}


def get_config(arg: str | None = None) -> ConfigDict:
  args = parse_arg(arg, **dict.fromkeys(RL_LOSSES, False), tiny=False, seed=0)
  chosen = [name for name in RL_LOSSES if getattr(args, name)]
  if len(chosen) != 1:
    raise ConfigError(f"config argument: name one RL algorithm of {', '.join(RL_LOSSES)}, for example configs/rl_losses.py:grpo")
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = f"rl_{chosen[0]}"
  RL_LOSSES[chosen[0]](config)
  return config
