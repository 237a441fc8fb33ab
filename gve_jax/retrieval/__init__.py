"""Exact retrieval: ranks by counting, streaming top-k, and the metrics computed from ranks."""

from gve_jax.retrieval.metrics import chance, evaluate
from gve_jax.retrieval.ranked_lists import ranked_lists, spare_documents
from gve_jax.retrieval.ranks import Ranks, rank_candidates, rank_positives
from gve_jax.retrieval.tiles import check_unit_vectors
from gve_jax.retrieval.topk import stream_top_k, top_k
from gve_jax.retrieval.unit import row_lengths, unit_rows

__all__ = [
    "Ranks",
    "chance",
    "check_unit_vectors",
    "evaluate",
    "rank_candidates",
    "rank_positives",
    "ranked_lists",
    "spare_documents",
    "row_lengths",
    "stream_top_k",
    "top_k",
    "unit_rows",
]
