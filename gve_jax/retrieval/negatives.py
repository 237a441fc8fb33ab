"""Which documents a query may have as hard negatives: ranks without its positives, and a rule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gve_jax.retrieval import tiles
from gve_jax.retrieval.tiles import NORM_TOLERANCE
from gve_jax.retrieval.topk import stream_top_k
from gve_jax.retrieval.unit import unit_rows

SPARE = 16  # documents asked for beyond the window, in place of those that are excluded
PAIRS = 4096  # documents compared with a positive at a time


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
    excluded: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    positives: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    tolerance: float,
    *,
    rows: Sequence[slice],
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The `count` best documents of each query that are none of its positives, exactly.

    Args:
      queries, corpus, ids, rows, advance: as in `stream_top_k`.
      excluded: of query indices [n] to what they must not get: places in [n], int64 [E], and corpus
        indices, int64 [E].
      positives: of query indices [n] to places in [n], int64 [P], ascending, and the vectors of
        those queries' positives, [P, D]. What is as close to one of them as a cosine of
        1 - `tolerance`, its query does not get either.

    Yields:
      The queries' slice; corpus indices int64 [n, count], -1 where there are no more documents;
      scores float32 [n, count].
    """
    wanted = min(count + SPARE, len(corpus))
    found = stream_top_k(queries, corpus, ids, wanted, rows=rows, advance=advance)
    for chosen, places, scores in found:
        kept = np.full((len(places), count), -1, np.int64)
        kept_scores = np.full((len(places), count), -np.inf, np.float32)
        width, left = wanted, np.arange(len(places))
        while True:
            asked = chosen.start + left
            good = ~_has(places, *excluded(asked), len(corpus))
            good &= ~_twins(queries, corpus, asked, places, scores, *positives(asked), tolerance)
            rank = np.cumsum(good, axis=1) - 1
            row, column = np.nonzero(good & (rank < count))
            kept[left[row], rank[row, column]] = places[row, column]
            kept_scores[left[row], rank[row, column]] = scores[row, column]
            left = left[good.sum(axis=1) < count] if width < len(corpus) else left[:0]
            if not len(left):
                break
            # More was excluded than was spare: these few ask again, for more.
            width = min(4 * width, len(corpus))
            again = list(stream_top_k(queries[chosen.start + left], corpus, ids, width))
            places, scores = (np.concatenate([part[n] for part in again]) for n in (1, 2))
        yield chosen, kept, kept_scores


def _has(places: np.ndarray, row: np.ndarray, document: np.ndarray, corpus: int) -> np.ndarray:
    """bool [n, k], which of the documents int64 [n, k] are among a row's own."""
    keys = np.arange(len(places))[:, None] * corpus + places
    return np.isin(keys, row * corpus + document)


def _twins(queries, corpus, asked, places, scores, owner, positives, tolerance) -> np.ndarray:
    """bool [n, k], which documents are as close to a positive as a cosine of 1 - `tolerance`.

    Two rows of that cosine are sqrt(2 tolerance) apart, and so are their products with a query at
    most: only documents that score that near to the positive are looked at.
    """
    twin = np.zeros(places.shape, bool)
    positives = unit_rows(positives, "positives")
    own = np.einsum("pd,pd->p", positives, np.asarray(queries[asked[owner]], np.float32))
    # Lengths may differ from one by a little.
    reach = (1 + NORM_TOLERANCE) * (np.sqrt(2 * tolerance) + NORM_TOLERANCE * np.abs(scores))
    which, column = np.nonzero(np.abs(scores[owner] - own[:, None]) <= reach[owner])
    for start in range(0, len(which), PAIRS):
        pair, at = which[start : start + PAIRS], column[start : start + PAIRS]
        rows = corpus[places[owner[pair], at]]
        cosine = np.einsum("nd,nd->n", rows, positives[pair])
        cosine /= np.sqrt(np.einsum("nd,nd->n", rows, rows))
        # A rounding of float32 vectors is no difference.
        same = cosine >= 1 - tolerance - 1e-6
        twin[owner[pair[same]], at[same]] = True
    return twin


def query_tile(queries: int, devices: int) -> int:
    """Queries that `stream_neighbours` yields at once; the last are fewer."""
    return tiles.tile_size(queries, tiles.QUERY_TILE, devices)
