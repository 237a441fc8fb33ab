"""Lists of the best documents in the very order that `Ranks` counted, for run files.

A rank is counted, a list is sorted, and the two come from programs that may round one score in two
ways: near-copies then change places between them, and whoever computes a metric from the list gets
another one. Here the positives take the places that were counted, so the list has the metrics of
the ranks up to its length.
"""

from collections.abc import Sequence

import numpy as np

from gve_jax.retrieval.ranks import Ranks


def spare_documents(ranks: Ranks) -> int:
    """How many documents beyond k a list must hold for `ranked_lists`: as many as a query has
    positives, which may all stand further down than the list has them."""
    return int(np.bincount(ranks.query, minlength=1).max())


def ranked_lists(
    ranks: Ranks,
    queries: Sequence[int],
    documents: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    order: np.ndarray,
    k: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The k best documents of some queries in the order of `ranks`.

    Sorting a list by score (as float32), equal ones by id descending, gives it back: scores that
    were rounded out of the counted order go to its places in descending order, and where the ids of
    equal ones contradict that order, the later score is lowered to the next float32.

    Args:
      ranks: of all queries.
      queries: indices of those whose lists are wanted, n of them.
      documents, scores: of each, the corpus indices and cosines float32 of its best documents, best
        first: k and `spare_documents`, or all that it ranks.
      order: int [C], the place of each document's id among all sorted as strings.
      k: length of the lists; fewer where a query ranks fewer documents.

    Returns:
      Corpus indices int64 and scores float32, by query.
    """
    starts = np.searchsorted(ranks.query, np.arange(ranks.queries + 1))
    lists, values = [], []
    for query, found, cosines in zip(queries, documents, scores, strict=True):
        own = slice(starts[query], starts[query + 1])
        one, other = _place_positives(
            np.asarray(found, np.int64),
            np.asarray(cosines, np.float32),
            k,
            ranks.document[own],
            ranks.rank[own],
            ranks.score[own],
        )
        lists.append(one)
        values.append(_descending(other, order[one]))
    return lists, values


def _place_positives(found, cosines, k, positives, rank, score):
    """The first k of a list, with the positives moved to their ranks."""
    rest = ~np.isin(found, positives)
    size = min(k, int(rest.sum()) + len(positives))
    inside = rank <= size
    free = np.ones(size, bool)
    free[rank[inside] - 1] = False
    if free.sum() != size - inside.sum() or free.sum() > rest.sum():
        raise RuntimeError(f"a list of {len(found)} documents does not fit its ranks")
    documents, scores = np.empty(size, np.int64), np.empty(size, np.float32)
    documents[rank[inside] - 1], scores[rank[inside] - 1] = positives[inside], score[inside]
    documents[free], scores[free] = found[rest][: free.sum()], cosines[rest][: free.sum()]
    return documents, scores


def _descending(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Scores of a list, so that (score, id's order) descends strictly."""
    scores = np.sort(scores + np.float32(0))[::-1].copy()  # no -0.0, which some print
    wrong = (np.diff(scores) == 0) & (np.diff(order) > 0)
    if not wrong.any():
        return scores
    for at in range(int(np.argmax(wrong)) + 1, len(scores)):
        scores[at] = min(scores[at], scores[at - 1])
        if scores[at] == scores[at - 1] and order[at] > order[at - 1]:
            scores[at] = np.nextafter(scores[at], np.float32(-np.inf))
    return scores
