"""Writes a published language model as a folder that training starts from: config.json, safetensors, tokenizer.

    python -m experiments.convert --from=HF_DIR|FILE.gguf --to=DIR [--dtype=float32|bfloat16|float16]

Every tensor is checked against config.json before anything is written, and one after the other is read and written. A GGUF file is
dequantised, and its tokenizer written as tokenizer.json. `model.init=hf:DIR` of a config names the folder.
"""

from collections.abc import Sequence

from absl import app, flags

from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError

_FROM = flags.DEFINE_string("from", None, "folder as Hugging Face lays it out, or FILE.gguf")
_TO = flags.DEFINE_string("to", None, "folder to write, which is not there yet")
_DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16", "float16"), "of all tensors (as they are; of GGUF float32)")


def main(argv: Sequence[str]) -> int:
  """Converts what the flags name."""

  def program() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; write --from=DIR --to=DIR")
    if not (_FROM.value and _TO.value):
      raise UserError("--from and --to are needed; for example --from=downloads/SmolLM2-135M-Instruct --to=models/smollm2")
    # Here, since --help should not wait for JAX.
    from gr2_jax.models.conversion import convert_model
    from gr2_jax.training.interrupts import StopSignal
    from gr2_jax.training.progress import Progress

    progress = Progress()
    with StopSignal() as stop:
      convert_model(_FROM.value, _TO.value, _DTYPE.value, progress, stop)
    progress.note(f"{_TO.value}: start from it with --config.model.init=hf:{_TO.value}")

  return exit_code_of(program, _TO.value)


if __name__ == "__main__":
  app.run(main)
