"""Exact ranks of every positive by counting better documents, and exact top-k, both over tiles.

A positive's rank is one plus the number of documents that come before it, so nothing is sorted and
nothing of size Q x C is ever held: one tile of queries meets one tile of the corpus at a time, and
memory is that of a few tiles whatever the size of the corpus (which may be a `np.memmap`).

The score of a positive is read out of the same tile product that scores its competitors. A separate
dot product rounds differently, which turns ties into wins. So a tile of queries first visits the
corpus tiles that hold its positives, then counts over all tiles; queries are ordered by their
positives so that this costs almost no extra product.

Ties are broken as trec_eval does: score descending, then document id descending as strings. A model
whose vectors are all equal therefore scores chance. The pessimistic rank puts every tied document
that is not a positive first.

Query rows are sharded over all axes of the mesh and each device sees the whole corpus tile, so no
step needs a collective.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gve_jax.errors import UserError

QUERY_TILE = 1024  # rows of queries in one product
CORPUS_TILE = 4096  # rows of the corpus in one product
SMALLEST_TILE = 128  # small sets are padded to this, so that they share one compilation
RESIDENT_TILES = 4  # corpus tiles kept on the devices
POSITIVES_PER_ROW = 4  # a query with more positives takes several rows
NORM_TOLERANCE = 1e-3  # a vector whose length differs from one by more is refused
NORM_BLOCK = 65536  # rows checked at a time, so that the check too is flat in memory


@dataclass(frozen=True)
class Ranks:
    """The place of every positive in its query's ranking; N counts (query, positive) pairs.

    query: int64 [N], index of the query, ascending.
    document: int64 [N], index of the positive in the corpus.
    score: float32 [N], cosine similarity.
    rank: int64 [N], from 1, ties as trec_eval.
    pessimistic: int64 [N], from 1, ties against the positives.
    queries, corpus: Q and C. A query without an entry has no positive and scores zero.
    """

    query: np.ndarray
    document: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    pessimistic: np.ndarray
    queries: int
    corpus: int

    def worst(self) -> "Ranks":
        """The same pairs with every tie resolved against the positives."""
        return replace(self, rank=self.pessimistic)


def rank_positives(
    queries: np.ndarray,
    corpus: np.ndarray,
    positives: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    mesh: Mesh | None = None,
    query_tile: int = QUERY_TILE,
    corpus_tile: int = CORPUS_TILE,
) -> Ranks:
    """Ranks all positives of all queries in the whole corpus, exactly, in float32.

    Args:
      queries: [Q, D] unit rows.
      corpus: [C, D] unit rows; may be memory-mapped, it is read tile by tile.
      positives: for each query the corpus indices of its positives; may be empty.
      ids: the C document ids; they break ties.
      mesh: devices to use; by default the mesh in use (`jax.set_mesh`), else all devices.
      query_tile, corpus_tile: largest tiles; smaller sets use the next power of two.

    Returns:
      `Ranks`, ordered by query, then by document.

    Raises:
      UserError: vectors that are not finite unit rows, ids that are not unique, positives outside
        the corpus or given twice.
    """
    _check(queries, corpus, ids)
    query, document = _pairs(positives, len(queries), len(corpus))
    row, slot, row_query, width = _rows(query, len(queries))
    position = np.full((len(row_query), width), -1, np.int32)
    position[row, slot] = document
    score = np.zeros(position.shape, np.float32)
    before = np.zeros(position.shape, np.int32)
    level = np.zeros(position.shape, np.int32)

    mesh = _mesh(mesh)
    q_tile = _tile_size(len(row_query), query_tile, mesh.size)
    c_tile = _tile_size(len(corpus), corpus_tile)
    order = _id_order(ids)
    fetch = _tiles_on(mesh, corpus, order, c_tile)
    step = _rank_step(mesh)
    sharding = NamedSharding(mesh, P(mesh.axis_names))

    # Rows with neighbouring positives go together: few corpus tiles then hold their positives.
    nearby = np.argsort(position[:, 0], kind="stable")
    for start in range(0, len(nearby), q_tile):
        chosen = nearby[start : start + q_tile]
        tile_position = _padded(position[chosen], q_tile, -1)
        tile_order = np.where(tile_position >= 0, order[tile_position], -1).astype(np.int32)
        tile_queries = _padded(queries[row_query[chosen]], q_tile, 0).astype(np.float32)
        zeros = np.zeros(tile_position.shape, np.int32)
        state = jax.device_put((zeros.astype(np.float32), zeros, zeros), sharding)
        fixed = jax.device_put((tile_queries, tile_position, tile_order), sharding)
        for tile, counting in _visits(tile_position, c_tile, len(corpus)):
            last = state
            state = step(state, *fixed, *fetch(tile), np.int32(tile * c_tile), np.int32(counting))
            jax.block_until_ready(last)  # else every tile of the corpus is queued on the device
        score[chosen], before[chosen], level[chosen] = (
            np.asarray(part)[: len(chosen)] for part in state
        )

    score = score[row, slot]
    # In the worst order the tied negatives come first and the tied positives follow by id. `level`
    # counts every document that scores at least as much, so the positives after this one come off.
    after = _tied_positives_after(query, score, order[document])
    return Ranks(
        query,
        document,
        score,
        before[row, slot].astype(np.int64) + 1,
        level[row, slot].astype(np.int64) - after,
        len(queries),
        len(corpus),
    )


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
    """The k best documents of each query, exactly, for run files and for people to look at.

    Arguments, tie order and errors as `rank_positives`; k above C gives all C.

    Returns:
      Corpus indices int64 [Q, k] and cosines float32 [Q, k], best first.
    """
    _check(queries, corpus, ids)
    if k < 1:
        raise UserError(f"top_k: k is {k}, it must be at least 1")
    k = min(k, len(corpus))
    mesh = _mesh(mesh)
    q_tile = _tile_size(len(queries), query_tile, mesh.size)
    c_tile = max(_tile_size(len(corpus), corpus_tile), k)
    # `lax.top_k` prefers the earlier of two equals: with ids descending that is trec_eval's rule.
    best_first = np.argsort(-_id_order(ids))
    fetch = _tiles_on(mesh, corpus, np.arange(len(corpus), dtype=np.int32), c_tile, best_first)
    step = _top_k_step(mesh)
    sharding = NamedSharding(mesh, P(mesh.axis_names))

    places = np.zeros((len(queries), k), np.int64)
    scores = np.zeros((len(queries), k), np.float32)
    for start in range(0, len(queries), q_tile):
        tile_queries = _padded(queries[start : start + q_tile], q_tile, 0).astype(np.float32)
        tile_queries = jax.device_put(tile_queries, sharding)
        worst = np.full((q_tile, k), -np.inf, np.float32)
        state = jax.device_put((worst, np.full((q_tile, k), -1, np.int32)), sharding)
        for tile in range(-(-len(corpus) // c_tile)):
            last, state = state, step(state, tile_queries, *fetch(tile))
            jax.block_until_ready(last)
        stop = min(start + q_tile, len(queries))
        scores[start:stop] = np.asarray(state[0])[: stop - start]
        places[start:stop] = np.asarray(state[1])[: stop - start]
    return best_first[places], scores


def check_unit_vectors(vectors: np.ndarray, name: str, ids: Sequence[str] | None = None) -> None:
    """Refuses vectors that cannot be ranked by cosine.

    Args:
      vectors: [N, D], floating point.
      name: what they are, for the message.
      ids: N ids, for the message.

    Raises:
      UserError: not a float matrix, empty, or a row that is NaN, infinite, zero or not of unit
        length (tolerance 1e-3); the message names the first such row.
    """
    if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind != "f":
        raise UserError(
            f"{name}: expected a non-empty float matrix of vectors, "
            f"got {vectors.dtype} {list(vectors.shape)}"
        )
    for start in range(0, len(vectors), NORM_BLOCK):
        block = np.asarray(vectors[start : start + NORM_BLOCK], np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        bad = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # NaN compares false
        if len(bad) == 0:
            continue
        row, norm = start + bad[0], norms[bad[0]]
        label = f"{name}: vector {row}" + (f" ({ids[row]})" if ids is not None else "")
        if np.isnan(block[bad[0]]).any():
            raise UserError(f"{label} contains NaN")
        if not np.isfinite(norm):
            raise UserError(f"{label} contains infinite values")
        if norm == 0:
            raise UserError(f"{label} is all zeros")
        raise UserError(f"{label} is not of unit length: its norm is {norm:.6g}")


# ---- the products on the devices --------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _rank_step(mesh: Mesh) -> Callable:
    """One visit of a query tile to a corpus tile; see `rank_positives` for the arguments."""
    rows, whole = P(mesh.axis_names), P()

    def step(state, queries, position, position_order, documents, order, offset, counting):
        score, before, level = state  # each [Q, M], M positives a row
        scores = _scores(queries, documents, order)
        local = position - offset
        here = (position >= 0) & (local >= 0) & (local < scores.shape[1])
        found = jnp.take_along_axis(scores, jnp.clip(local, 0, scores.shape[1] - 1), axis=1)
        score = jnp.where(here, found, score)
        s, own = scores[:, None, :], score[:, :, None]  # [Q, 1, C], [Q, M, 1]
        ahead = (s > own) | ((s == own) & (order > position_order[:, :, None]))
        before += counting * jnp.sum(ahead, axis=-1, dtype=jnp.int32)
        level += counting * jnp.sum(s >= own, axis=-1, dtype=jnp.int32)
        return score, before, level

    specs = ((rows,) * 3, rows, rows, rows, whole, whole, whole, whole)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(rows,) * 3))


@functools.lru_cache(maxsize=8)
def _top_k_step(mesh: Mesh) -> Callable:
    """Merges one corpus tile into the best so far: (scores, places), each [Q, k]."""
    rows, whole = P(mesh.axis_names), P()

    def step(state, queries, documents, order):
        scores = jnp.concatenate([state[0], _scores(queries, documents, order)], axis=1)
        order = jnp.broadcast_to(order, (len(queries), len(order)))
        places = jnp.concatenate([state[1], order], axis=1)
        best, at = jax.lax.top_k(scores, state[0].shape[1])
        return best, jnp.take_along_axis(places, at, axis=1)

    specs = ((rows, rows), rows, whole, whole)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(rows, rows)))


def _scores(queries: jax.Array, documents: jax.Array, order: jax.Array) -> jax.Array:
    """[Q, D], [C, D] -> [Q, C] in full float32; padding (order -1) scores minus infinity."""
    scores = jnp.einsum("qd,cd->qc", queries, documents, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(order >= 0, scores, -jnp.inf)


# ---- tiles and bookkeeping on the host --------------------------------------------------------


def _check(queries: np.ndarray, corpus: np.ndarray, ids: Sequence[str]) -> None:
    check_unit_vectors(queries, "queries")
    check_unit_vectors(corpus, "corpus", ids if len(ids) == len(corpus) else None)
    if queries.shape[1] != corpus.shape[1]:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions and the corpus {corpus.shape[1]}"
        )
    if len(ids) != len(corpus):
        raise UserError(f"{len(ids)} document ids for {len(corpus)} vectors")
    if len(set(ids)) != len(ids):
        twice = next(
            i for i, other in zip(sorted(ids), sorted(ids)[1:], strict=False) if i == other
        )
        raise UserError(f"document id {twice!r} occurs twice")


def _pairs(
    positives: Sequence[Sequence[int]], queries: int, corpus: int
) -> tuple[np.ndarray, np.ndarray]:
    """Query and document index of every positive, int64 [N] each, sorted by both."""
    if len(positives) != queries:
        raise UserError(f"{len(positives)} lists of positives for {queries} queries")
    counts = [len(of_query) for of_query in positives]
    query = np.repeat(np.arange(queries), counts)
    document = np.array([d for of_query in positives for d in of_query], np.int64)
    if len(document) and not 0 <= document.min() <= document.max() < corpus:
        raise UserError(f"a positive lies outside the corpus of {corpus} documents")
    by_both = np.lexsort((document, query))
    query, document = query[by_both], document[by_both]
    twice = (np.diff(query) == 0) & (np.diff(document) == 0)
    if twice.any():
        raise UserError(f"query {query[1:][twice][0]} has the same positive twice")
    return query, document


def _rows(query: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Lays the positives of each query out in rows of a fixed width.

    A fixed width keeps one compilation for every set; one query with fifty positives then takes
    more rows instead of making all rows fifty wide.

    Returns:
      row and slot of each pair [N], the query of each row [R], the width.
    """
    counts = np.bincount(query, minlength=queries)
    width = 1 if counts.max(initial=0) <= 1 else POSITIVES_PER_ROW
    rows_of = -(-counts // width)
    within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = np.repeat(np.cumsum(rows_of) - rows_of, counts) + within // width
    return row, within % width, np.repeat(np.arange(queries), rows_of), width


def _visits(position: np.ndarray, c_tile: int, corpus: int) -> Iterator[tuple[int, bool]]:
    """Corpus tiles in the order to visit them, and whether to count there.

    Counting can start at the last tile that holds a positive, when all their scores are known.
    """
    *first, last = np.unique(position[position >= 0] // c_tile).tolist()
    yield from ((tile, False) for tile in first)
    yield last, True
    yield from ((tile, True) for tile in range(-(-corpus // c_tile)) if tile != last)


def _tiles_on(
    mesh: Mesh,
    corpus: np.ndarray,
    order: np.ndarray,
    c_tile: int,
    permutation: np.ndarray | None = None,
) -> Callable[[int], tuple[jax.Array, jax.Array]]:
    """A function from a tile's number to its vectors [c_tile, D] and order [c_tile] on the mesh.

    Tiles are padded with order -1; the last few stay on the devices.
    """
    whole = NamedSharding(mesh, P())

    @functools.lru_cache(maxsize=RESIDENT_TILES)
    def fetch(tile: int) -> tuple[jax.Array, jax.Array]:
        window = slice(tile * c_tile, (tile + 1) * c_tile)
        vectors = corpus[window if permutation is None else permutation[window]]
        vectors = _padded(np.asarray(vectors, np.float32), c_tile, 0)
        return jax.device_put((vectors, _padded(order[window], c_tile, -1)), whole)

    return fetch


def _tile_size(rows: int, largest: int, devices: int = 1) -> int:
    """The next power of two, at most `largest`, rounded up to a multiple of the devices."""
    size = min(largest, max(SMALLEST_TILE, 1 << max(rows - 1, 0).bit_length()))
    return -(-size // devices) * devices


def _padded(array: np.ndarray, rows: int, value: float) -> np.ndarray:
    """`array` with rows of `value` added at the end up to `rows`."""
    missing = rows - len(array)
    if missing == 0:
        return array
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=value)


def _id_order(ids: Sequence[str]) -> np.ndarray:
    """int32 [C], the place of each id among all sorted as strings: the larger wins a tie."""
    order = np.empty(len(ids), np.int32)
    order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids), dtype=np.int32)
    return order


def _tied_positives_after(query: np.ndarray, score: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each pair the positives of its query with the same score and a smaller id, int64 [N]."""
    if len(query) == 0:
        return np.zeros(0, np.int64)
    by_group = np.lexsort((order, score, query))
    new = np.ones(len(query), bool)
    new[1:] = (np.diff(query[by_group]) != 0) | (np.diff(score[by_group]) != 0)
    place = np.arange(len(query))
    start = np.maximum.accumulate(np.where(new, place, 0))
    after = np.empty(len(query), np.int64)
    after[by_group] = place - start
    return after


def _mesh(mesh: Mesh | None) -> Mesh:
    """The given mesh, else the one in use, else one axis over all devices."""
    if mesh is not None:
        return mesh
    current = jax.sharding.get_mesh()
    return Mesh(np.array(jax.devices()), ("data",)) if current.empty else current
