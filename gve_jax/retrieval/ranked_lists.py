"""Lists of the best documents in the order of `Ranks`, for run files.

Ranks are counted and lists are sorted by programs that may round a score differently, so that
near-copies are ordered differently and metrics computed from a list differ. Here the positives are
placed at their counted ranks, so that the list has the metrics of the ranks up to its length.
"""

from collections.abc import Sequence

import numpy as np

from gve_jax.retrieval.ranks import Ranks


def spare_documents(ranks: Ranks) -> int:
    """Number of documents beyond k that `ranked_lists` requires: the largest number of positives of
    a query, which may all be ranked lower than in the list."""
    return int(np.bincount(ranks.query, minlength=1).max())


def ranked_lists(
    ranks: Ranks,
    queries: Sequence[int],
    documents: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    order: np.ndarray,
    k: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the k best documents of some queries in the order of `ranks`.

    Sorting a list by float32 score, and equal scores by descending id, reproduces it: scores that
    contradict the counted order are sorted, and if ids of equal scores contradict it, the later
    score is lowered to the next float32.

    Args:
      ranks: the ranks of all queries.
      queries: indices of the n queries to list.
      documents, scores: for each of them, corpus indices and float32 cosines of its best documents,
        best first: k plus `spare_documents`, or all that it ranks.
      order: int [C], the rank of each document's id in string order.
      k: length of the lists; shorter if a query ranks fewer documents.

    Returns:
      Corpus indices int64 and scores float32, for each of the n queries.
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
    """Returns scores of a list such that (score, order of the id) decreases strictly."""
    scores = np.sort(scores + np.float32(0))[::-1].copy()  # no -0.0
    wrong = (np.diff(scores) == 0) & (np.diff(order) > 0)
    if not wrong.any():
        return scores
    for at in range(int(np.argmax(wrong)) + 1, len(scores)):
        scores[at] = min(scores[at], scores[at - 1])
        if scores[at] == scores[at - 1] and order[at] > order[at - 1]:
            scores[at] = np.nextafter(scores[at], np.float32(-np.inf))
    return scores
