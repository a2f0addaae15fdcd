"""The published RL algorithms by name, each a diff on `config.rl`.

A config calls one of them: `dr_grpo(config)`. None has a KL term: no initial policy is kept beside the trained one. The elements of
DAPO have a switch each: clip-higher `loss.clip_high`, token-level loss `loss.aggregation`, refilled groups `dynamic_sampling`, overlong
shaping `overlong_zone`, and, in its place, overlong filtering `loss.mask_truncated`.
"""


def dapo(config):
  """arXiv 2503.14476; what `base()` holds."""
  config.rl.update({"dynamic_sampling": True, "overlong_zone": 8})
  config.rl.loss.update({"aggregation": "token_mean", "ratio": "token", "clip_low": 0.2, "clip_high": 0.28, "divide_by_std": True})


def grpo(config):
  """arXiv 2402.03300: every sequence weighs the same, the clip is symmetric, groups without a signal stay in the mean."""
  config.rl.update({"dynamic_sampling": False, "overlong_zone": 0})
  config.rl.loss.update({"aggregation": "sequence_mean", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "divide_by_std": True})


def dr_grpo(config):
  """arXiv 2503.20783: GRPO without its two biases, by length and by standard deviation."""
  grpo(config)
  config.rl.loss.update({"aggregation": "constant_length", "divide_by_std": False})


def gspo(config):
  """arXiv 2507.18071: GRPO with the ratio of the whole sequence, whose clip is narrow since a mean over tokens varies little.

  Made for several gradient steps on a batch: with one, the gap between sampler and trainer alone can pass the clip.
  """
  grpo(config)
  config.rl.loss.update({"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4})


RL_LOSSES = {"dapo": dapo, "grpo": grpo, "dr_grpo": dr_grpo, "gspo": gspo}
