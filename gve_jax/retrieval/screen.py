"""Exact counts at the speed of bfloat16: a bound of its error decides most comparisons.

A bfloat16 product costs half a float32 one on a CPU with such instructions, a sixth to a fifteenth
on accelerators. For a query q, a document d, their roundings q', d' and e(x) = ||x - x'||,

    |q.d - q'.d'| = |q.(d - d') + (q - q').d'| <= ||q|| e(d) + e(q) ||d'||    (Cauchy-Schwarz)

is about 0.0035 for unit vectors. A document whose bfloat16 score differs from the positive's
float32 score by more than that (and the rounding of the sums) is certainly before or behind it. The
others are undecided and get a float32 score: few, unless many scores are close to the positive's.

All float32 scores, of positives and undecided documents, come from one program of one shape
(`pair_scores`), so that equal documents have equal scores and ties stay ties. The counts equal
those of comparing all scores of that program.

Rows of queries with too many undecided documents are left to the float32 tiles of `ranks`; a sample
of the corpus identifies most of them beforehand.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gve_jax.retrieval import tiles

LEAST_ROWS, LEAST_CORPUS = 1024, 8192  # below, preparing tiles does not pay
LEAST_WIDTH = 256  # below, counting takes longer than the product
LARGEST_WIDTH = 1 << 14  # SLACK is valid up to this width
LEAST_WORK = 1 << 36  # multiplications; below, compiling takes longer than screening saves

SAMPLE = 512  # documents sampled to find rows with too many undecided ones
MAX_UNDECIDED = 1 / 64  # share of undecided documents above which a row is left to float32
SPARE = 64  # further undecided documents that a row may have
GROUP = 8  # query tiles multiplied with a corpus tile while it is on the devices
LEAST_FILLED = 1 / 2  # of the last query tile; below, a smaller float32 tile costs less
BLOCK = 128  # documents searched together if one of them is undecided
CHUNK = 256  # pairs in one float32 program

# Rounding of the two sums of D products, in units of D u, u = 2^-24, ||x|| ||y|| = 1. In any order
# |fl(x.y) - x.y| <= n u / (1 - n u) |x|.|y| (Higham, Accuracy and Stability of Numerical
# Algorithms, 2nd ed., 3.1): one for the float32 score. Tensor cores truncate, also when they align
# the terms of a block of k >= 4 (Fasi, Higham, Mikaitis, Pranesh 2021): 2 (1 + 1 / k) < 3.
SUMS = 4
# Lengths up to 1.002 (`check_unit_vectors` and its own rounding), ||x'|| <= ||x|| + 2^-8 ||x||, the
# rounding of e(x) itself and 1 / (1 - n u), all below 2 % up to LARGEST_WIDTH.
SLACK = 1.02


def worth_screening(rows: int, corpus: np.ndarray) -> bool:
    """Returns whether screening is faster than float32 tiles for this many queries."""
    width = corpus.shape[1]
    enough = rows >= LEAST_ROWS and len(corpus) >= LEAST_CORPUS
    return enough and LEAST_WIDTH <= width <= LARGEST_WIDTH and rows * corpus.size >= LEAST_WORK


def margin(width: int, query_error, document_error):
    """Bound of the difference of a bfloat16 score and that of `pair_scores`; see above."""
    # Eight more products cover operations that round once: score +- margin, and underflow.
    sums = SUMS * (width + 8) * 2.0**-24
    return SLACK * (query_error + document_error + sums)


def count_rows(
    mesh: Mesh,
    queries: np.ndarray,
    corpus: np.ndarray,
    row_query: np.ndarray,
    position: np.ndarray,
    order: np.ndarray,
    query_tile: int,
    corpus_tile: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the documents before each positive of rows of queries.

    Args:
      queries, corpus: [Q, D], [C, D], checked.
      row_query: int [R], the query of each row.
      position: int32 [R, M], corpus indices of its positives, padded with -1.
      order: int32 [C], the rank of each document's id.
      query_tile, corpus_tile: rows of a tile; `query_tile` is a multiple of the mesh's devices.

    Returns:
      Scores float32 [R, M], infinite for padding; int32 [R, M, 2], numbers of documents before each
      positive and of those not below it; bool [R], rows that were counted (the others have too many
      undecided documents).
    """
    score = np.full(position.shape, np.inf, np.float32)
    counts = np.zeros((*position.shape, 2), np.int32)
    divide = functools.partial(_parts, mesh, queries, row_query, position, order, query_tile, score)
    done = np.zeros(len(position), bool)
    for parts in divide(np.arange(len(position))):
        _score_positives(mesh, parts, corpus, corpus_tile)
        for part in parts:
            score[part.rows] = part.own[: len(part.rows)]
        _sample(mesh, parts, corpus, done)

    rows = np.flatnonzero(done)
    rest = len(rows) % query_tile
    if rest < LEAST_FILLED * query_tile:
        done[rows[len(rows) - rest :]] = False
        rows = rows[: len(rows) - rest]
    for parts in divide(rows):
        _count(mesh, parts, corpus, order, corpus_tile)
        for part in parts:
            counts[part.rows] = part.counts[: len(part.rows)]
            done[part.rows] = ~part.too_many_undecided[: len(part.rows)]
    return score, counts, done


@dataclass
class _QueryTile:
    """A tile of queries and its state; arrays are padded to the size of a tile, except `rows`.

    rows: int [n], the numbers of the rows.
    vectors, half, error: on the mesh, float32 [Q, D], bfloat16 [Q, D], float32 [Q].
    position, own, own_order: [Q, M], the positives' indices, scores and ranks of their ids.
    counts: int32 [Q, M, 2].
    seen: int [Q], number of undecided documents so far.
    too_many_undecided: bool [Q].
    """

    rows: np.ndarray
    vectors: jax.Array
    half: jax.Array
    error: jax.Array
    position: np.ndarray
    own: np.ndarray
    own_order: np.ndarray
    counts: np.ndarray
    seen: np.ndarray
    too_many_undecided: np.ndarray


def _parts(
    mesh, queries, row_query, position, order, query_tile, score, rows: np.ndarray
) -> Iterator[list[_QueryTile]]:
    """Yields the query tiles of `rows` in groups of GROUP."""
    for start in range(0, len(rows), GROUP * query_tile):
        parts = []
        for first in range(start, min(start + GROUP * query_tile, len(rows)), query_tile):
            chosen = rows[first : first + query_tile]
            vectors = np.asarray(queries[row_query[chosen]], np.float32)
            vectors = tiles.shard_rows(mesh, tiles.padded(vectors, query_tile, 0))
            half, error = _to_bfloat16(mesh, split=True)(vectors)
            positives = tiles.padded(position[chosen], query_tile, -1)
            part = _QueryTile(
                rows=chosen,
                vectors=vectors,
                half=half,
                error=error,
                position=positives,
                own=tiles.padded(score[chosen], query_tile, np.inf),
                own_order=np.where(positives >= 0, order[positives], -1),
                counts=np.zeros((*positives.shape, 2), np.int32),
                seen=np.zeros(query_tile, np.int64),
                too_many_undecided=np.zeros(query_tile, bool),
            )
            parts.append(part)
        yield parts


def _score_positives(
    mesh: Mesh, parts: list[_QueryTile], corpus: np.ndarray, corpus_tile: int
) -> None:
    """Fills in the float32 scores of the positives."""
    wanted = np.unique(np.concatenate([part.position.ravel() for part in parts]))
    wanted = wanted[wanted >= 0]
    for start in range(0, len(wanted), corpus_tile):
        chunk = wanted[start : start + corpus_tile]
        documents = tiles.replicate(mesh, corpus[chunk], corpus_tile)
        for part in parts:
            column = np.minimum(np.searchsorted(chunk, part.position), len(chunk) - 1)
            row, slot = np.nonzero(chunk[column] == part.position)
            part.own[row, slot] = _score(mesh, part.vectors, documents, row, column[row, slot])


def _sample(mesh: Mesh, parts: list[_QueryTile], corpus: np.ndarray, done: np.ndarray) -> None:
    """Sets `done` [R] for rows with few undecided documents in a sample of the corpus."""
    size = tiles.tile_size(len(corpus), SAMPLE)
    sampled = np.linspace(0, len(corpus) - 1, min(size, len(corpus))).astype(np.int64)
    halves = _to_bfloat16(mesh)(tiles.replicate(mesh, corpus[sampled], size))
    for part in parts:
        screened = _screen(mesh)(part.half, part.error, tiles.shard_rows(mesh, part.own), *halves)
        undecided = _undecided(screened, size - len(sampled))[: len(part.rows)]
        done[part.rows] = undecided <= MAX_UNDECIDED * len(sampled)


def _count(
    mesh: Mesh, parts: list[_QueryTile], corpus: np.ndarray, order: np.ndarray, corpus_tile: int
) -> None:
    """Counts all documents for the query tiles of a group."""
    fetch, waiting = tiles.fetcher(mesh, corpus, corpus_tile), None
    positive_scores = [tiles.shard_rows(mesh, part.own) for part in parts]
    for first in range(0, len(corpus), corpus_tile):
        documents = fetch(first // corpus_tile)
        halves = _to_bfloat16(mesh)(documents)
        tile_order = order[first : first + corpus_tile]
        for part, own in zip(parts, positive_scores, strict=True):
            screened = _screen(mesh)(part.half, part.error, own, *halves)
            if waiting:  # the host resolves one tile while the devices screen the next
                _resolve_undecided(mesh, *waiting)
            waiting = part, documents, tile_order, first + len(tile_order), screened
    _resolve_undecided(mesh, *waiting)


def _undecided(screened: tuple, padding: int) -> np.ndarray:
    """Number of undecided documents of each row, int [Q]; the tile has `padding` rows of zeros."""
    _, low, high, _, undecided = screened
    inside = (np.asarray(low) <= 0) & (np.asarray(high) >= 0)  # padding scores zero
    return np.asarray(undecided).sum(axis=(1, 2)) - padding * inside.sum(axis=1)


def _resolve_undecided(
    mesh: Mesh, part: _QueryTile, documents, order, seen: int, screened: tuple
) -> None:
    """Adds a screened tile of documents to the counts of a query tile.

    Args:
      documents: float32 [C, D] on the mesh; the last rows may be padding.
      order: int32, ranks of the ids of the documents that are not padding.
      seen: number of documents of the corpus screened so far.
    """
    scores, low, high, above, undecided = screened
    padding = len(documents) - len(order)
    above = np.asarray(above) - padding * (np.asarray(high) < 0)
    part.counts += above[:, :, None]
    part.seen += _undecided(screened, padding)
    part.too_many_undecided |= part.seen > SPARE + MAX_UNDECIDED * seen
    waiting = np.where(part.too_many_undecided[:, None, None], 0, np.asarray(undecided))
    blocks = waiting.shape[2]
    row, slot, block = np.nonzero(waiting)
    if not len(row):
        return
    undecided = np.empty((len(row), documents.shape[0] // blocks), bool)
    for entries, index, at, _ in _pieces(mesh, row, slot * blocks + block, len(scores)):
        undecided[entries] = np.asarray(_find_undecided(mesh)(scores, low, high, at))[index]
    pair, within = np.nonzero(undecided)
    row, slot, column = row[pair], slot[pair], block[pair] * undecided.shape[1] + within
    is_document = column < len(order)  # not padding
    row, slot, column = row[is_document], slot[is_document], column[is_document]

    score, own = _score(mesh, part.vectors, documents, row, column), part.own[row, slot]
    later = (score == own) & (order[column] > part.own_order[row, slot])
    np.add.at(part.counts, (row, slot, 0), (score > own) | later)
    np.add.at(part.counts, (row, slot, 1), score >= own)


def _pieces(
    mesh: Mesh, row: np.ndarray, column: np.ndarray, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array, jax.Array]]:
    """Divides entries of a matrix, whose `rows` are sharded, into pieces of a fixed shape.

    Yields:
      The entries of the piece, bool [n]; their indices in it; on the mesh, int32 [pairs, 2], rows
      (relative to the device's first) and columns; int32 [devices], the number of each device.
    """
    local = rows // mesh.size
    size = -(-local // CHUNK) * CHUNK
    device = row // local
    by_device = np.argsort(device, kind="stable")
    total = np.bincount(device, minlength=mesh.size)
    within = np.empty(len(row), np.int64)
    within[by_device] = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)
    for start in range(0, total.max(initial=0), size):
        entries = (within >= start) & (within < start + size)
        index = device[entries] * size + within[entries] - start
        at = np.zeros((mesh.size * size, 2), np.int32)
        at[index, 0], at[index, 1] = row[entries] % local, column[entries]
        number = np.clip(total - start, 0, size).astype(np.int32)
        yield entries, index, tiles.shard_rows(mesh, at), tiles.shard_rows(mesh, number)


def _score(mesh: Mesh, queries, documents, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Float32 scores [n] of queries [Q, D] at `row` with documents [C, D] at `column`."""
    scores = np.empty(len(row), np.float32)
    for entries, index, at, number in _pieces(mesh, row, column, len(queries)):
        scores[entries] = np.asarray(pair_scores(mesh)(queries, documents, at, number))[index]
    return scores


# ---- programs of the devices -------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def pair_scores(mesh: Mesh) -> Callable:
    """Scores float32 [pairs] of queries [Q, D], documents [C, D], at [pairs, 2], number [devices].

    Scores the first `number` entries of each device's shard of `at` (rows and columns), in chunks
    of one shape: the time is proportional to the pairs, and equal pairs score the same.
    """

    def scores(queries, documents, at, number):
        def chunk(i, found):
            row, column = jax.lax.dynamic_slice(at, (i * CHUNK, 0), (CHUNK, 2)).T
            # Not a dot product, whose float32 precision depends on settings on some devices.
            score = jnp.sum(queries[row] * documents[column], axis=1)
            return jax.lax.dynamic_update_slice(found, score, (i * CHUNK,))

        found = jnp.zeros_like(queries, shape=len(at))
        return jax.lax.fori_loop(0, (number[0] + CHUNK - 1) // CHUNK, chunk, found)

    rows = P(mesh.axis_names)
    specs = (rows, P(), rows, rows)
    # The number of chunks differs between devices, which check_vma does not support.
    return jax.jit(
        jax.shard_map(scores, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    )


@functools.lru_cache(maxsize=8)
def _to_bfloat16(mesh: Mesh, split: bool = False) -> Callable:
    """[N, D] -> bfloat16 [N, D] and the norm of each row's rounding error, float32 [N]."""

    def error(vectors, half):
        difference = vectors - half.astype(jnp.float32)
        return jnp.sqrt(jnp.sum(difference * difference, axis=1))

    spec = P(mesh.axis_names) if split else P()
    # Two programs: in one, XLA may remove the conversion to bfloat16 and back.
    round_rows = jax.jit(lambda vectors: vectors.astype(jnp.bfloat16))
    error = jax.jit(jax.shard_map(error, mesh=mesh, in_specs=spec, out_specs=spec))

    def convert(vectors):
        rounded = round_rows(vectors)
        return rounded, error(vectors, rounded)

    return convert


@functools.lru_cache(maxsize=8)
def _screen(mesh: Mesh) -> Callable:
    """Scores a tile in bfloat16 and counts the documents that the margin decides.

    Takes queries bfloat16 [Q, D], their errors [Q], the positives' scores [Q, M], documents [C, D]
    and their errors [C]. Returns scores float32 [Q, C]; the ends of the undecided interval, [Q, M]
    each; the number of documents above it, int32 [Q, M]; those in it, int32 [Q, M, blocks].
    """

    def screen(queries, query_error, own, documents, document_error):
        scores = jax.lax.dot_general(
            queries,
            documents,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.DEFAULT,  # overrides jax_default_matmul_precision
            preferred_element_type=jnp.float32,
        )
        wide = margin(queries.shape[1], query_error, jnp.max(document_error))[:, None]
        low, high = own - wide, own + wide  # infinite for padding
        s = scores[:, None, :]
        # Two counts in one pass over the scores, which are larger than any cache.
        both = (s > high[:, :, None]).astype(jnp.int32)
        both += (s >= low[:, :, None]).astype(jnp.int32) << 16
        block = math.gcd(scores.shape[1], BLOCK)
        both = jnp.sum(both.reshape(*both.shape[:2], -1, block), axis=-1)
        above = both & 0xFFFF
        return scores, low, high, jnp.sum(above, axis=-1), (both >> 16) - above

    rows, same = P(mesh.axis_names), P()
    specs = (rows, rows, rows, same, same)
    return jax.jit(jax.shard_map(screen, mesh=mesh, in_specs=specs, out_specs=(rows,) * 5))


@functools.lru_cache(maxsize=8)
def _find_undecided(mesh: Mesh) -> Callable:
    """Which documents of blocks are undecided, bool [pairs, documents of a block].

    Takes `scores, low, high` of `_screen` and int32 [pairs, 2], rows and slot * blocks + block.
    """

    def find(scores, low, high, at):
        block = math.gcd(scores.shape[1], BLOCK)
        blocks = scores.shape[1] // block
        row, (slot, number) = at[:, 0], jnp.divmod(at[:, 1], blocks)
        s = scores.reshape(len(scores), blocks, block)[row, number]
        return (s >= low[row, slot][:, None]) & (s <= high[row, slot][:, None])

    rows = P(mesh.axis_names)
    return jax.jit(jax.shard_map(find, mesh=mesh, in_specs=(rows,) * 4, out_specs=rows))
