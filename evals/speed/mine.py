"""The K best documents of every query that are not its positive, beside the bare product.

    python -m evals.speed mine                                        # 4,096 x 32,768 x 1,024
    python -m evals.speed mine --queries 100000 --corpus 100000       # the size of the goal

Both run in turns, as in `rank`; the places found are compared with numpy's for some queries.
Memory is that of processes of their own, at two sizes of the corpus.
"""

import argparse
from collections import deque

import numpy as np

from evals.speed.memory import growth
from evals.speed.rank import asked, bare, in_turns, vectors
from evals.speed.result import write_result
from gve_jax.errors import Parser, UserError
from gve_jax.retrieval import stream_top_k
from gve_jax.retrieval.negatives import stream_neighbours
from gve_jax.retrieval.tiles import CORPUS_TILE, QUERY_TILE
from gve_jax.storage.filesystem import local_path


def search(queries: np.ndarray, corpus: np.ndarray, k: int, positives=None) -> tuple:
    """The last tile's answer: the others would be on disk by now.

    Without `positives`, one document of each query, nothing is excluded.
    """
    ids = [str(i) for i in range(len(corpus))]
    if positives is None:
        found = stream_top_k(queries, corpus, ids, k)
    else:
        found = stream_neighbours(
            queries,
            corpus,
            ids,
            k,
            lambda asked: (np.arange(len(asked)), positives[asked]),
            lambda asked: (np.arange(len(asked)), corpus[positives[asked]]),
            1e-5,
            rows=[slice(0, len(queries))],
        )
    (last,) = deque(found, maxlen=1)
    return last


def compare(queries: np.ndarray, corpus: np.ndarray, found: tuple, count: int = 16) -> None:
    rows, places, scores = found
    step = max(1, len(places) // count)
    for query, its, own in zip(
        range(rows.start, rows.stop, step), places[::step], scores[::step], strict=True
    ):
        exact = corpus @ queries[query].astype(np.float64)
        best = np.sort(exact)[::-1][: len(its)]
        if len(set(its)) < len(its) or np.abs(exact[its] - best).max() > 1e-6:
            raise SystemExit(f"query {query}: not the best documents")
        if np.abs(own - best).max() > 1e-6:
            raise SystemExit(f"query {query}: other scores")


def main(argv=None) -> None:
    parser = Parser(
        prog="python -m evals.speed mine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--corpus", type=int, default=32768)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    if min(args.queries, args.corpus, args.width, args.repeats, args.k) < 1:
        raise UserError("--queries, --corpus, --width, --k and --repeats must be at least 1")
    corpus = vectors(args.corpus, args.width, 0)
    queries, positives = asked(corpus, args.queries)
    bare(queries[:QUERY_TILE], corpus[:CORPUS_TILE])  # compiles
    compare(queries, corpus, search(queries[:QUERY_TILE], corpus, args.k))
    ways = {
        "product": lambda: bare(queries, corpus),
        "mining": lambda: search(queries, corpus, args.k, positives),
    }
    result = in_turns(ways, args.repeats, 2 * args.queries * args.corpus * args.width)
    if not args.no_memory:
        sizes = [args.corpus, 4 * args.corpus]
        result["memory, MiB"] = growth("evals.speed.mine", args.queries, sizes, args.width)
    write_result("mine", vars(args), result, args.output)


def work(queries: int, corpus: np.ndarray) -> None:
    """What is measured in a process of its own."""
    rows, positives = asked(corpus, queries)
    search(rows, corpus, 100, positives)
