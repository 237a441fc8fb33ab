"""The K best documents of every query except its positive, compared with the bare product.

    python -m evals.speed mine                                        # 4,096 x 32,768 x 1,024
    python -m evals.speed mine --queries 100000 --corpus 100000       # the size of the goal

Both run in turns, as in `rank`; the documents of some queries are compared with numpy's. Memory is
that of a separate process, for two sizes of the corpus.
"""

from collections import deque

import numpy as np

from evals.speed import harness
from evals.speed.rank import (
    check_sizes,
    draw_queries,
    draw_vectors,
    measure_memory,
    measure_rates,
    multiply,
)
from gve_jax.retrieval import stream_top_k
from gve_jax.retrieval.negatives import stream_neighbours
from gve_jax.retrieval.tiles import CORPUS_TILE, QUERY_TILE


def search(queries: np.ndarray, corpus: np.ndarray, k: int, positives=None) -> tuple:
    """The last tile's (rows, documents, scores): mining has written the others to disk by then.

    Without `positives`, one document of each query, nothing is excluded.
    """
    ids = [str(i) for i in range(len(corpus))]
    if positives is None:
        tiles = stream_top_k(queries, corpus, ids, k)
    else:
        tiles = stream_neighbours(
            queries,
            corpus,
            ids,
            k,
            lambda rows: (np.arange(len(rows)), positives[rows]),
            lambda rows: (np.arange(len(rows)), corpus[positives[rows]]),
            1e-5,
            rows=[slice(0, len(queries))],
        )
    (last,) = deque(tiles, maxlen=1)
    return last


def compare(queries: np.ndarray, corpus: np.ndarray, last: tuple, count: int = 16) -> None:
    """Raises SystemExit where a tile's documents or scores differ from those of float64."""
    rows, documents, scores = last
    step = max(1, len(documents) // count)
    for at in range(0, len(documents), step):
        query, best = rows.start + at, documents[at]
        exact = corpus @ queries[query].astype(np.float64)
        expected = np.sort(exact)[::-1][: len(best)]
        if len(set(best)) < len(best) or np.abs(exact[best] - expected).max() > 1e-6:
            raise SystemExit(f"query {query}: not the best documents")
        if np.abs(scores[at] - expected).max() > 1e-6:
            raise SystemExit(f"query {query}: scores differ")


OPTIONS = dict(
    queries=(4096, "queries"),
    corpus=(32768, "documents"),
    width=(1024, "dimensions"),
    k=(100, "documents of a query"),
    repeats=(3, "runs of each variant"),
    no_memory=(False, "do not measure peak memory"),
)


def measure(_folder, args) -> dict:
    check_sizes(args, "k")
    corpus = draw_vectors(args.corpus, args.width, 0)
    queries, positives = draw_queries(corpus, args.queries)
    multiply(queries[:QUERY_TILE], corpus[:CORPUS_TILE])  # compiles
    compare(queries, corpus, search(queries[:QUERY_TILE], corpus, args.k))
    variants = {
        "product": lambda: multiply(queries, corpus),
        "mining": lambda: search(queries, corpus, args.k, positives),
    }
    result = measure_rates(variants, args)
    if not args.no_memory:
        result["memory, MiB"] = measure_memory(f"{__name__}:measure_peak", args)
    return result


def measure_peak(count: int, path: str) -> int:
    """Peak memory of this process; runs in a child process."""

    def run():
        corpus = np.load(path, mmap_mode="r")
        queries, positives = draw_queries(corpus, count)
        search(queries, corpus, 100, positives)

    return harness.peak_anonymous_bytes(run)
