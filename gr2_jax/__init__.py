"""GR2, the Generative Reasoning Re-Ranker, in JAX: a language model that orders a recommender's last, short slate.

The packages `data`, `language`, `models`, `rollout`, `rewards`, `objectives`, `rl`, `evaluation` and `serving` each export a few names;
what they do not export has no promise. Importing `gr2_jax` alone starts no backend:

>>> import gr2_jax
>>> gr2_jax.__version__.count(".")
2

`gr2_jax.Reranker` is the re-ranker of a trained run: `Reranker.load("runs/quickstart").rank(history=[...], candidates=[...])`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from gr2_jax.serving import Reranker as Reranker

__version__ = "0.1.0"
__all__ = ["Reranker", "__version__"]


def __getattr__(name: str) -> Any:
  if name == "Reranker":
    from gr2_jax.serving import Reranker

    return Reranker
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
