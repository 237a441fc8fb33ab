"""Exact ranks of every query's positive, beside the bare product and faiss's search.

    python -m evals.speed rank                                        # 2,048 x 16,384 x 2,048
    python -m evals.speed rank --queries 10000 --corpus 100000        # the size of the goal
    python -m evals.speed rank --cosines 0.3 0.6                      # positives that stand out

All three run in turns, so that what else the machine does falls on each; a way's time is the median
of its turns, and a ratio the median of the ratios within a turn. Ranks are compared with counts in
float64 first. Memory is that of processes of their own, at two sizes of the corpus.
faiss-cpu is a peer and no dependency: without it (or with --no-faiss) its column is left out.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from evals.speed.memory import growth
from evals.speed.result import write_result
from gve_jax.errors import Parser, UserError
from gve_jax.retrieval import rank_positives
from gve_jax.retrieval.tiles import CORPUS_TILE, QUERY_TILE
from gve_jax.storage.filesystem import local_path


def vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """Unit rows float32 [rows, width] of all directions, made in blocks."""
    rng, found = np.random.default_rng(seed), np.empty((rows, width), np.float32)
    for start in range(0, rows, 8192):
        block = rng.standard_normal((min(8192, rows - start), width), np.float32)
        found[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return found


def asked(
    corpus: np.ndarray, rows: int, seed: int = 1, cosines: tuple[float, float] = (0, 0.2)
) -> tuple[np.ndarray, np.ndarray]:
    """Queries [rows, D] at such cosines to a document each, and those documents.

    Of 2,048 dimensions, other documents are within 0.1: by default positives have all ranks.
    """
    rng = np.random.default_rng(seed)
    documents = rng.integers(0, len(corpus), rows)
    queries = vectors(rows, corpus.shape[1], seed)
    cosine = rng.uniform(*cosines, (rows, 1))
    queries += (cosine / np.sqrt(1 - cosine**2)).astype(np.float32) * corpus[documents]
    return queries / np.linalg.norm(queries, axis=1, keepdims=True), documents


def bare(queries: np.ndarray, corpus: np.ndarray) -> None:
    """All products, in the tiles that ranking uses, and nothing else."""
    multiply = jax.jit(
        lambda q, c: jnp.einsum("qd,cd->qc", q, c, precision=jax.lax.Precision.HIGHEST)
    )
    for start in range(0, len(queries), QUERY_TILE):
        rows = jax.device_put(queries[start : start + QUERY_TILE])
        for at in range(0, len(corpus), CORPUS_TILE):
            multiply(rows, jax.device_put(corpus[at : at + CORPUS_TILE])).block_until_ready()


def compare(queries, corpus, documents, ranks, count: int = 64) -> int:
    """Ranks by counting in float64 beside ours; how many differ, for scores too close for float32
    (each must then be off by no more than the documents within rounding)."""
    differ = 0
    for query in range(0, len(queries), max(1, len(queries) // count)):
        scores = corpus @ queries[query].astype(np.float64)
        own, near = scores[documents[query]], 1e-6
        least, most = (scores > own + near).sum() + 1, (scores > own - near).sum()
        if not least <= ranks[query] <= most:
            raise SystemExit(f"query {query}: rank {ranks[query]}, not in {least}..{most}")
        differ += ranks[query] != (scores > own).sum() + 1
    return differ


def main(argv=None) -> None:
    parser = Parser(
        prog="python -m evals.speed rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--corpus", type=int, default=16384)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument(
        "--cosines",
        type=float,
        nargs=2,
        default=(0, 0.2),
        metavar="COSINE",
        help="least and largest cosine of a query to its positive (0.3 0.6: as "
        "a trained model's; 0 0: chance)",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-faiss", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    if min(args.queries, args.corpus, args.width, args.repeats) < 1:
        raise UserError("--queries, --corpus, --width and --repeats must be at least 1")
    if not -1 < args.cosines[0] <= args.cosines[1] < 1:
        raise UserError("--cosines must be two numbers in order, between -1 and 1")
    corpus = vectors(args.corpus, args.width, 0)
    queries, documents = asked(corpus, args.queries, cosines=args.cosines)
    positives, ids = documents[:, None].tolist(), [str(i) for i in range(args.corpus)]

    def rank():
        return rank_positives(queries, corpus, positives, ids)

    ways = {"product": lambda: bare(queries, corpus), "ranks": rank}
    if not args.no_faiss:
        try:
            import faiss
        except ImportError:
            print("faiss is not installed (pip install faiss-cpu): its column is left out")
        else:
            index = faiss.IndexFlatIP(args.width)
            index.add(corpus)
            ways[f"faiss {faiss.__version__}, k=10"] = lambda: index.search(queries, 10)
    bare(queries[:QUERY_TILE], corpus[:CORPUS_TILE])  # compiles
    differ = compare(queries, corpus, documents, rank().rank)
    result = in_turns(ways, args.repeats, 2 * args.queries * args.corpus * args.width)
    result["ranks that float32 and float64 count differently, of 64"] = int(differ)
    if not args.no_memory:
        sizes = [args.corpus, 4 * args.corpus]
        result["memory, MiB"] = growth("evals.speed.rank", args.queries, sizes, args.width)
    write_result("rank", vars(args), result, args.output)


def in_turns(ways: dict, repeats: int, operations: int) -> dict:
    """Times of each way, one after the other; rates, and their ratios to the first way's.

    Processor seconds are of all threads: they hardly feel the neighbours of a shared machine, but
    do not see a thread that waits for another, which wall seconds do.
    """
    taken = {name: [] for name in ways}
    load = os.getloadavg()[0]
    for _ in range(repeats):
        for name, run in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    base = np.array(next(iter(taken.values())))
    result = {"load before, after": [round(load, 1), round(os.getloadavg()[0], 1)]}
    for name, seconds in taken.items():
        wall, processor = np.median(seconds, axis=0)
        result[name] = {
            "wall s": round(wall, 2),
            "processor s": round(processor, 2),
            "GFLOP/s": round(operations / wall / 1e9, 1),
        }
        ratios = base / np.array(seconds)
        for clock, column in zip(("wall", "processor"), ratios.T, strict=True):
            spread = f"({column.min():.3f} to {column.max():.3f})" if repeats > 1 else ""
            result[name][f"rate by {clock} s, product = 1"] = f"{np.median(column):.3f} {spread}"
    return result


def work(queries: int, corpus: np.ndarray) -> None:
    """What is measured in a process of its own."""
    rows, documents = asked(corpus, queries)
    rank_positives(rows, corpus, documents[:, None].tolist(), [str(i) for i in range(len(corpus))])
