"""Times of an index in a vector database, beside those of the index: random vectors, files of 100
moments."""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.index.databases import Database, open_database
from gve_jax.index.store import SETTINGS, Store, create_store
from gve_jax.index.windows import Windows

PER_FILE = 100  # moments
QUERIES = 8


def time_store(folder: Path, moments: int, dim: int, given: str) -> dict:
    """Writes an index to a database and asks both.

    Args:
      folder: of the index; made, or as an earlier call with the same numbers has left it.
      given: the database, as `open_database` takes it; its table should be empty.

    Returns:
      Seconds of each operation; and `same`, how many of QUERIES answers are those of the index.

    Raises:
      UserError: another index is in the folder.
    """
    rng = np.random.default_rng(0)
    if not (folder / SETTINGS).exists():
        _fill(folder, [f"{number:06}.mp4" for number in range(moments // PER_FILE)], dim, rng)
    index = Index.open(folder)
    if (len(index), index.settings["dim"]) != (moments // PER_FILE * PER_FILE, dim):
        raise UserError(f"{folder}: has {len(index):,} moments; choose another --output")
    row: dict = {"store": given, "moments": len(index), "dim": dim}
    with open_database(given) as database:
        row["write_all"], changes = _timed(index.write_to, database)
        row["moments_written"] = changes[0]
        row["nothing_new"], _ = _timed(index.write_to, database)
        with contextlib.closing(Store(folder, write=True)) as store:
            _add(store, "new.mp4", dim, rng)
        row["new_file"], _ = _timed(index.write_to, database)
        row |= _ask(index, database, _unit_rows(rng, QUERIES, dim))
        index.remove("new.mp4")  # so that the folder can be used again
        row["removed_file"], _ = _timed(index.write_to, database)
    return row


def _ask(index: Index, database: Database, queries: np.ndarray) -> dict:
    own, theirs, same, worst = [], [], 0, 0.0
    for vector in queries:
        seconds, hits = _timed(index.search, vector=vector)
        own.append(seconds)
        seconds, found = _timed(index.search, vector=vector, store=database)
        theirs.append(seconds)
        spans = [[(hit.path, hit.start_sec, hit.end_sec) for hit in each] for each in (hits, found)]
        same += spans[0] == spans[1]
        worst = max([worst, *(abs(a.score - b.score) for a, b in zip(hits, found, strict=True))])
    return {
        "query_index": statistics.median(own),
        "query_store": statistics.median(theirs),
        "query_store_range": [min(theirs), max(theirs)],
        "same": same,
        "score_difference": worst,
    }


def _fill(folder: Path, paths: list[str], dim: int, rng: np.random.Generator) -> None:
    settings = {"media": "/", "model": None, "fingerprint": {"weights": "random"}, "prompt": None}
    settings |= {"windows": vars(Windows()), "dim": dim, "dtype": "float32"}
    with contextlib.closing(create_store(folder, settings)) as store:
        for path in paths:
            _add(store, path, dim, rng)


def _add(store: Store, path: str, dim: int, rng: np.random.Generator) -> None:
    fields = {"path": path, "kind": "video", "sha256": path, "size": 1, "mtime_ns": 1}
    begins = np.arange(float(PER_FILE))
    moments = np.stack([begins, begins + 1], 1)
    store.add(fields | {"duration": PER_FILE + 1.0}, _unit_rows(rng, PER_FILE, dim), moments)


def _unit_rows(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((count, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _timed(call: Callable, *args, **options):
    begin = time.perf_counter()
    result = call(*args, **options)
    return time.perf_counter() - begin, result
