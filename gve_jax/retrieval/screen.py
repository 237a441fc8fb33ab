"""Exact counts at the speed of bfloat16: its product decides what a bound of its error allows.

A bfloat16 product costs half a float32 one on a CPU with such instructions, a sixth to a fifteenth
on accelerators. For a query q, a document d, their roundings q', d' and e(x) = ||x - x'||,

    |q.d - q'.d'| = |q.(d - d') + (q - q').d'| <= ||q|| e(d) + e(q) ||d'||    (Cauchy-Schwarz)

is about 0.0035 for unit vectors. A document whose bfloat16 score is further from the positive's
float32 score than that (and than the rounding of the sums) is certainly before or certainly behind
it. The others get a float32 score: few, unless many scores are close to the positive's.

What is compared in float32, the positives and those few, comes out of one program in one shape
(`pair_scores`): equal documents score the same wherever they stand, so ties stay ties. The counts
are those of comparing all scores of that program.

A row of queries with too many undecided documents is not done here: a sample of the corpus tells
most of them beforehand, and the float32 tiles of `ranks` do them.
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

LEAST_ROWS, LEAST_CORPUS = 1024, 8192  # below, tiles are prepared for too few products
LEAST_WIDTH = 256  # below, counting takes longer than the product
LARGEST_WIDTH = 1 << 14  # up to which SLACK holds
LEAST_WORK = 1 << 36  # products of numbers; below, compiling takes longer than is won

SAMPLE = 512  # documents that tell whether a row has too many undecided ones
MOST = 1 / 64  # share of undecided documents with which a row is left to float32
SPARE = 64  # undecided documents that a row may have besides
GROUP = 8  # query tiles that meet a corpus tile while it is there, rounded
LEAST_FILLED = 1 / 2  # of the last query tile; else float32 costs less, in a smaller tile
BLOCK = 128  # documents that are looked at together if one of them is undecided
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
    """How far a bfloat16 score may lie from `pair_scores`': see the head of this file."""
    # Eight products more stand for what is rounded once: own +- margin, and underflow.
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
      position: int32 [R, M], corpus indices of its positives; -1 where there is none.
      order: int32 [C], the place of each document's id.
      query_tile, corpus_tile: rows of a tile, the first a multiple of the mesh's devices.

    Returns:
      Scores float32 [R, M], infinite at -1; int32 [R, M, 2], documents before each positive and
      those not below it; bool [R], which rows were counted (the others have too many undecided).
    """
    score = np.full(position.shape, np.inf, np.float32)
    counts = np.zeros((*position.shape, 2), np.int32)
    divide = functools.partial(_parts, mesh, queries, row_query, position, order, query_tile, score)
    done = np.zeros(len(position), bool)
    for parts in divide(np.arange(len(position))):
        _score_own(mesh, parts, corpus, corpus_tile)
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
class _Part:
    """A tile of queries, and what is known of it; padded to the tile, but for `rows`.

    rows: int [n], which rows it holds.
    vectors, half, error: on the mesh, float32 [Q, D], bfloat16 [Q, D], float32 [Q].
    position, own, own_order: [Q, M] of the positives: index, score, id's order.
    counts: int32 [Q, M, 2].
    seen: int [Q], undecided documents so far.
    too_many_undecided: bool [Q], rows with too many of them.
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
) -> Iterator[list[_Part]]:
    """The parts of `rows`, as many together as meet the corpus together."""
    for start in range(0, len(rows), GROUP * query_tile):
        parts = []
        for first in range(start, min(start + GROUP * query_tile, len(rows)), query_tile):
            chosen = rows[first : first + query_tile]
            vectors = np.asarray(queries[row_query[chosen]], np.float32)
            vectors = tiles.shard_rows(mesh, tiles.padded(vectors, query_tile, 0))
            half, error = _to_bfloat16(mesh, split=True)(vectors)
            its = tiles.padded(position[chosen], query_tile, -1)
            own = tiles.padded(score[chosen], query_tile, np.inf)
            own_order = np.where(its >= 0, order[its], -1)
            counts, seen = np.zeros((*its.shape, 2), np.int32), np.zeros(query_tile, np.int64)
            parts.append(
                _Part(
                    chosen,
                    vectors,
                    half,
                    error,
                    its,
                    own,
                    own_order,
                    counts,
                    seen,
                    np.zeros(query_tile, bool),
                )
            )
        yield parts


def _score_own(mesh: Mesh, parts: list[_Part], corpus: np.ndarray, corpus_tile: int) -> None:
    """Fills in the float32 scores of the positives."""
    wanted = np.unique(np.concatenate([part.position.ravel() for part in parts]))
    wanted = wanted[wanted >= 0]
    for at in range(0, len(wanted), corpus_tile):
        these = wanted[at : at + corpus_tile]
        documents = tiles.replicate(mesh, corpus[these], corpus_tile)
        for part in parts:
            column = np.minimum(np.searchsorted(these, part.position), len(these) - 1)
            row, slot = np.nonzero(these[column] == part.position)
            part.own[row, slot] = _score(mesh, part.vectors, documents, row, column[row, slot])


def _sample(mesh: Mesh, parts: list[_Part], corpus: np.ndarray, done: np.ndarray) -> None:
    """Sets `done` [R] for rows of which few documents of a sample are undecided."""
    size = tiles.tile_size(len(corpus), SAMPLE)
    sampled = np.linspace(0, len(corpus) - 1, min(size, len(corpus))).astype(np.int64)
    halves = _to_bfloat16(mesh)(tiles.replicate(mesh, corpus[sampled], size))
    for part in parts:
        screened = _screen(mesh)(part.half, part.error, tiles.shard_rows(mesh, part.own), *halves)
        undecided = _undecided(screened, size - len(sampled))[: len(part.rows)]
        done[part.rows] = undecided <= MOST * len(sampled)


def _count(
    mesh: Mesh, parts: list[_Part], corpus: np.ndarray, order: np.ndarray, corpus_tile: int
) -> None:
    """Counts all documents for the parts of a group."""
    fetch, waiting = tiles.fetcher(mesh, corpus, corpus_tile), None
    known = [tiles.shard_rows(mesh, part.own) for part in parts]
    for first in range(0, len(corpus), corpus_tile):
        documents = fetch(first // corpus_tile)
        halves = _to_bfloat16(mesh)(documents)
        its = order[first : first + corpus_tile]
        for part, own in zip(parts, known, strict=True):
            screened = _screen(mesh)(part.half, part.error, own, *halves)
            if waiting:  # the host looks at one while the devices screen the next
                _resolve_undecided(mesh, *waiting)
            waiting = part, documents, its, first + len(its), screened
    _resolve_undecided(mesh, *waiting)


def _undecided(screened: tuple, padding: int) -> np.ndarray:
    """Undecided documents of each row, int [Q], of a tile with so many rows of padding."""
    _, low, high, _, undecided = screened
    inside = (np.asarray(low) <= 0) & (np.asarray(high) >= 0)  # padding scores zero
    return np.asarray(undecided).sum(axis=(1, 2)) - padding * inside.sum(axis=1)


def _resolve_undecided(
    mesh: Mesh, part: _Part, documents, order, seen: int, screened: tuple
) -> None:
    """Adds a screened tile of documents to a part's counts.

    Args:
      documents: float32 [C, D] on the mesh, its last rows padding.
      order: int32, the ids' orders of those that are none.
      seen: documents of the corpus up to here.
    """
    scores, low, high, above, undecided = screened
    padding = len(documents) - len(order)
    above = np.asarray(above) - padding * (np.asarray(high) < 0)
    part.counts += above[:, :, None]
    part.seen += _undecided(screened, padding)
    part.too_many_undecided |= part.seen > SPARE + MOST * seen
    waiting = np.where(part.too_many_undecided[:, None, None], 0, np.asarray(undecided))
    blocks = waiting.shape[2]
    row, slot, block = np.nonzero(waiting)
    if not len(row):
        return
    found = np.empty((len(row), documents.shape[0] // blocks), bool)
    for here, place, at, _ in _pieces(mesh, row, slot * blocks + block, len(scores)):
        found[here] = np.asarray(_find_undecided(mesh)(scores, low, high, at))[place]
    pair, within = np.nonzero(found)
    row, slot, column = row[pair], slot[pair], block[pair] * found.shape[1] + within
    there = column < len(order)
    row, slot, column = row[there], slot[there], column[there]

    score, own = _score(mesh, part.vectors, documents, row, column), part.own[row, slot]
    later = (score == own) & (order[column] > part.own_order[row, slot])
    np.add.at(part.counts, (row, slot, 0), (score > own) | later)
    np.add.at(part.counts, (row, slot, 1), score >= own)


def _pieces(
    mesh: Mesh, row: np.ndarray, column: np.ndarray, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array, jax.Array]]:
    """Divides entries of a matrix, whose `rows` the devices divide, into pieces of a fixed shape.

    Yields:
      Which entries, bool [n]; their places in the piece; on the mesh the piece, int32 [P, 2] of
      rows (counted from the device's first) and columns; int32 [devices], how many each has.
    """
    local = rows // mesh.size
    size = -(-local // CHUNK) * CHUNK
    device = row // local
    by_device = np.argsort(device, kind="stable")
    total = np.bincount(device, minlength=mesh.size)
    within = np.empty(len(row), np.int64)
    within[by_device] = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)
    for start in range(0, total.max(initial=0), size):
        here = (within >= start) & (within < start + size)
        place = device[here] * size + within[here] - start
        at = np.zeros((mesh.size * size, 2), np.int32)
        at[place, 0], at[place, 1] = row[here] % local, column[here]
        number = np.clip(total - start, 0, size).astype(np.int32)
        yield here, place, tiles.shard_rows(mesh, at), tiles.shard_rows(mesh, number)


def _score(mesh: Mesh, queries, documents, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Float32 scores [n] of queries [Q, D] at `row` with documents [C, D] at `column`."""
    found = np.empty(len(row), np.float32)
    for here, place, at, number in _pieces(mesh, row, column, len(queries)):
        found[here] = np.asarray(pair_scores(mesh)(queries, documents, at, number))[place]
    return found


# ---- the work on the devices ------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def pair_scores(mesh: Mesh) -> Callable:
    """Float32 scores [P] of pairs: (queries [Q, D], documents [C, D], at [P, 2], number [devices]).

    Of each device's part of `at`, rows and columns, the first `number` are scored. In chunks, so
    that the time is that of the pairs; all of one shape, so that a pair scores the same anywhere.
    """

    def scores(queries, documents, at, number):
        def chunk(i, found):
            row, column = jax.lax.dynamic_slice(at, (i * CHUNK, 0), (CHUNK, 2)).T
            # No dot product: its float32 is a matter of settings on some devices.
            score = jnp.sum(queries[row] * documents[column], axis=1)
            return jax.lax.dynamic_update_slice(found, score, (i * CHUNK,))

        found = jnp.zeros_like(queries, shape=len(at))
        return jax.lax.fori_loop(0, (number[0] + CHUNK - 1) // CHUNK, chunk, found)

    rows = P(mesh.axis_names)
    specs = (rows, P(), rows, rows)
    # The number of chunks differs by device, which the check of replication cannot follow.
    return jax.jit(
        jax.shard_map(scores, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    )


@functools.lru_cache(maxsize=8)
def _to_bfloat16(mesh: Mesh, split: bool = False) -> Callable:
    """[N, D] -> bfloat16 [N, D] and the length of what each row lost, float32 [N]."""

    def lost(vectors, half):
        difference = vectors - half.astype(jnp.float32)
        return jnp.sqrt(jnp.sum(difference * difference, axis=1))

    spec = P(mesh.axis_names) if split else P()
    # Two programs: in one, XLA may leave out a conversion there and back, and nothing is lost.
    half = jax.jit(lambda vectors: vectors.astype(jnp.bfloat16))
    lost = jax.jit(jax.shard_map(lost, mesh=mesh, in_specs=spec, out_specs=spec))

    def halve(vectors):
        rounded = half(vectors)
        return rounded, lost(vectors, rounded)

    return halve


@functools.lru_cache(maxsize=8)
def _screen(mesh: Mesh) -> Callable:
    """Scores a tile in bfloat16 and counts what the margin decides.

    Takes queries bfloat16 [Q, D], their errors [Q], the positives' scores [Q, M], documents [C, D]
    and their errors [C]. Gives scores float32 [Q, C]; the ends of what is undecided, [Q, M] each;
    documents above it, int32 [Q, M]; those in it, int32 [Q, M, blocks].
    """

    def screen(queries, query_error, own, documents, document_error):
        scores = jax.lax.dot_general(
            queries,
            documents,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.DEFAULT,  # whatever the setting is
            preferred_element_type=jnp.float32,
        )
        wide = margin(queries.shape[1], query_error, jnp.max(document_error))[:, None]
        low, high = own - wide, own + wide  # infinite where there is no positive
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
    """Which documents of blocks are undecided, bool [P, documents of a block].

    Takes `scores, low, high` of `_screen` and int32 [P, 2], rows and slot * blocks + block.
    """

    def look(scores, low, high, at):
        block = math.gcd(scores.shape[1], BLOCK)
        blocks = scores.shape[1] // block
        row, (slot, number) = at[:, 0], jnp.divmod(at[:, 1], blocks)
        s = scores.reshape(len(scores), blocks, block)[row, number]
        return (s >= low[row, slot][:, None]) & (s <= high[row, slot][:, None])

    rows = P(mesh.axis_names)
    return jax.jit(jax.shard_map(look, mesh=mesh, in_specs=(rows,) * 4, out_specs=rows))
