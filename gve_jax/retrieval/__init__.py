"""Exact retrieval: ranks by counting, streaming top-k, and the metrics computed from ranks."""

from gve_jax.retrieval.metrics import chance, evaluate
from gve_jax.retrieval.ranks import Ranks, check_unit_vectors, rank_positives, top_k

__all__ = ["Ranks", "chance", "check_unit_vectors", "evaluate", "rank_positives", "top_k"]
