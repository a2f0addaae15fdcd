"""Peak memory of token losses at a real vocabulary: chunks of logits against one array of all of them, forward and backward.

Each variant runs in a process of its own, on the CPU, since a process's peak never falls. Peaks include what Python and the inputs
take (`before_gb`), so the ratio is what a user sees, not the best that can be said.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import peak_gb
from gr2_jax.objectives.token_loss import distillation_terms, token_log_probs

VOCABULARY, TOKENS, WIDTH = 152_960, 2_048, 128
CASES = ("log_prob", "reverse_kl")


def run() -> Iterator[dict[str, Any]]:
  """Yields a line for each case and variant (peaks in GB, CPU seconds), and one with the ratio of peaks; RuntimeError if results differ."""
  for case in CASES:
    lines = {variant: _measure_apart(case, variant) for variant in ("chunked", "full")}
    yield from lines.values()
    chunked, full = lines.values()
    for name in ("loss", "gradient_norm"):
      if not np.isclose(chunked[name], full[name], rtol=1e-4):
        raise RuntimeError(f"{case}: the {name} is {chunked[name]} in chunks and {full[name]} at once")
    yield {"case": case, "peak_ratio": round(chunked["peak_gb"] / full["peak_gb"], 3)}


def _measure_apart(case: str, variant: str) -> dict[str, Any]:
  command = [sys.executable, "-m", __spec__.name, case, variant]
  done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def _measure(case: str, variant: str) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), 3)
  targets = jax.random.randint(keys[0], (TOKENS,), 0, VOCABULARY)
  (hidden, table), teacher = (
    (jax.random.normal(key, (TOKENS, WIDTH)), 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (VOCABULARY, WIDTH))) for key in keys[1:]
  )
  step = jax.jit(jax.value_and_grad(_LOSSES[case, variant], argnums=(0, 1))).lower(hidden, table, targets, teacher).compile()
  before, began = peak_gb(), time.process_time()
  loss, gradients = jax.block_until_ready(step(hidden, table, targets, teacher))
  return {
    "case": case,
    "variant": variant,
    "peak_gb": round(peak_gb(), 3),
    "before_gb": round(before, 3),
    "cpu_s": round(time.process_time() - began, 2),
    "loss": float(loss),
    "gradient_norm": float(sum(jnp.sum(g**2) for g in gradients) ** 0.5),
  }


def _chunked_log_prob(hidden: jax.Array, table: jax.Array, targets: jax.Array, teacher: tuple[jax.Array, jax.Array]) -> jax.Array:
  return -token_log_probs(lambda h: h @ table.T, hidden, targets)[0].mean()


def _full_log_prob(hidden: jax.Array, table: jax.Array, targets: jax.Array, teacher: tuple[jax.Array, jax.Array]) -> jax.Array:
  log_p = jax.nn.log_softmax(hidden @ table.T)
  return -jnp.take_along_axis(log_p, targets[:, None], axis=-1).mean()


def _chunked_reverse_kl(hidden: jax.Array, table: jax.Array, targets: jax.Array, teacher: tuple[jax.Array, jax.Array]) -> jax.Array:
  student_fn, teacher_fn = (lambda h, w=w: h @ w.T for w in (table, teacher[1]))
  return distillation_terms(student_fn, teacher_fn, hidden, teacher[0], targets)[2].mean()


def _full_reverse_kl(hidden: jax.Array, table: jax.Array, targets: jax.Array, teacher: tuple[jax.Array, jax.Array]) -> jax.Array:
  log_p, log_q = jax.nn.log_softmax(hidden @ table.T), jax.nn.log_softmax(teacher[0] @ teacher[1].T)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()


_LOSSES = {
  ("log_prob", "chunked"): _chunked_log_prob,
  ("log_prob", "full"): _full_log_prob,
  ("reverse_kl", "chunked"): _chunked_reverse_kl,
  ("reverse_kl", "full"): _full_reverse_kl,
}


if __name__ == "__main__":
  print(json.dumps(_measure(*sys.argv[1:])))
