"""Retrieval metrics from ranks, and the value each has when the ranking is random.

A metric is named `hit_rate@k`, `recall@k`, `precision@k`, `ndcg@k`, `mrr@k` or `mrr`. The R@k of
video papers is the hit rate: the share of queries with at least one positive among the first k.
True recall is the share of a query's positives found there. The two agree only with one positive a
query, so each has its own name here. Relevance is binary: nDCG's linear and exponential gain agree.

Everything is numpy on [Q] and [N]; a query without positives (see `Ranks`) scores zero.
"""

from collections.abc import Callable

import numpy as np

from gve_jax.errors import UserError
from gve_jax.retrieval.ranks import Ranks


def evaluate(metric: str, ranks: Ranks) -> np.ndarray:
    """The metric of each query, float64 [Q], in 0..1; its mean is the score of the set.

    Args:
      metric: a name as above, such as `hit_rate@10`.
      ranks: from `rank_positives`; `ranks.worst()` for pessimistic ties.

    Raises:
      UserError: unknown metric.
    """
    compute, _, k = _parse(metric)
    return compute(ranks, k)


def chance(metric: str, positives: np.ndarray, corpus: int | np.ndarray) -> np.ndarray:
    """The expected metric of each query when all orders of the corpus are equally likely.

    Args:
      metric: a name as above.
      positives: int [Q], the number of positives of each query; zero gives zero.
      corpus: the number of documents C, or int [Q] of each query's candidates.

    Returns:
      float64 [Q].

    Raises:
      UserError: unknown metric, or more positives than documents.
    """
    _, expect, k = _parse(metric)
    positives = np.asarray(positives)
    both = np.stack([positives, np.broadcast_to(corpus, positives.shape)])
    over = both[0] > both[1]
    if over.any():
        few, many = both[1][over][0], both[0][over].max()
        raise UserError(f"{many} positives in a corpus of {few} documents")
    kinds, inverse = np.unique(both, axis=1, return_inverse=True)
    values = [expect(int(own), int(size), k) if own else 0.0 for own, size in kinds.T]
    return np.array(values, np.float64)[inverse.reshape(-1)]


def first_rank(ranks: Ranks) -> np.ndarray:
    """Rank of each query's best positive, float64 [Q]; infinite where there is none."""
    first = np.full(ranks.queries, np.inf)
    np.minimum.at(first, ranks.query, ranks.rank)
    return first


def median_rank(ranks: Ranks) -> float:
    """Median over queries of the rank of the best positive; infinite if half have none."""
    return float(np.median(first_rank(ranks)))


# ---- each metric, measured and expected -------------------------------------------------------


def _hit_rate(ranks: Ranks, k: int) -> np.ndarray:
    return (first_rank(ranks) <= k).astype(np.float64)


def _recall(ranks: Ranks, k: int) -> np.ndarray:
    return _found(ranks, k) / np.maximum(_positives(ranks), 1)


def _precision(ranks: Ranks, k: int) -> np.ndarray:
    return _found(ranks, k) / k


def _ndcg(ranks: Ranks, k: int) -> np.ndarray:
    gain = np.where(ranks.rank <= k, 1 / np.log2(1.0 + ranks.rank), 0.0)
    total = np.bincount(ranks.query, weights=gain, minlength=ranks.queries)
    positives = np.maximum(_positives(ranks), 1)
    ideal = np.array([_ideal_gain(count, k) for count in range(positives.max(initial=1) + 1)])
    return total / ideal[positives]


def _mrr(ranks: Ranks, k: int | None) -> np.ndarray:
    first = first_rank(ranks)
    return np.where(first <= (k or np.inf), 1 / first, 0.0)


def _expected_hit_rate(positives: int, corpus: int, k: int) -> float:
    return float(1 - _missed(positives, corpus)[min(k, corpus)])


def _expected_recall(positives: int, corpus: int, k: int) -> float:
    return min(k, corpus) / corpus


def _expected_precision(positives: int, corpus: int, k: int) -> float:
    return min(k, corpus) * positives / corpus / k


def _expected_ndcg(positives: int, corpus: int, k: int) -> float:
    return positives / corpus * _ideal_gain(corpus, k) / _ideal_gain(positives, k)


def _expected_mrr(positives: int, corpus: int, k: int | None) -> float:
    missed = _missed(positives, corpus)
    return float(np.sum(((missed[:-1] - missed[1:]) / np.arange(1, corpus + 1))[:k]))


def _found(ranks: Ranks, k: int) -> np.ndarray:
    return np.bincount(ranks.query, weights=ranks.rank <= k, minlength=ranks.queries)


def _positives(ranks: Ranks) -> np.ndarray:
    return np.bincount(ranks.query, minlength=ranks.queries)


def _ideal_gain(positives: int, k: int) -> float:
    return float(np.sum(1 / np.log2(np.arange(2, min(positives, k) + 2))))


def _missed(positives: int, corpus: int) -> np.ndarray:
    """Probability that none of the first r documents is a positive, float64 [C + 1], r from 0."""
    seen = np.arange(corpus)
    return np.cumprod(np.append(1.0, np.maximum(corpus - positives - seen, 0) / (corpus - seen)))


_AT_K: dict[str, tuple[Callable, Callable]] = {
    "hit_rate": (_hit_rate, _expected_hit_rate),
    "recall": (_recall, _expected_recall),
    "precision": (_precision, _expected_precision),
    "ndcg": (_ndcg, _expected_ndcg),
    "mrr": (_mrr, _expected_mrr),
}


def _parse(metric: str) -> tuple[Callable, Callable, int | None]:
    name, at, k = metric.partition("@")
    if metric == "mrr":
        return _mrr, _expected_mrr, None
    if name not in _AT_K or not at or not k.isdecimal() or int(k) < 1:
        raise UserError(f"unknown metric {metric!r}; known: {', '.join(_AT_K)} @k, and mrr")
    return *_AT_K[name], int(k)
