"""The exact k best documents of every query, over tiles, in memory independent of the corpus.

Sorting every tile would cost more than its product. On a CPU, a document is considered only if its
score reaches the k-th best so far. After the first tile few do; within it, the maxima of blocks
give a lower bound of the k-th best. A candidate is stored as one integer, score above id, so that
integers are ordered as by trec_eval. On other devices `lax.top_k` gets the k blocks of the tile
with the largest maxima, which contain the k best documents.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gve_jax.errors import UserError
from gve_jax.retrieval import tiles
from gve_jax.retrieval.tiles import CORPUS_TILE, QUERY_TILE

BLOCK = 128  # documents in a block, for `lax.top_k`


def top_k(
    queries: np.ndarray,
    corpus: np.ndarray,
    ids: Sequence[str],
    k: int,
    *,
    mesh: Mesh | None = None,
    query_tile: int = QUERY_TILE,
    corpus_tile: int = CORPUS_TILE,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best documents of each query, exactly.

    Arguments, hosts, tie order and errors as in `rank_positives`; k above C gives all C.

    Returns:
      Corpus indices int64 [Q, k] and cosines float32 [Q, k], best first.
    """
    width = min(k, len(corpus)) if k > 0 else 0
    documents = np.zeros((len(queries), width), np.int32)
    scores = np.zeros((len(queries), width), np.float32)
    stream = stream_top_k(
        queries,
        corpus,
        ids,
        k,
        mesh=mesh,
        query_tile=query_tile,
        corpus_tile=corpus_tile,
        rows=[tiles.host_rows(len(queries))],
    )
    for rows, tile_documents, tile_scores in stream:
        documents[rows], scores[rows] = tile_documents, tile_scores
    return (
        tiles.allgather_rows(documents, len(queries)).astype(np.int64),
        tiles.allgather_rows(scores, len(queries)),
    )


def stream_top_k(
    queries: np.ndarray,
    corpus: np.ndarray,
    ids: Sequence[str],
    k: int,
    *,
    mesh: Mesh | None = None,
    query_tile: int = QUERY_TILE,
    corpus_tile: int = CORPUS_TILE,
    rows: Sequence[slice] = (slice(None),),
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """`top_k` by tiles of queries, in memory independent of Q.

    Args:
      rows: slices of the queries to answer (default: all). Each host passes its own.
      advance: called after each product with its number of scores.

    Yields:
      The queries' slice, corpus indices int64 [n, k], cosines float32 [n, k].
    """
    tiles.check(queries, corpus, ids)
    if k < 1:
        raise UserError(f"top_k: k must be at least 1, not {k}")
    k = min(k, len(corpus))
    mesh = tiles.choose_mesh(mesh)
    q_tile = tiles.tile_size(len(queries), query_tile, mesh.size)  # independent of `rows`
    c_tile = tiles.tile_size(len(corpus), corpus_tile)
    by_order = np.argsort(tiles.id_order(ids))
    make = _on_host if mesh.devices.flat[0].platform == "cpu" else _on_devices
    answer = make(mesh, corpus, by_order, k, c_tile, advance or (lambda count: None))
    for piece in rows:
        first, stop, _ = piece.indices(len(queries))
        for start in range(first, stop, q_tile):
            chosen = slice(start, min(start + q_tile, stop))
            vectors = np.asarray(queries[chosen], np.float32)
            rows_on_mesh = tiles.shard_rows(mesh, tiles.padded(vectors, q_tile, 0))
            yield chosen, *answer(rows_on_mesh, len(vectors))


# ---- on a CPU: documents that reach the k-th best score ----------------------------------------


def _on_host(mesh, corpus, by_order, k, c_tile, advance) -> Callable:
    order = np.empty(len(by_order), np.uint64)
    order[by_order] = np.arange(len(by_order), dtype=np.uint64)
    fetch, product = tiles.fetcher(mesh, corpus, c_tile), tiles.product(mesh)
    starts = range(0, len(corpus), c_tile)

    def answer(queries: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
        best = _Best(count, k)
        next_scores = product(queries, fetch(0))
        for tile, start in enumerate(starts):
            scores = next_scores
            if start + c_tile < len(corpus):  # computed while the host scans this tile
                next_scores = product(queries, fetch(tile + 1))
            tile_order = order[start : start + c_tile]
            best.add(np.asarray(scores)[:count, : len(tile_order)], tile_order)
            advance(count * len(tile_order))
        keys = best.sorted()
        return by_order[(keys & 0xFFFFFFFF).astype(np.int64)], _score(keys)

    return answer


class _Best:
    """The k best keys of each of Q queries, and candidates that are not merged yet.

    A key is uint64: the upper half is the score, as an integer of the same order, the lower half
    the rank of the id. Larger is better; zero means no document.
    """

    def __init__(self, queries: int, k: int):
        self.k = k
        self.keys = np.zeros((queries, k), np.uint64)
        self.candidates: list[np.ndarray] = []
        self._reach = np.empty((0, 0), bool)
        self.least = np.zeros(queries, np.uint64)  # a smaller key is not among the best
        self.floor = np.full((queries, 1), -np.inf, np.float32)  # its score

    def add(self, scores: np.ndarray, order: np.ndarray) -> None:
        """Adds documents with scores [Q, C] and ranks of their ids, uint64 [C]."""
        if not self.least.any():
            self._start(scores)
        # Allocating it for every tile would cost as much as the comparison.
        if self._reach.shape != scores.shape:
            self._reach = np.empty(scores.shape, bool)
        index = np.flatnonzero(np.greater_equal(scores, self.floor, out=self._reach))
        row, column = np.divmod(index, scores.shape[1])
        reached = scores.ravel()[index] if scores.flags.c_contiguous else scores[row, column]
        keys = _key(reached, order[column])
        reach = keys > self.least[row]
        row, keys = row[reach], keys[reach]
        counts = np.bincount(row, minlength=len(self.keys))
        width = counts.max(initial=0)
        if not width:
            return
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        block = np.zeros((len(self.keys), width), np.uint64)
        block[row, slot] = keys
        self.candidates.append(block)
        if sum(b.shape[1] for b in self.candidates) >= self.k // 2:
            self._merge()

    def _start(self, scores: np.ndarray) -> None:
        """Sets the floor to a score that at least k documents of the first tile reach."""
        blocks = 4 * self.k
        depth = scores.shape[1] // blocks
        if depth < 2:
            return
        maxima = scores[:, : depth * blocks].reshape(len(scores), depth, blocks).max(axis=1)
        self.floor = np.partition(maxima, blocks - self.k, axis=1)[:, blocks - self.k, None]

    def _merge(self) -> None:
        keys = np.concatenate([self.keys, *self.candidates], axis=1)
        self.candidates = []
        self.keys = np.partition(keys, keys.shape[1] - self.k, axis=1)[:, -self.k :]
        least = self.keys.min(axis=1)
        full = least > 0
        self.least = np.where(full, least, self.least)
        self.floor = np.where(full[:, None], _score(least)[:, None], self.floor)

    def sorted(self) -> np.ndarray:
        """uint64 [Q, k], best first."""
        self._merge()
        return np.sort(self.keys, axis=1)[:, ::-1]


def _key(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    bits = (scores + np.float32(0)).view(np.uint32)  # no -0.0, which would not tie with 0.0
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return bits.astype(np.uint64) << np.uint64(32) | order


def _score(keys: np.ndarray) -> np.ndarray:
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    return np.where(bits >> 31, bits ^ np.uint32(1 << 31), ~bits).view(np.float32)


# ---- on other devices: the blocks with the largest maxima -------------------------------------


def _on_devices(mesh, corpus, by_order, k, c_tile, advance) -> Callable:
    # `lax.top_k` takes the earlier of equal scores: with descending ids that is trec_eval's rule.
    best_first = by_order[::-1]
    fetch, step = tiles.fetcher(mesh, corpus, c_tile, best_first), _merge_step(mesh)

    def answer(queries: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(queries), k)
        state = (
            tiles.shard_rows(mesh, np.full(shape, -np.inf, np.float32)),
            tiles.shard_rows(mesh, np.full(shape, -1, np.int32)),
        )
        for tile in range(-(-len(corpus) // c_tile)):
            offset, size = np.int32(tile * c_tile), np.int32(len(corpus))
            last, state = state, step(state, queries, fetch(tile), offset, size)
            jax.block_until_ready(last)  # else every tile of the corpus is queued on the device
            advance(count * min(c_tile, len(corpus) - tile * c_tile))
        scores, positions = (np.asarray(part)[:count] for part in state)
        return best_first[positions], scores

    return answer


@functools.lru_cache(maxsize=8)
def _merge_step(mesh: Mesh) -> Callable:
    """Merges one corpus tile into the best so far: (scores, positions), each [Q, k]."""
    rows, same = P(mesh.axis_names), P()

    def step(state, queries, documents, offset, corpus):
        scores = jnp.einsum("qd,cd->qc", queries, documents, precision=jax.lax.Precision.HIGHEST)
        position = offset + jnp.arange(scores.shape[1])
        scores = jnp.where(position < corpus, scores, -jnp.inf)
        position = jnp.broadcast_to(position, scores.shape)
        k, blocks = state[0].shape[1], scores.shape[1] // BLOCK
        if blocks > k:
            maxima = scores.reshape(len(scores), blocks, BLOCK).max(axis=-1)
            # In the order of the corpus, so that the earlier of equal scores stays earlier.
            chosen = jnp.sort(jax.lax.top_k(maxima, k)[1], axis=1)
            column = (chosen[:, :, None] * BLOCK + jnp.arange(BLOCK)).reshape(len(scores), -1)
            scores = jnp.take_along_axis(scores, column, axis=1)
            position = offset + column
        scores = jnp.concatenate([state[0], scores], axis=1)
        best, index = jax.lax.top_k(scores, k)
        positions = jnp.concatenate([state[1], position], axis=1)
        return best, jnp.take_along_axis(positions, index, axis=1)

    specs = ((rows, rows), rows, same, same, same)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(rows, rows)))
