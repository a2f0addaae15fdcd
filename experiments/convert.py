"""Writes a published language model as a folder that training starts from, or a run's policy as one that others load.

    python -m experiments.convert --from=HF_DIR|FILE.gguf --to=DIR [--dtype=float32|bfloat16|float16]
    python -m experiments.convert --from=RUN[/STAGE] --to=DIR --export

Every tensor is checked against config.json before anything is written, and one after the other is read and written. A GGUF file is
dequantised, and its tokenizer written as tokenizer.json. `model.init=hf:DIR` of a config names the folder. An exported policy has its
tokenizer, a chat template of our frames, and a README.md that says how to load it.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

_FROM = flags.DEFINE_string("from", None, "folder as Hugging Face lays it out, FILE.gguf, or with --export RUN or RUN/STAGE")
_TO = flags.DEFINE_string("to", None, "folder to write, which is not there yet")
_DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16", "float16"), "of all tensors (as they are; of GGUF float32)")
_EXPORT = flags.DEFINE_bool("export", False, "--from is a run, whose final policy (or that of STAGE) is written")


def main(argv: Sequence[str]) -> int:
  """Converts what the flags name."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --from=DIR --to=DIR", file=sys.stderr)
    return 1
  from experiments.exchange import convert  # here, since --help should not wait for JAX

  return convert(_FROM.value, _TO.value, _DTYPE.value, export=_EXPORT.value)


if __name__ == "__main__":
  app.run(main)
