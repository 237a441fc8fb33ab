"""Which documents a query may have as hard negatives: ranks without its positives, and a rule."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from gve_jax.retrieval import tiles
from gve_jax.retrieval.topk import stream_top_k

SPARE = 16  # documents asked for beyond the window, in place of those that are excluded
ROUNDING = 4e-3  # of a score, for lengths that differ from one by `tiles.NORM_TOLERANCE`


@dataclass(frozen=True)
class Rule:
    """Which ranked documents become negatives.

    Attributes:
      ranks: the first and the last rank, from 1, among documents that are not excluded.
      share: a negative has at most this share of the positive's score, or at most that score where
        it is not above zero; None for no limit.
      margin: a negative scores at least this much less than the positive; None for no limit.
      count: negatives of a pair.
      choose: "hardest", the best ranked ones, or "random" ones of those that may be.
      seed: of the random choice.
    """

    ranks: tuple[int, int] = (1, 100)
    share: float | None = 0.95
    margin: float | None = None
    count: int = 1
    choose: str = "hardest"
    seed: int = 0

    def pick(self, scores: np.ndarray, positive: float, key: tuple[int, ...]) -> np.ndarray:
        """Indices into `scores` of a query's negatives, the better ranked first; fewer than `count`
        where the rule leaves no more.

        Args:
          scores: float32 [n], of the documents of ranks 1 to n.
          positive: the score of the pair's positive.
          key: tells this pair's random choice from others'.
        """
        first, last = self.ranks
        ceiling = np.inf if self.margin is None else positive - self.margin
        if self.share is not None:
            ceiling = min(ceiling, positive * (self.share if positive > 0 else 1))
        may = first - 1 + np.flatnonzero(scores[first - 1 : last] <= ceiling)
        if self.choose == "random":
            may = np.sort(np.random.default_rng([self.seed, *key]).permutation(may)[: self.count])
        return may[: self.count]


def stream_neighbours(
    queries: np.ndarray,
    corpus: np.ndarray,
    ids: list[str],
    count: int,
    excluded: Callable[[int], Collection[int]],
    positives: Callable[[int], np.ndarray],
    tolerance: float,
    *,
    rows: slice,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The `count` best documents of each query that are none of its positives, exactly.

    Args:
      queries, corpus, ids, rows, advance: as in `stream_top_k`.
      excluded: corpus indices that a query, by its index, must not get.
      positives: the vectors of a query's positives, [n, D]: neither what is as close to one of them
        as a cosine of 1 - `tolerance`.

    Yields:
      The queries' slice; corpus indices int64 [n, count], -1 where there are no more documents;
      scores float32 [n, count].
    """
    wanted = min(count + SPARE, len(corpus))
    found = stream_top_k(queries, corpus, ids, wanted, rows=rows, advance=advance)
    for chosen, places, scores in found:
        kept = np.full((len(places), count), -1, np.int64)
        kept_scores = np.full((len(places), count), -np.inf, np.float32)
        width, open_rows = wanted, np.arange(len(places))
        while True:
            short = []
            for row, its_places, its_scores in zip(open_rows, places, scores, strict=True):
                query = chosen.start + int(row)
                good = ~np.isin(its_places, list(excluded(query)))
                good &= ~_twins(queries, corpus, query, its_places, its_scores, positives(query),
                                tolerance)  # fmt: skip
                good = np.flatnonzero(good)[:count]
                if len(good) < count and width < len(corpus):
                    short.append(row)
                kept[row, : len(good)] = its_places[good]
                kept_scores[row, : len(good)] = its_scores[good]
            if not short:
                break
            # More was excluded than was spare: these few ask again, for more.
            width, open_rows = min(4 * width, len(corpus)), np.array(short)
            again = stream_top_k(queries[chosen.start + open_rows], corpus, ids, width)
            _, places, scores = (list(part) for part in zip(*again, strict=True))
            places, scores = np.concatenate(places), np.concatenate(scores)
        yield chosen, kept, kept_scores


def _twins(queries, corpus, query, places, scores, positives, tolerance) -> np.ndarray:
    """bool [k], which documents are as close to a positive as a cosine of 1 - `tolerance`.

    Two rows of that cosine are sqrt(2 tolerance) apart, and so are their products with a query at
    most: only documents that score that near to the positive are looked at.
    """
    twin = np.zeros(len(places), bool)
    if not len(positives):
        return twin
    positives = positives / np.linalg.norm(positives, axis=1, keepdims=True)
    own = positives @ np.asarray(queries[query : query + 1], np.float32)[0]
    near = np.abs(scores[:, None] - own) <= np.sqrt(2 * tolerance) + ROUNDING
    at = np.flatnonzero(near.any(axis=1))
    if len(at):
        rows = np.asarray(corpus[places[at]], np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        # A rounding of float32 vectors is no difference.
        twin[at] = (rows @ positives.T.astype(np.float64) >= 1 - tolerance - 1e-6).any(axis=1)
    return twin


def query_tile(queries: int, devices: int) -> int:
    """Queries that `stream_neighbours` yields at once; the last are fewer."""
    return tiles.tile_size(queries, tiles.QUERY_TILE, devices)
