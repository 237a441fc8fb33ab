"""Exact ranks of every query's positive, compared with the bare product and faiss's search.

    python -m evals.speed rank                                        # 2,048 x 16,384 x 2,048
    python -m evals.speed rank --queries 10000 --corpus 100000        # the size of the goal
    python -m evals.speed rank --cosines 0.3 0.6                      # positives that stand out

All three run in turns, so that other load on the machine falls on each. A variant's time is the
median of its turns, and a ratio the median of the ratios within a turn. Ranks are first compared
with counts in float64. Memory is that of a separate process, for two sizes of the corpus.
faiss-cpu is not a dependency: without it (or with --no-faiss) its column is left out.
"""

import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from evals.speed import harness
from gve_jax.errors import UserError
from gve_jax.retrieval import rank_positives
from gve_jax.retrieval.tiles import CORPUS_TILE, QUERY_TILE

BLOCK = 8192  # vectors drawn at a time


def draw_vectors(rows: int, width: int, seed: int, out: np.ndarray | None = None) -> np.ndarray:
    """Uniformly distributed unit vectors, float32 [rows, width], in `out` if that is an array."""
    rng = np.random.default_rng(seed)
    out = np.empty((rows, width), np.float32) if out is None else out
    for start in range(0, rows, BLOCK):
        block = rng.standard_normal((min(BLOCK, rows - start), width), np.float32)
        out[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out


def draw_queries(
    corpus: np.ndarray, rows: int, seed: int = 1, cosines: tuple[float, float] = (0, 0.2)
) -> tuple[np.ndarray, np.ndarray]:
    """Queries [rows, D] within a range of cosines to one document each, and those documents.

    In 2,048 dimensions other documents are within 0.1: by default positives have all ranks.
    """
    rng = np.random.default_rng(seed)
    documents = rng.integers(0, len(corpus), rows)
    queries = draw_vectors(rows, corpus.shape[1], seed)
    cosine = rng.uniform(*cosines, (rows, 1))
    queries += (cosine / np.sqrt(1 - cosine**2)).astype(np.float32) * corpus[documents]
    return queries / np.linalg.norm(queries, axis=1, keepdims=True), documents


def multiply(queries: np.ndarray, corpus: np.ndarray) -> None:
    """All products, in the tiles that ranking uses, and nothing else."""
    product = jax.jit(
        lambda q, c: jnp.einsum("qd,cd->qc", q, c, precision=jax.lax.Precision.HIGHEST)
    )
    for start in range(0, len(queries), QUERY_TILE):
        rows = jax.device_put(queries[start : start + QUERY_TILE])
        for first in range(0, len(corpus), CORPUS_TILE):
            tile = jax.device_put(corpus[first : first + CORPUS_TILE])
            product(rows, tile).block_until_ready()


def rank(queries: np.ndarray, corpus: np.ndarray, documents: np.ndarray) -> np.ndarray:
    ids = [str(i) for i in range(len(corpus))]
    return rank_positives(queries, corpus, documents[:, None].tolist(), ids).rank


def compare(queries, corpus, documents, ranks, count: int = 64) -> int:
    """Compares `count` ranks with counts in float64.

    Returns:
      How many differ because scores are too close for float32.

    Raises:
      SystemExit: a rank that rounding does not explain.
    """
    differ = 0
    for query in range(0, len(queries), max(1, len(queries) // count)):
        scores = corpus @ queries[query].astype(np.float64)
        positive, near = scores[documents[query]], 1e-6
        least, most = (scores > positive + near).sum() + 1, (scores > positive - near).sum()
        if not least <= ranks[query] <= most:
            raise SystemExit(f"query {query}: rank {ranks[query]}, not in {least}..{most}")
        differ += ranks[query] != (scores > positive).sum() + 1
    return int(differ)


def check_sizes(args, *names: str) -> None:
    for name in ("queries", "corpus", "width", "repeats", *names):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")


OPTIONS = dict(
    queries=(2048, "queries"),
    corpus=(16384, "documents"),
    width=(2048, "dimensions"),
    cosines=((0.0, 0.2), "least and largest cosine of a query to its positive; 0 0 is chance"),
    repeats=(3, "runs of each variant"),
    no_faiss=(False, "leave faiss out"),
    no_memory=(False, "do not measure peak memory"),
)


def measure(_folder, args) -> dict:
    check_sizes(args)
    if not -1 < args.cosines[0] <= args.cosines[1] < 1:
        raise UserError("--cosines must be two numbers in order, between -1 and 1")
    corpus = draw_vectors(args.corpus, args.width, 0)
    queries, documents = draw_queries(corpus, args.queries, cosines=args.cosines)
    variants = {
        "product": lambda: multiply(queries, corpus),
        "ranks": lambda: rank(queries, corpus, documents),
    }
    if not args.no_faiss:
        try:
            import faiss
        except ImportError:
            print("faiss is not installed (pip install faiss-cpu): its column is left out")
        else:
            index = faiss.IndexFlatIP(args.width)
            index.add(corpus)
            variants[f"faiss {faiss.__version__}, k=10"] = lambda: index.search(queries, 10)
    multiply(queries[:QUERY_TILE], corpus[:CORPUS_TILE])  # compiles
    differ = compare(queries, corpus, documents, variants["ranks"]())
    result = measure_rates(variants, args)
    result["ranks that float32 and float64 count differently, of 64"] = differ
    if not args.no_memory:
        result["memory, MiB"] = measure_memory(f"{__name__}:measure_peak", args)
    return result


def measure_rates(variants: dict, args) -> dict:
    """Times of each variant, in turns; rates, and their ratios to the first variant's.

    Processor seconds are those of all threads. They hardly depend on other load of a shared
    machine, but do not include a thread's waiting for another, which wall seconds do.
    """
    operations = 2 * args.queries * args.corpus * args.width
    load = os.getloadavg()[0]
    taken = harness.take_turns(variants, args.repeats, harness.WALL_AND_PROCESSOR)
    base = next(iter(taken.values()))
    result = {"load before, after": [round(load, 1), round(os.getloadavg()[0], 1)]}
    for name, seconds in taken.items():
        wall, processor = np.median(seconds, axis=0)
        result[name] = {
            "wall s": round(wall, 2),
            "processor s": round(processor, 2),
            "GFLOP/s": round(operations / wall / 1e9, 1),
        }
        for clock, ratios in zip(("wall", "processor"), (base / seconds).T, strict=True):
            spread = f"({ratios.min():.3f} to {ratios.max():.3f})" if args.repeats > 1 else ""
            result[name][f"rate by {clock} s, product = 1"] = f"{np.median(ratios):.3f} {spread}"
    return result


def measure_memory(function: str, args) -> dict[str, int]:
    """Peak anonymous MiB of child processes that search a memory-mapped corpus of two sizes."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.npy"
        for size in (args.corpus, 4 * args.corpus):
            shape = (size, args.width)
            array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            draw_vectors(*shape, 0, out=array)
            array.flush()
            peak = harness.run_in_child(function, min(args.queries, 2048), str(path))
            result[f"{size} documents"] = round(peak / 2**20)
    return result


def measure_peak(count: int, path: str) -> int:
    """Peak memory of this process; runs in a child process."""

    def run():
        corpus = np.load(path, mmap_mode="r")
        queries, documents = draw_queries(corpus, count)
        rank(queries, corpus, documents)

    return harness.peak_anonymous_bytes(run)
