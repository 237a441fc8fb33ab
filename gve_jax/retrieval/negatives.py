"""Hard negatives of queries: the nearest documents without the positives, and a rule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gve_jax.retrieval import tiles
from gve_jax.retrieval.tiles import NORM_TOLERANCE
from gve_jax.retrieval.topk import stream_top_k
from gve_jax.retrieval.unit import unit_rows

SPARE = 16  # documents searched beyond the window, to replace excluded ones
PAIRS = 4096  # pairs of a document and a positive compared at a time


@dataclass(frozen=True)
class Rule:
    """Which ranked documents become negatives.

    Attributes:
      ranks: the first and the last rank, from 1, among documents that are not excluded.
      share: highest score of a negative as a share of the positive's score, or that score itself
        where it is not positive; None for no limit.
      margin: least difference of the scores of positive and negative; None for no limit.
      count: negatives of a pair.
      choose: "hardest" for the best ranked of the allowed documents, "random" for any of them.
      seed: seed of the random choice.
    """

    ranks: tuple[int, int] = (1, 100)
    share: float | None = 0.95
    margin: float | None = None
    count: int = 1
    choose: str = "hardest"
    seed: int = 0

    def pick(self, scores: np.ndarray, positive: float, key: tuple[int, ...]) -> np.ndarray:
        """Returns the indices in `scores` of a pair's negatives, best ranked first.

        They are fewer than `count` where the rule allows fewer.

        Args:
          scores: float32 [n], the scores of the documents of ranks 1 to n.
          positive: the score of the pair's positive.
          key: added to the seed, so that each pair has its own random choice.
        """
        first, last = self.ranks
        ceiling = np.inf if self.margin is None else positive - self.margin
        if self.share is not None:
            ceiling = min(ceiling, positive * (self.share if positive > 0 else 1))
        allowed = first - 1 + np.flatnonzero(scores[first - 1 : last] <= ceiling)
        if self.choose == "random":
            draw = np.random.default_rng([self.seed, *key])
            allowed = np.sort(draw.permutation(allowed)[: self.count])
        return allowed[: self.count]


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
    """Yields the `count` nearest documents of each query, positives excluded, exactly.

    Args:
      queries, corpus, ids, rows, advance: as in `stream_top_k`.
      excluded: maps query indices [n] to excluded pairs: indices in [n] and
        corpus indices, int64 [pairs] each.
      positives: maps query indices [n] to positives: indices in [n], int64 [pairs], ascending,
        and vectors [pairs, D]. Documents with a cosine of 1 - `tolerance` or more to a positive of
        a query are excluded from its list.

    Yields:
      The slice of the queries; corpus indices int64 [n, count], padded with -1; scores float32
      [n, count].
    """
    width = min(count + SPARE, len(corpus))
    stream = stream_top_k(queries, corpus, ids, width, rows=rows, advance=advance)
    for chosen, documents, scores in stream:
        nearest = np.full((len(documents), count), -1, np.int64)
        nearest_scores = np.full((len(documents), count), -np.inf, np.float32)
        searched, left = width, np.arange(len(documents))
        while True:
            query = chosen.start + left
            good = ~_is_excluded(documents, *excluded(query), len(corpus))
            good &= ~_is_duplicate(
                queries, corpus, query, documents, scores, *positives(query), tolerance
            )
            rank = np.cumsum(good, axis=1) - 1
            row, column = np.nonzero(good & (rank < count))
            nearest[left[row], rank[row, column]] = documents[row, column]
            nearest_scores[left[row], rank[row, column]] = scores[row, column]
            left = left[good.sum(axis=1) < count] if searched < len(corpus) else left[:0]
            if not len(left):
                break
            # More than SPARE documents were excluded: search further for these few queries.
            searched = min(4 * searched, len(corpus))
            parts = list(stream_top_k(queries[chosen.start + left], corpus, ids, searched))
            documents, scores = (np.concatenate([part[n] for part in parts]) for n in (1, 2))
        yield chosen, nearest, nearest_scores


def _is_excluded(
    documents: np.ndarray, row: np.ndarray, document: np.ndarray, corpus: int
) -> np.ndarray:
    """bool [n, k], whether documents int64 [n, k] are among the excluded pairs (row, document)."""
    keys = np.arange(len(documents))[:, None] * corpus + documents
    return np.isin(keys, row * corpus + document)


def _is_duplicate(
    queries, corpus, query, documents, scores, owner, positives, tolerance
) -> np.ndarray:
    """bool [n, k], whether documents have a cosine of 1 - `tolerance` or more to a positive.

    Two unit rows of that cosine are sqrt(2 tolerance) apart, and so are their scores at most: only
    documents whose score is that close to the positive's are compared with it.
    """
    duplicate = np.zeros(documents.shape, bool)
    positives = unit_rows(positives, "positives")
    score = np.einsum("pd,pd->p", positives, np.asarray(queries[query[owner]], np.float32))
    # Rows may differ from unit length by NORM_TOLERANCE.
    reach = (1 + NORM_TOLERANCE) * (np.sqrt(2 * tolerance) + NORM_TOLERANCE * np.abs(scores))
    which, column = np.nonzero(np.abs(scores[owner] - score[:, None]) <= reach[owner])
    for start in range(0, len(which), PAIRS):
        pair, rank = which[start : start + PAIRS], column[start : start + PAIRS]
        rows = corpus[documents[owner[pair], rank]]
        cosine = np.einsum("nd,nd->n", rows, positives[pair])
        cosine /= np.sqrt(np.einsum("nd,nd->n", rows, rows))
        close = cosine >= 1 - tolerance - 1e-6  # 1e-6: rounding of float32
        duplicate[owner[pair[close]], rank[close]] = True
    return duplicate


def query_tile(queries: int, devices: int) -> int:
    """Number of queries that `stream_neighbours` yields at once; the last slice may be smaller."""
    return tiles.tile_size(queries, tiles.QUERY_TILE, devices)
