"""Low-rank adapters of a decoder as leaves beside its kernels (LoRA, arXiv 2106.09685): made, joined to their base, merged into it.

A kernel `[L, *inputs, *outputs]` gets `lora_a [L, *inputs, r]` and `lora_b [L, r, *outputs]`, and computes x W + (x A) B alpha / r; rows at
the end of the token tables may be trained whole, as `embedding_rows [n, D]` and where the output is untied `output_rows [n, D]`, which take
the place of the table's own. Of a model that has a decoder and more, such as a scorer, all that is no decoder is trained whole.

What is trained is a pytree of its own, so that optimizer and checkpoints hold nothing else; `join` puts it beside the base's parameters,
for every caller that applies the model, without a copy of the base.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.transformer import Model, abstract_boxed
from gr2_jax.settings import check_settings, setting

TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
_TABLES = {"embedding": "embedding_rows", "output": "output_rows"}
ROWS = tuple(_TABLES.values())  # what is trained of the token tables
# join(base, adapters) -> parameters
Join = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class LoraOptions:
  """Low-rank adapters in place of all parameters. Raises ValueError."""

  rank: int = setting(
    0,
    "rank of low-rank adapters: a training that starts from other parameters than random ones trains them alone, and the stages after it "
    "start from their sum; 0: none, all parameters are trained",
    low=0,
  )
  alpha: float = setting(16.0, "what adapters add is multiplied by alpha / rank", above=0)
  targets: tuple[str, ...] = setting(
    TARGETS,
    "matrices of a layer that have adapters: of attention q, k, v and out, of the feed-forward part gate, up and down",
    choices=TARGETS,
  )
  train_embeddings: bool = setting(
    True, "whether the rows of tokens that are no text (codes, slots, marks) are trained besides, in the input and output tables"
  )

  def __post_init__(self) -> None:
    check_settings(self)
    if not self.targets or len({*self.targets}) < len(self.targets):
      raise ValueError(f"targets: {', '.join(self.targets) or 'none'}; name each matrix once, and at least one")


@dataclasses.dataclass(frozen=True)
class Lora:
  """The shape of adapters: of matrices `targets`, and of the last `rows` of the token tables, which are trained whole."""

  rank: int
  alpha: float
  targets: tuple[str, ...]
  rows: int = 0

  @property
  def scale(self) -> float:
    """What the product of the two factors is multiplied by."""
    return self.alpha / self.rank

  def join(self, base: Any, adapters: Any) -> Any:
    """The parameters of base and adapters side by side, no array of the base copied; the scale is in `lora_b`."""
    scaled = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * self.scale if path[-1].key == "lora_b" else leaf, adapters)
    return _beside(base, scaled)


def inputs_of(target: str) -> int:
  """How many axes of a target's kernel, behind that of the layers, are inputs: attention's output reads heads and head_dim."""
  return 2 if target == "out" else 1


def abstract_adapters(model: Model, lora: Lora) -> Any:
  """Shapes of what is trained, with their logical axes: those of the kernels for inputs and outputs, none for the rank."""

  def box(leaf: Any, shape: tuple[int, ...], names: tuple[str | None, ...]) -> Any:
    return leaf.replace(value=jax.ShapeDtypeStruct(shape, jnp.float32), names=names)

  def of_decoder(boxed: Any) -> Any:
    layers = {}
    for target in lora.targets:
      kernel, cut = boxed["layers"][target]["kernel"], 1 + inputs_of(target)
      shape, names = kernel.value.shape, kernel.names
      layers[target] = {
        "lora_a": box(kernel, (*shape[:cut], lora.rank), (*names[:cut], None)),
        "lora_b": box(kernel, (shape[0], lora.rank, *shape[cut:]), (names[0], None, *names[cut:])),
      }
    rows = {
      name: box(boxed[table], (lora.rows, boxed[table].value.shape[1]), (None, boxed[table].names[1]))
      for table, name in _TABLES.items()
      if lora.rows and table in boxed
    }
    return {"layers": layers, **rows}

  return _in_decoder(of_decoder, abstract_boxed(model))


def init_adapters(model: Model, lora: Lora, params: Any, key: jax.Array) -> Any:
  """What is trained before the first step, still with its logical axes: with it the model does exactly what it does with `params`.

  A is normal with a standard deviation of inputs^-1/2, B is 0; rows, and what is no decoder, are those of `params`.
  """
  decoder, abstract = params.get("decoder", params), abstract_adapters(model, lora)
  keys = iter(jax.random.split(key, len(lora.targets)))

  def draw(path: Any, leaf: Any) -> Any:
    names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
    shape = leaf.value.shape if isinstance(leaf, nn.Partitioned) else leaf.shape
    if names[-1] == "lora_a":
      value = jax.random.normal(next(keys), shape) * math.prod(shape[1:-1]) ** -0.5
    elif names[-1] == "lora_b":
      value = jnp.zeros(shape)
    elif names[-1] in ROWS:
      value = decoder[names[-1].removesuffix("_rows")][-lora.rows :].astype(jnp.float32)
    else:
      value = functools.reduce(operator.getitem, names, params)
    return leaf.replace(value=value) if isinstance(leaf, nn.Partitioned) else value

  return jax.tree_util.tree_map_with_path(draw, abstract, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def frozen_part(params: Any) -> Any:
  """Of a model's parameters those that stay while adapters are trained: the decoder's."""
  return {"decoder": params["decoder"]} if "decoder" in params else params


def merge(lora: Lora, base: Any, adapters: Any) -> Any:
  """The parameters that do what base and adapters do together, in the base's shapes and types: W + A B alpha / r, and the trained rows.

  Products are summed in float32. Of parameters of a published model what is exported, pruned, and where the next stage starts.
  """

  def of_kernel(kernel: jax.Array, factors: Mapping[str, jax.Array]) -> jax.Array:
    a, b = factors["lora_a"], factors["lora_b"]
    product = jnp.einsum("lir,lro->lio", a.reshape(len(a), -1, lora.rank), b.reshape(len(b), lora.rank, -1))
    return (kernel.astype(jnp.float32) + lora.scale * product.reshape(kernel.shape)).astype(kernel.dtype)

  def of_decoder(decoder: Any, trained: Any) -> Any:
    changed = {
      name: {**decoder["layers"][name], "kernel": of_kernel(decoder["layers"][name]["kernel"], of)}
      for name, of in trained["layers"].items()
    }
    tables = {
      table: decoder[table].at[-lora.rows :].set(trained[rows].astype(decoder[table].dtype))
      for table, rows in _TABLES.items()
      if rows in trained
    }
    return {**decoder, **tables, "layers": {**decoder["layers"], **changed}}

  if "decoder" not in adapters:
    return of_decoder(base, adapters)
  return {**base, **adapters, "decoder": of_decoder(base["decoder"], adapters["decoder"])}


def _in_decoder(change: Callable[[Any], Any], boxed: Any) -> Any:
  return {**boxed, "decoder": change(boxed["decoder"])} if "decoder" in boxed else change(boxed)


def _beside(base: Any, adapters: Any) -> Any:
  """Nested dicts as one; where both have a leaf it is the adapters'."""
  if not (isinstance(base, Mapping) and isinstance(adapters, Mapping)):
    return adapters
  return {**base, **{name: _beside(base[name], of) if name in base else of for name, of in adapters.items()}}
