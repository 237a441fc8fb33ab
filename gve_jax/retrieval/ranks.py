"""Exact ranks of every positive by counting better documents, over tiles.

The rank of a positive is one plus the number of documents before it, so nothing is sorted, and no
array of Q x C scores exists: one tile of queries is multiplied with one tile of the corpus at a
time. Memory is that of a few tiles, whatever the size of the corpus (which may be a `np.memmap`).

The score of a positive is taken from the same tile product as the scores of its competitors: a
separate dot product rounds differently, which turns ties into wins. So a tile of queries is first
multiplied with the tiles of its positives, then counts over all tiles. Queries are ordered by their
positives, which then are in few tiles, whose products are stored until they are counted. Large sets
are screened in bfloat16 first (`screen`); the ranks stay exact.

Ties are broken as trec_eval does: score descending, then document id descending as strings. A model
whose vectors are all equal therefore scores chance. The pessimistic rank puts every tied document
that is not a positive first.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gve_jax.errors import UserError
from gve_jax.retrieval import screen, tiles
from gve_jax.retrieval.tiles import CORPUS_TILE, QUERY_TILE

POSITIVES_PER_ROW = 4  # a query with more positives takes several rows
HELD_TILES = 6  # products with tiles of positives that are stored until they are counted
LARGEST_TILE = 1 << 14  # documents of a tile: two counts of them share an int32, and its sign
LIST_TILE = (32, 128)  # queries, and candidates of each, in one product


@dataclass(frozen=True)
class Ranks:
    """The rank of every positive in its query's ranking; N is the number of such pairs.

    query: int64 [N], index of the query, ascending.
    document: int64 [N], index of the positive in the corpus.
    score: float32 [N], cosine similarity.
    rank: int64 [N], from 1, ties as trec_eval.
    pessimistic: int64 [N], from 1, ties against the positives.
    queries, corpus: Q and C. A query without an entry has no positive and scores zero.
    candidates: int64 [Q], number of documents that each query ranks; None for the whole corpus.
    """

    query: np.ndarray
    document: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    pessimistic: np.ndarray
    queries: int
    corpus: int
    candidates: np.ndarray | None = None

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
      mesh: devices to use; by default the mesh in use (`jax.set_mesh`), else all devices. Several
        hosts call it with the same arguments, divide the queries and all get the same result.
      query_tile, corpus_tile: largest tiles; smaller sets use the next power of two.

    Returns:
      `Ranks`, ordered by query, then by document.

    Raises:
      UserError: vectors that are not finite unit rows, ids that are not unique, positives outside
        the corpus or given twice.
    """
    tiles.check(queries, corpus, ids)
    if corpus_tile > LARGEST_TILE:
        raise UserError(f"corpus_tile must be at most {LARGEST_TILE}, not {corpus_tile}")
    order = tiles.id_order(ids)
    query, document = _pairs(positives, len(queries), len(corpus))
    row, slot, row_query, width = _rows(query, len(queries))
    position = np.full((len(row_query), width), -1, np.int32)
    position[row, slot] = document
    score = np.zeros(position.shape, np.float32)
    counts = np.zeros((*position.shape, 2), np.int32)

    mesh = tiles.choose_mesh(mesh)
    c_tile = tiles.tile_size(len(corpus), corpus_tile)
    # Rows with neighbouring positives are adjacent: few corpus tiles then hold their positives.
    rows = np.argsort(position[:, 0], kind="stable")
    if screen.worth_screening(len(rows), corpus):
        own = rows[tiles.host_rows(len(rows))]
        q_tile = tiles.tile_size(len(rows), query_tile, mesh.size)
        done = np.zeros(len(rows), np.int32)
        score[own], counts[own], done[own] = screen.count_rows(
            mesh, queries, corpus, row_query[own], position[own], order, q_tile, c_tile
        )
        for each in (score, counts, done):
            each[rows] = tiles.allgather_rows(each[rows], len(rows))
        # All rows of a query: its positives may tie, and must be compared within one program.
        left = np.zeros(len(queries), bool)
        left[row_query[done == 0]] = True
        rows = rows[left[row_query[rows]]]
    q_tile = tiles.tile_size(len(rows), query_tile, mesh.size)
    _count_rows(
        mesh, queries, corpus, row_query, position, order, rows, score, counts, q_tile, c_tile
    )
    found = score[row, slot], counts[row, slot, 0], counts[row, slot, 1]
    return _ranks(query, document, *found, order, len(queries), len(corpus))


def rank_candidates(
    queries: np.ndarray,
    corpus: np.ndarray,
    candidates: Sequence[Sequence[int]],
    positives: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    mesh: Mesh | None = None,
) -> Ranks:
    """Ranks the positives of each query among its own candidates only, exactly, in float32.

    Args:
      queries, corpus, positives, ids, mesh: as in `rank_positives`.
      candidates: for each query, the corpus indices of its candidates, which include its positives.

    Returns:
      `Ranks` with `candidates`, ties as in `rank_positives`.

    Raises:
      UserError: as `rank_positives`; also candidates outside the corpus or given twice, a query
        without candidates, a positive that is not among them.
    """
    tiles.check(queries, corpus, ids)
    order = tiles.id_order(ids)
    query, document = _pairs(positives, len(queries), len(corpus))
    of, among = _pairs(candidates, len(queries), len(corpus), "candidate")
    sizes = np.bincount(of, minlength=len(queries))
    if not sizes.all():
        raise UserError(f"query {int(np.argmin(sizes))} has no candidates")
    starts = np.cumsum(sizes) - sizes
    index = np.searchsorted(of * len(corpus) + among, query * len(corpus) + document)
    inside = np.minimum(index, len(of) - 1)
    stray = (of[inside] != query) | (among[inside] != document)
    if stray.any():
        at = int(np.argmax(stray))
        raise UserError(f"query {query[at]}: positive {ids[document[at]]!r} is not a candidate")

    mesh = tiles.choose_mesh(mesh)
    score = np.zeros(len(query), np.float32)
    counts = np.zeros((len(query), 2), np.int32)
    own = tiles.host_rows(len(query))
    step = -(-LIST_TILE[0] // mesh.size) * mesh.size
    # Queries with equally many candidates are adjacent: little padding.
    ranked = np.unique(query[own])
    ranked = ranked[np.argsort(sizes[ranked], kind="stable")]
    for start in range(0, len(ranked), step):
        group = ranked[start : start + step]
        lists = [among[starts[q] : starts[q] + sizes[q]] for q in group]
        list_scores = _list_scores(mesh, queries, corpus, group, lists, step)
        for q, candidate, scores in zip(group, lists, list_scores, strict=True):
            pairs = slice(*np.searchsorted(query, [q, q + 1]))
            positive = scores[np.searchsorted(candidate, document[pairs])]
            score[pairs] = positive
            same = scores == positive[:, None]
            later = order[candidate] > order[document[pairs]][:, None]
            before = (scores > positive[:, None]) | (same & later)
            counts[pairs, 0] = before.sum(axis=1)
            counts[pairs, 1] = (scores >= positive[:, None]).sum(axis=1)
    score = tiles.allgather_rows(score, len(query))
    counts = tiles.allgather_rows(counts, len(query))
    ranks = _ranks(query, document, score, *counts.T, order, len(queries), len(corpus))
    return replace(ranks, candidates=sizes)


# ---- the work on the devices ------------------------------------------------------------------


def _count_rows(
    mesh, queries, corpus, row_query, position, order, rows, score, counts, q_tile, c_tile
) -> None:
    """Fills `score` and `counts` at `rows`, which the hosts divide, by products in float32.

    Arrays as in `screen.count_rows`.
    """
    tile_orders = tiles.padded(order, -(-len(order) // c_tile) * c_tile, -1).reshape(-1, c_tile)
    fetch, product, count = tiles.fetcher(mesh, corpus, c_tile), tiles.product(mesh), _count(mesh)
    own = tiles.host_rows(len(rows))
    for start in range(own.start, min(own.stop, len(rows)), q_tile):
        chosen = rows[start : min(start + q_tile, own.stop)]
        tile_position = tiles.padded(position[chosen], q_tile, -1)
        vectors = tiles.padded(np.asarray(queries[row_query[chosen]], np.float32), q_tile, 0)
        vectors = tiles.shard_rows(mesh, vectors)
        held, tile_score = _positive_scores(mesh, vectors, tile_position, corpus, c_tile, fetch)
        known = tiles.shard_rows(mesh, tile_score)
        known_order = np.where(tile_position >= 0, order[tile_position], -1).astype(np.int32)
        known_order = tiles.shard_rows(mesh, known_order)
        state = tiles.shard_rows(mesh, np.zeros((*tile_position.shape, 2), np.int32))
        for tile, tile_order in enumerate(tile_orders):
            scores = held.pop(tile, None)
            if scores is None:
                scores = product(vectors, fetch(tile))
            padding = np.int32(max(0, (tile + 1) * c_tile - len(corpus)))
            last, state = state, count(state, scores, known, known_order, tile_order, padding)
            jax.block_until_ready(last)  # else every tile of the corpus is queued on the device
        score[chosen] = tile_score[: len(chosen)]
        counts[chosen] = np.asarray(state)[: len(chosen)]
    score[rows] = tiles.allgather_rows(score[rows], len(rows))
    counts[rows] = tiles.allgather_rows(counts[rows], len(rows))


@functools.lru_cache(maxsize=8)
def _count(mesh: Mesh) -> Callable:
    """Adds one tile to int32 [Q, M, 2]: documents before each positive, and those not below it.

    Takes scores [Q, C], the scores of positives [Q, M] (infinite for padding) and the ranks of
    their ids [Q, M], the ranks of the documents' ids [C], and the number of padding documents,
    which score zero.
    """
    rows, same = P(mesh.axis_names), P()

    def step(state, scores, own, own_order, order, padding):
        s, o = scores[:, None, :], own[:, :, None]  # [Q, 1, C], [Q, M, 1]
        # Two counts in one pass over the scores, which are larger than any cache.
        both = jnp.sum((s > o).astype(jnp.int32) + ((s >= o).astype(jnp.int32) << 16), axis=-1)
        above = (both & 0xFFFF) - padding * (0 > own)
        level = (both >> 16) - padding * (0 >= own)

        def ties():
            later = (s == o) & (order > own_order[:, :, None])
            return jnp.sum(later, axis=-1, dtype=jnp.int32)

        # Few tiles have ties, other than those of the positives, which tie with themselves.
        tied = jax.lax.cond(jnp.any(level > above), ties, lambda: jnp.zeros_like(above))
        return state + jnp.stack([above + tied, level], axis=-1)

    specs = (rows, rows, rows, rows, same, same)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=rows))


@functools.lru_cache(maxsize=8)
def _take(mesh: Mesh) -> Callable:
    """Scores [Q, C] at columns [Q, M]; infinite at column -1."""

    def step(scores, columns):
        found = jnp.take_along_axis(scores, jnp.maximum(columns, 0), axis=1)
        return jnp.where(columns >= 0, found, jnp.inf)

    rows = P(mesh.axis_names)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(rows, rows), out_specs=rows))


def _positive_scores(
    mesh: Mesh,
    rows: jax.Array,
    position: np.ndarray,
    corpus: np.ndarray,
    c_tile: int,
    fetch: Callable[[int], jax.Array],
) -> tuple[dict[int, jax.Array], np.ndarray]:
    """Scores of the positives of a tile of queries, from the products that score all documents.

    Args:
      rows: [Q, D] on the mesh.
      position: int32 [Q, M], corpus indices of the positives; -1 where there is none.

    Returns:
      The products that contain them, by tile, to be counted; float32 [Q, M], infinite at -1.
    """
    product, take = tiles.product(mesh), _take(mesh)
    wanted = np.unique(position[position >= 0])
    numbers = np.unique(wanted // c_tile)
    if len(numbers) <= HELD_TILES:
        held = {int(tile): product(rows, fetch(int(tile))) for tile in numbers}
        parts = [(scores, tile * c_tile + np.arange(c_tile)) for tile, scores in held.items()]
    else:  # tiles of the positives alone, which are fewer than the tiles that contain them
        held = {}
        chunks = [wanted[at : at + c_tile] for at in range(0, len(wanted), c_tile)]
        parts = [
            (product(rows, tiles.replicate(mesh, corpus[chunk], c_tile)), chunk) for chunk in chunks
        ]
    score = np.full(position.shape, np.inf, np.float32)
    for scores, documents in parts:
        columns = np.searchsorted(documents, position)
        at = np.minimum(columns, len(documents) - 1)
        here = documents[at] == position
        found = take(scores, tiles.shard_rows(mesh, np.where(here, at, -1).astype(np.int32)))
        score = np.where(here, np.asarray(found), score)
    return held, score


@functools.lru_cache(maxsize=8)
def _list_product(mesh: Mesh) -> Callable:
    """[Q, D], [Q, list, D] -> [Q, list] in full float32: each query with its own documents."""

    def scores(queries, documents):
        return jnp.einsum("qd,qld->ql", queries, documents, precision=jax.lax.Precision.HIGHEST)

    rows = P(mesh.axis_names)
    return jax.jit(jax.shard_map(scores, mesh=mesh, in_specs=(rows, rows), out_specs=rows))


def _list_scores(
    mesh: Mesh,
    queries: np.ndarray,
    corpus: np.ndarray,
    group: np.ndarray,
    lists: list[np.ndarray],
    step: int,
) -> Iterator[np.ndarray]:
    """Yields the scores float32 [n] of each query's candidates; a group has at most `step`."""
    longest, chunk = max(map(len, lists)), LIST_TILE[1]
    found = np.zeros((len(group), -(-longest // chunk) * chunk), np.float32)
    rows = tiles.shard_rows(mesh, tiles.padded(np.asarray(queries[group], np.float32), step, 0))
    for start in range(0, longest, chunk):
        block = np.zeros((step, chunk, corpus.shape[1]), np.float32)
        for number, candidates in enumerate(lists):
            part = candidates[start : start + chunk]
            block[number, : len(part)] = corpus[part]
        scores = _list_product(mesh)(rows, tiles.shard_rows(mesh, block))
        found[:, start : start + chunk] = np.asarray(scores)[: len(group)]
    return (scores[: len(each)] for scores, each in zip(found, lists, strict=True))


# ---- bookkeeping on the host ------------------------------------------------------------------


def _ranks(query, document, score, before, level, order, queries: int, corpus: int) -> Ranks:
    """`Ranks` from the numbers of documents before each positive and of those not below it."""
    # In the worst order, tied negatives come first and tied positives follow by id. `level` counts
    # every document that scores at least as much: the positives after this one are subtracted.
    after = _tied_positives_after(query, score, order[document])
    rank = before.astype(np.int64) + 1
    return Ranks(query, document, score, rank, level.astype(np.int64) - after, queries, corpus)


def _pairs(
    positives: Sequence[Sequence[int]], queries: int, corpus: int, kind: str = "positive"
) -> tuple[np.ndarray, np.ndarray]:
    """Query and document index of every positive, int64 [N] each, sorted by both."""
    if len(positives) != queries:
        raise UserError(f"{len(positives)} lists of {kind}s for {queries} queries")
    counts = [len(of_query) for of_query in positives]
    query = np.repeat(np.arange(queries), counts)
    document = np.array([d for of_query in positives for d in of_query], np.int64)
    if len(document) and not 0 <= document.min() <= document.max() < corpus:
        raise UserError(f"a {kind} is outside the corpus of {corpus} documents")
    by_both = np.lexsort((document, query))
    query, document = query[by_both], document[by_both]
    twice = (np.diff(query) == 0) & (np.diff(document) == 0)
    if twice.any():
        raise UserError(f"query {query[1:][twice][0]} has the same {kind} twice")
    return query, document


def _rows(query: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Arranges the positives of each query in rows of a fixed width.

    With a fixed width, one compilation serves every set, and a query with fifty positives takes
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


def _tied_positives_after(query: np.ndarray, score: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each pair, the number of positives of its query with an equal score and a smaller id."""
    if len(query) == 0:
        return np.zeros(0, np.int64)
    by_group = np.lexsort((order, score, query))
    new = np.ones(len(query), bool)
    new[1:] = (np.diff(query[by_group]) != 0) | (np.diff(score[by_group]) != 0)
    position = np.arange(len(query))
    start = np.maximum.accumulate(np.where(new, position, 0))
    after = np.empty(len(query), np.int64)
    after[by_group] = position - start
    return after
