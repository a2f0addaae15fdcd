"""Semantic IDs: item vectors, the RQ-VAE that turns them into codes, their table and its trie."""

from gr2_jax.semantic_ids.embed import tfidf_svd, vectors_from_npy
from gr2_jax.semantic_ids.export import export_table
from gr2_jax.semantic_ids.rqvae import RqVaeConfig
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.semantic_ids.trie import SidTrie

__all__ = ["RqVaeConfig", "SemanticIDTable", "SidTrie", "export_table", "tfidf_svd", "vectors_from_npy"]
